package ops_test

import (
	"bytes"
	"errors"
	"io"
	iofs "io/fs"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// TestWriteModel runs writes, zeros and reads at any alignment over chains 1 to
// 5 deep, with both sector sizes, against a plain slice of bytes.
func TestWriteModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		depth := rapid.IntRange(1, 5).Draw(r, "depth")
		sector := rapid.SampledFrom([]int64{512, 4096}).Draw(r, "sector")
		tail := rapid.SampledFrom([]int64{0, 100}).Draw(r, "tail")
		size := 8*sector - tail
		for i := 1; i <= depth; i++ {
			im := fakeImage{ID: guid(i), Size: size, Sector: uint32(sector), blocks: map[int64]byte{}}
			for _, s := range rapid.SliceOfN(rapid.Int64Range(0, 6), 0, 4).Draw(r, "blocks") {
				im.blocks[s] = byte(rapid.IntRange(0, 250).Draw(r, "fill"))
			}
			if i > 1 {
				im.Parent, im.Paths = []string{guid(i - 1)}, []fakePath{{ops.PathRelative, strconv.Itoa(i-1) + ".vhdx"}}
			}
			w.image("/vms/"+strconv.Itoa(i)+".vhdx", im)
		}
		name := strconv.Itoa(depth) + ".vhdx"
		model, err := w.read(name)
		require.NoError(t, err)
		parentBefore, _ := w.host.ReadFile("/vms/1.vhdx")
		h, err := w.lib.Open(w.lib.Top(name), ops.Write)
		require.NoError(t, err)
		for range rapid.IntRange(1, 20).Draw(r, "steps") {
			off := rapid.Int64Range(0, size).Draw(r, "off")
			n := rapid.Int64Range(0, size-off).Draw(r, "n")
			if rapid.Bool().Draw(r, "aligned") {
				off, n = off/sector*sector, n/sector*sector
			}
			switch rapid.IntRange(0, 2).Draw(r, "op") {
			case 0:
				p := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(r, "byte"))}, int(n))
				got, err := h.WriteAt(p, off)
				require.NoError(t, err)
				require.EqualValues(t, n, got)
				copy(model[off:], p)
			case 1:
				require.NoError(t, h.Zero(off, n, rapid.Bool().Draw(r, "unmap")))
				clear(model[off : off+n])
			case 2:
				p := make([]byte, n)
				_, err := h.ReadAt(p, off)
				if err != io.EOF {
					require.NoError(t, err)
				}
				require.Equal(t, model[off:off+n], p)
			}
		}
		require.NoError(t, h.Flush())
		require.NoError(t, h.Close())
		got, err := w.read(name)
		require.NoError(t, err)
		require.Equal(t, model, got)
		if depth > 1 {
			parentAfter, _ := w.host.ReadFile("/vms/1.vhdx")
			require.Equal(t, parentBefore, parentAfter)
		}
	})
}

func TestWriteBounds(t *testing.T) {
	w := newWorld(t)
	name := w.line(1)
	h := w.open(name, ops.Write)
	before, err := w.host.ReadFile("/vms/" + name)
	require.NoError(t, err)
	for _, tt := range []struct {
		off, n int64
		err    error
	}{
		{4096, 1, ops.ErrPastEnd},
		{4095, 2, ops.ErrPastEnd},
		{0, 4097, ops.ErrPastEnd},
		{1 << 62, 512, ops.ErrPastEnd},
		{1<<63 - 1, 512, ops.ErrPastEnd},
		{-1, 512, ops.ErrUsage},
		{-1 << 63, 512, ops.ErrUsage},
	} {
		n, err := h.WriteAt(make([]byte, tt.n), tt.off)
		require.Zero(t, n)
		require.ErrorIs(t, err, tt.err)
		require.ErrorIs(t, h.Zero(tt.off, tt.n, true), tt.err)
	}
	require.ErrorIs(t, h.Zero(0, -1, true), ops.ErrUsage)
	require.ErrorIs(t, h.Zero(512, 1<<63-1, true), ops.ErrPastEnd)
	require.NoError(t, h.Zero(4096, 0, true))
	after, err := w.host.ReadFile("/vms/" + name)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// A zero where no image of the chain holds anything changes nothing.
func TestZeroOfNothingNeedsNothing(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), blocks: map[int64]byte{2: 5, 4: 0}})
	c := recorded("p.vhdx")
	c.blocks = map[int64]byte{6: 8}
	w.image("/vms/c.avhdx", c)
	h := w.open("c.avhdx", ops.Write)
	require.NoError(t, h.Zero(0, 4096, true))
	b, err := w.host.ReadFile("/vms/c.avhdx")
	require.NoError(t, err)
	require.Equal(t, []byte{0, 0, 1, 0, 0, 0, 1, 0}, b[fakeData:fakeData+8], "states of the child's sectors")
	x, err := h.Extent(0, 4096)
	require.NoError(t, err)
	require.Equal(t, ops.Zero, x.Kind)
}

