package vhd

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// Blocks that nobody wants go with what they hold. A child has no other way to
// say zeros, so its block goes only where the parents are zeros throughout.
func TestCompactDropsWhatIsFree(t *testing.T) {
	const block = 4096
	plain := fixture.VHD{Size: 7*block + 512, BlockSize: block}
	for _, b := range []int64{1, 3, 7} {
		plain.Writes = append(plain.Writes, fixture.Write{Off: b * block, Data: pattern(512, byte(b))})
	}
	child := plain
	child.Type, child.Parent = 4, parent()
	free := func(first, last int64) func(off, n int64) bool {
		return func(off, n int64) bool { return off >= first*block && off+n <= last*block+512 }
	}
	for _, tt := range []struct {
		name  string
		image fixture.VHD
		free  func(off, n int64) bool
		below func(off, n int64) (bool, error)
		scan  bool
		gone  []int64
	}{
		{"all", plain, free(0, 7), nil, true, []int64{1, 3, 7}},
		{"none", plain, free(7, 0), nil, true, nil},
		{"one", plain, free(2, 4), nil, true, []int64{3}},
		{"part of one", plain, free(4, 6), nil, true, nil},
		{"the last, which is short", plain, free(7, 7), nil, true, []int64{7}},
		{"without a scan", plain, free(0, 7), nil, false, nil},
		{"nobody says", plain, nil, nil, true, nil},
		{"a child over zeros", child, free(0, 7), func(int64, int64) (bool, error) { return true, nil }, true, []int64{1, 3, 7}},
		{"a child over data elsewhere in the block", child, free(0, 7), func(off, n int64) (bool, error) { return n <= 512, nil }, true, []int64{7}},
		{"a child over nobody knows what", child, free(0, 7), nil, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := disk(tt.image.Bytes())
			want := model(tt.image, 0)
			for _, b := range tt.gone {
				clear(want[b*block : min((b+1)*block, tt.image.Size)])
			}
			edit(t, h, func(w ops.Writer) {
				for _, dry := range []bool{true, false} {
					res := compact(t, w, ops.CompactOptions{Scan: tt.scan, Move: true, Free: tt.free, Below: tt.below, Dry: dry})
					require.EqualValues(t, len(tt.gone), res.Dropped)
				}
			})
			got, err := readLayer(mustOpen(t, image(t, h)), 0, tt.image.Size, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
		})
	}
}
