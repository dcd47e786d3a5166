package merge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(200) // hosts are made and dropped all the time
	os.Exit(m.Run())
}

// random draws terms.
func random(rng *rand.Rand) terms {
	t := terms{format: vhdx.Format, sector: 512, depth: 2 + rng.IntN(4)}
	switch rng.IntN(4) {
	case 0:
		t.sector = 4096
	case 1:
		t.format = vhd.Format
	}
	t.dest = rng.IntN(t.depth - 1)
	t.source = t.dest + 1 + rng.IntN(t.depth-t.dest-1)
	yes := func(of int) bool { return rng.IntN(of) == 0 }
	t.fork, t.far, t.fixed, t.keep = yes(3), yes(3), yes(4), yes(4)
	t.sizes = t.format == vhdx.Format && yes(3) // a VHD's cannot follow everywhere
	return t
}

// Whatever is merged into whatever, every image that is left reads as before.
func TestRandomChains(t *testing.T) {
	for seed := range uint64(60) {
		tt := random(rand.New(rand.NewPCG(seed, 1)))
		t.Run(tt.String(), func(t *testing.T) {
			s := tt.scene(seed)
			requireMerged(t, s, s.lay())
		})
	}
}

// A VHD has one id for good: another child of it would not notice the merge, so
// that with force it is cut off.
func TestForceCutsVHDsOff(t *testing.T) {
	tt := terms{format: vhd.Format, sector: 512, depth: 3, source: 2}
	s := tt.scene(4)
	x := &image{path: "/vms/x.vhd", parent: s.line[0], size: s.line[0].size, block: 4096, id: 9}
	h := s.lay()
	h.Put(x.path, s.bytes(x))
	lib := library(h)
	a := merge(lib, "/vms/3.vhd", "1.vhd")
	require.ErrorIs(t, a.Err, ops.ErrReadOnly)
	a = merge(lib, "/vms/3.vhd", "1.vhd force=true")
	require.NoError(t, a.Err)
	_, err := read(lib, x.path)
	require.ErrorIs(t, err, ops.ErrParentMismatch)
	require.NoError(t, lib.Close())
	require.NoError(t, s.over(h))
}

// The destination gets the source's size: larger ones grow first, past ends are
// zeros whatever an older ancestor has there, and what a format cannot is refused.
func TestOtherSizes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		format *ops.Format
		fixed  bool
		sizes  [3]int64 // in blocks
		dest   int
		err    error
	}{
		{"larger child, dynamic", vhd.Format, false, [3]int64{5, 5, 8}, 0, nil},
		{"larger child, fixed", vhd.Format, true, [3]int64{5, 5, 8}, 0, nil},
		{"larger from between on", vhd.Format, false, [3]int64{5, 8, 8}, 0, nil},
		{"smaller disk between", vhd.Format, false, [3]int64{8, 5, 8}, 0, nil},
		{"smaller child", vhd.Format, false, [3]int64{8, 8, 5}, 0, errors.ErrUnsupported},
		{"larger child of a differencing disk", vhd.Format, false, [3]int64{5, 5, 8}, 1, errors.ErrUnsupported},
		{"larger child, vhdx", vhdx.Format, false, [3]int64{3, 3, 5}, 0, nil},
		{"larger child, vhdx fixed", vhdx.Format, true, [3]int64{3, 3, 5}, 0, nil},
		{"larger child of a differencing disk, vhdx", vhdx.Format, false, [3]int64{5, 3, 5}, 1, nil},
		{"smaller disk between, vhdx", vhdx.Format, false, [3]int64{5, 3, 5}, 0, nil},
		{"smaller child, vhdx", vhdx.Format, false, [3]int64{5, 5, 3}, 0, nil},
		{"smaller child, vhdx fixed", vhdx.Format, true, [3]int64{5, 4, 3}, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(8) {
				rng := rand.New(rand.NewPCG(seed, 5))
				s := &scene{format: tt.format, sector: 512, source: 2, dest: tt.dest}
				for i, blocks := range tt.sizes {
					im := &image{path: fmt.Sprintf("/vms/%d%s", i+1, tt.format.Extensions[0]), size: blocks << 12, block: 4096, id: byte(i + 1), fixed: tt.fixed && i == 0}
					if tt.format != vhd.Format {
						im.size, im.block = blocks<<20, mib
					}
					if i > 0 {
						im.parent = s.line[i-1]
					}
					im.fill(rng, 512, tt.format != vhd.Format && !im.fixed)
					s.line = append(s.line, im)
				}
				if tt.err == nil {
					requireMerged(t, s, s.lay())
					continue
				}
				h := s.lay()
				lib, before := library(h), h.Changes()
				a := merge(lib, s.line[2].path, s.request())
				require.ErrorIs(t, a.Err, tt.err)
				require.ErrorContains(t, a.Err, fmt.Sprintf("has %d bytes and would have to have %d", s.line[tt.dest].size, s.line[2].size))
				require.NoError(t, lib.Close())
				require.Equal(t, before, h.Changes())
			}
		})
	}
}