func TestOpenWritesNothing(t *testing.T) {
	w := newWorld(t)
	name := w.line(2)
	w.host.Freeze()
	h, err := w.lib.Open(w.lib.Top(name), ops.Write)
	require.NoError(t, err)
	_, err = h.ReadAt(make([]byte, 100), 0)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	require.Zero(t, w.host.Refused())
	_, err = h.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, iofs.ErrClosed)
	require.ErrorIs(t, h.Close(), iofs.ErrClosed)
}

func TestReaderMayNotWrite(t *testing.T) {
	w := newWorld(t)
	name := w.line(1)
	r := w.open(name, ops.Read)
	wr := w.open(name, ops.Write)
	require.False(t, r.Writable())
	require.True(t, wr.Writable())
	_, err := r.WriteAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, ops.ErrReadOnly)
	require.ErrorIs(t, r.Zero(0, 512, false), ops.ErrReadOnly)
	// What one handle writes, the others see.
	_, err = wr.WriteAt([]byte("hello"), 700)
	require.NoError(t, err)
	b := make([]byte, 5)
	_, err = r.ReadAt(b, 700)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
	require.NoError(t, r.Flush())
	require.Equal(t, 1, w.host.SyncLabels()["fake.flush"])
}

// C6: a failed flush is the last one; reads go on, and reopening begins anew.
func TestFailedFlushPoisons(t *testing.T) {
	w := newWorld(t)
	name := w.line(1)
	h := w.open(name, ops.Write)
	var fail atomic.Bool
	fail.Store(true)
	w.host.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpSync && fail.Load() {
			return syscall.EIO
		}
		return nil
	})
	_, err := h.WriteAt([]byte("hello"), 0)
	require.NoError(t, err)
	require.ErrorIs(t, h.Flush(), syscall.EIO)
	fail.Store(false)
	require.ErrorIs(t, h.Flush(), ops.ErrPoisoned, "the second one must not say it is there")
	_, err = h.WriteAt([]byte("hello"), 0)
	require.ErrorIs(t, err, ops.ErrPoisoned)
	require.ErrorIs(t, h.Zero(0, 512, true), ops.ErrPoisoned)
	other := w.open(name, ops.Write)
	require.ErrorIs(t, other.Flush(), ops.ErrPoisoned, "another handle is no reopening")
	_, err = h.ReadAt(make([]byte, 5), 0)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	require.NoError(t, other.Close())
	h = w.open(name, ops.Write)
	_, err = h.WriteAt([]byte("again"), 0)
	require.NoError(t, err)
	require.NoError(t, h.Flush())
}

// Out of space is the writer's trouble alone.
func TestOutOfSpaceDoesNotPoison(t *testing.T) {
	w := newWorld(t)
	name := w.line(1)
	h := w.open(name, ops.Write)
	for _, op := range []sim.Op{sim.OpWrite, sim.OpSync} {
		w.host.SetFault(func(c sim.Call) error {
			if c.Op == op {
				return syscall.ENOSPC
			}
			return nil
		})
		_, werr := h.WriteAt([]byte("hello"), 0)
		ferr := h.Flush()
		require.ErrorIs(t, errors.Join(werr, ferr), syscall.ENOSPC)
		w.host.SetFault(nil)
		_, err := h.WriteAt([]byte("hello"), 0)
		require.NoError(t, err)
		require.NoError(t, h.Flush())
	}
}
