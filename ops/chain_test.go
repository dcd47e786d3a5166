package ops_test

import (
	"io"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// failOpens makes the next n opens of a path fail with EMFILE.
func (w *world) failOpens(path string, n int32) {
	var left atomic.Int32
	left.Store(n)
	w.host.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpOpen && c.Path == path && left.Add(-1) >= 0 {
			return syscall.EMFILE
		}
		return nil
	})
}

// line stores a chain of n images, i.vhdx above (i-1).vhdx, each with one sector
// of its own; 1.vhdx is the root.
func (w *world) line(n int) (leaf string) {
	for i := 1; i <= n; i++ {
		im := fakeImage{ID: guid(i), blocks: map[int64]byte{int64(i % 8): byte(i)}}
		if i > 1 {
			im.Parent, im.Paths = []string{guid(i - 1)}, []fakePath{{ops.PathRelative, strconv.Itoa(i-1) + ".vhdx"}}
		}
		w.image("/vms/"+strconv.Itoa(i)+".vhdx", im)
	}
	return strconv.Itoa(n) + ".vhdx"
}

func TestReadThroughChains(t *testing.T) {
	for n := 1; n <= 5; n++ {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			w := newWorld(t)
			b, err := w.read(w.line(n))
			require.NoError(t, err)
			require.Len(t, b, 8*512)
			for s := range 8 {
				want := byte(0)
				if s >= 1 && s <= n {
					want = byte(s)
				}
				require.Equal(t, want, b[s*512], "sector %d", s)
				require.Equal(t, want, b[s*512+511], "sector %d", s)
			}
		})
	}
}

func TestChainDepth(t *testing.T) {
	w := newWorld(t)
	w.line(ops.MaxChain + 1)
	_, err := w.read(strconv.Itoa(ops.MaxChain) + ".vhdx")
	require.NoError(t, err)
	_, err = w.read(strconv.Itoa(ops.MaxChain+1) + ".vhdx")
	require.ErrorIs(t, err, ops.ErrCycle)
	require.ErrorContains(t, err, "more than 256 images")
	chain, err := w.lib.ChainOf(w.lib.Top(strconv.Itoa(ops.MaxChain+1) + ".vhdx"))
	require.NoError(t, err)
	require.Len(t, chain, ops.MaxChain)
	require.ErrorIs(t, chain[ops.MaxChain-1].Err, ops.ErrCycle)
}

func TestReadAtBounds(t *testing.T) {
	w := newWorld(t)
	h := w.open(w.line(2), ops.Read)
	require.EqualValues(t, 4096, h.Size())
	for _, tt := range []struct {
		off, n int64
		want   int
		err    error
	}{
		{0, 4096, 4096, nil},
		{0, 0, 0, nil},
		{1, 600, 600, nil},
		{4095, 1, 1, nil},
		{4095, 2, 1, io.EOF},
		{4096, 1, 0, io.EOF},
		{1 << 62, 1, 0, io.EOF},
		{-1, 1, 0, ops.ErrUsage},
	} {
		n, err := h.ReadAt(make([]byte, tt.n), tt.off)
		require.Equal(t, tt.want, n, "%d+%d", tt.off, tt.n)
		require.ErrorIs(t, err, tt.err, "%d+%d", tt.off, tt.n)
	}
}

// H39: what lies past the end of a parent is zeros; what lies past the child's
// end is not there.
func TestParentOfAnotherSize(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Size: 1024, blocks: map[int64]byte{0: 1, 1: 2}})
	big := recorded("p.vhdx")
	big.Size, big.blocks = 4096, map[int64]byte{7: 9}
	w.image("/vms/big.avhdx", big)
	small := recorded("p.vhdx")
	small.Size = 512
	w.image("/vms/small.avhdx", small)

	b, err := w.read("big.avhdx")
	require.NoError(t, err)
	for s, want := range []byte{1, 2, 0, 0, 0, 0, 0, 9} {
		require.Equal(t, want, b[s*512+5], "sector %d", s)
	}
	h := w.open("big.avhdx", ops.Read)
	x, err := h.Extent(0, 4096)
	require.NoError(t, err)
	require.Equal(t, ops.ChainExtent{Extent: ops.Extent{Len: 1024, Kind: ops.Data, Pos: fakeData + 2}, Depth: 1}, x)
	x, err = h.Extent(1024, 4096)
	require.NoError(t, err)
	require.Equal(t, ops.ChainExtent{Extent: ops.Extent{Len: 2560, Kind: ops.Zero, Pos: -1}, Depth: 1, Hole: true}, x)

	b, err = w.read("small.avhdx")
	require.NoError(t, err)
	require.Len(t, b, 512)
	require.Equal(t, byte(1), b[0])
}

// A zero in a child hides the parent's data: it is not a hole.
func TestZeroHidesParent(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), blocks: map[int64]byte{0: 1, 1: 2, 2: 3}})
	c := recorded("p.vhdx")
	c.blocks = map[int64]byte{1: 0}
	w.image("/vms/c.avhdx", c)
	b, err := w.read("c.avhdx")
	require.NoError(t, err)
	require.Equal(t, []byte{1, 0, 3}, []byte{b[0], b[512], b[1024]})

	h := w.open("c.avhdx", ops.Read)
	var got []ops.ChainExtent
	for off := int64(0); off < h.Size(); {
		x, err := h.Extent(off, h.Size())
		require.NoError(t, err)
		got = append(got, x)
		off += x.Len
	}
	require.Equal(t, []ops.ChainExtent{
		{Extent: ops.Extent{Len: 512, Kind: ops.Data, Pos: fakeData + 8}, Depth: 1},
		{Extent: ops.Extent{Len: 512, Kind: ops.Zero, Pos: -1}, Depth: 0},
		{Extent: ops.Extent{Len: 512, Kind: ops.Data, Pos: fakeData + 8 + 1024}, Depth: 1},
		{Extent: ops.Extent{Len: 2560, Kind: ops.Zero, Pos: -1}, Depth: 1, Hole: true},
	}, got)
	_, err = h.Extent(h.Size(), 1)
	require.ErrorIs(t, err, io.EOF)
	_, err = h.Extent(0, 0)
	require.ErrorIs(t, err, ops.ErrUsage)
}

// What an image says to be zeros is no hole, although both read alike.
func TestZeroIsNoHole(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/a.vhdx", fakeImage{blocks: map[int64]byte{0: 0, 1: 0}})
	h := w.open("a.vhdx", ops.Read)
	x, err := h.Extent(0, 4096)
	require.NoError(t, err)
	require.Equal(t, ops.ChainExtent{Extent: ops.Extent{Len: 1024, Kind: ops.Zero, Pos: -1}}, x)
}

// An error of the host is that of the call alone (F01).
func TestReadErrorsCarryOn(t *testing.T) {
	w := newWorld(t)
	h := w.open(w.line(1), ops.Read)
	w.host.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpRead {
			return syscall.EIO
		}
		return nil
	})
	_, err := h.ReadAt(make([]byte, 512), 512)
	require.ErrorIs(t, err, syscall.EIO)
	w.host.SetFault(nil)
	_, err = h.ReadAt(make([]byte, 512), 512)
	require.NoError(t, err)
}
