package track_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/track"
)

// FuzzOpen gives the parser a tracking file with some bytes changed: it answers, or
// says that what was tracked is lost; it never panics, and whatever it tells lies on
// the disk.
func FuzzOpen(f *testing.F) {
	f.Add(uint32(0), []byte("x"), uint32(0), []byte("x"), false)
	f.Add(uint32(40), []byte{0, 0, 0, 0, 1}, uint32(32), []byte{0xff, 0xff, 0xff, 0xff}, true)
	f.Add(uint32(128<<10), []byte{9}, uint32(2<<20), []byte{1}, true)
	base := newToyHost(f, 300)
	g, err := openGuest(base)
	require.NoError(f, err)
	require.NoError(f, g.write(3, 1))
	id, err := g.seal()
	require.NoError(f, err)
	require.NoError(f, g.write(200, 1))
	require.NoError(f, g.close())
	f.Fuzz(func(t *testing.T, at uint32, p []byte, at2 uint32, p2 []byte, sum bool) {
		h := base.Clone()
		b := h.Bytes(vctPath)
		for _, w := range []struct {
			at uint32
			p  []byte
		}{{at, p}, {at2, p2}} {
			if len(w.p) > 512 {
				return
			}
			b.Write(int64(w.at)%(4<<20), w.p)
		}
		if sum {
			mend(b)
		}
		tr, err := track.Files{}.Open(image(h), readToy(h), true)
		if err != nil || tr == nil {
			t.Fatalf("%v %v", tr, err)
		}
		defer func() { _ = tr.Close() }()
		if c, err := tr.Changes(id, whole); err == nil {
			err = c.Each(0, c.Size, func(r ops.Range) error {
				if r.Off < 0 || r.Len <= 0 || r.Off+r.Len > c.Size {
					t.Fatalf("%v of %d", r, c.Size)
				}
				return nil
			})
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, ops.ErrNoTracking)
		}
		_ = tr.Write(0, 1<<20)
		_ = tr.Settle(true)
	})
}
