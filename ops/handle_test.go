package ops_test

import (
	"bytes"
	"errors"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

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

// Who may open what for writing (H44, «An image with children»).
func TestOpenForWriting(t *testing.T) {
	t.Run("an image with a child", func(t *testing.T) {
		w := newWorld(t)
		w.line(2)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		require.ErrorContains(t, err, "/vms/1.vhdx is the parent of /vms/2.vhdx")
	})
	t.Run("a child in a search folder", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/p.vhdx", parent)
		w.image("/search/c.avhdx", recorded(`C:\x\p.vhdx`))
		_, err := w.lib.Open(w.lib.Top("p.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
	})
	t.Run("a child that wants another id does not count", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/p.vhdx", fakeImage{ID: guid(9)})
		w.image("/vms/c.avhdx", recorded("p.vhdx"))
		w.open("p.vhdx", ops.Write)
	})
	t.Run("a child of a copy does not count", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/p.vhdx", parent)
		w.image("/vms/copy/p.vhdx", parent)
		w.image("/vms/copy/c.avhdx", recorded("p.vhdx"))
		w.open("p.vhdx", ops.Write)
		_, err := w.lib.Open(w.lib.Top("copy/p.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
	})
	t.Run("a parent in use", func(t *testing.T) {
		w := newWorld(t)
		w.image("/allow/p.vhdx", parent)
		w.image("/vms/c.avhdx", recorded("/allow/p.vhdx"))
		h := w.open("c.avhdx", ops.Read)
		_, err := w.lib.Open(ops.Ref{Dir: w.dirs["/allow"], Name: "p.vhdx"}, ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		require.ErrorContains(t, err, "is the parent of an image that is open")
		require.NoError(t, h.Close())
	})
	t.Run("a parent that is open for writing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.image("/vms/p.vhdx", parent)
			p := w.open("p.vhdx", ops.Write)
			w.image("/vms/c.avhdx", recorded("p.vhdx"))
			_, err := w.lib.Open(w.lib.Top("c.avhdx"), ops.Read)
			require.ErrorIs(t, err, ops.ErrBusy)
			require.ErrorContains(t, err, "/vms/p.vhdx is open for writing and cannot be the parent of /vms/c.avhdx")
			go func() {
				time.Sleep(500 * time.Millisecond)
				require.NoError(t, p.Close())
			}()
			w.open("c.avhdx", ops.Read) // waits for a close that is on its way
		})
	})
	t.Run("an image that says no", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/a.vhdx", fakeImage{ReadOnly: "the log is odd"})
		_, err := w.lib.Open(w.lib.Top("a.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		require.ErrorContains(t, err, "/vms/a.vhdx: the log is odd")
		w.open("a.vhdx", ops.Read)
	})
	t.Run("something else uses the file", func(t *testing.T) {
		w := newWorld(t)
		o := w.options()
		o.BeforeWrite = func(ops.FileID) error { return ops.Errorf(ops.ErrBusy, 0, "loop0") }
		w.lib = ops.NewLibrary(o)
		w.line(1)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrBusy)
		w.open("1.vhdx", ops.Read)
	})
	t.Run("another program reads", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		f := w.lockOutside("/vms/1.vhdx", false)
		r := w.open("1.vhdx", ops.Read)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrBusy)
		_, err = r.ReadAt(make([]byte, 1), 0)
		require.NoError(t, err, "the reader goes on")
		require.NoError(t, f.Close())
		w.open("1.vhdx", ops.Write)
	})
	t.Run("another program writes", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		f := w.lockOutside("/vms/1.vhdx", true)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Read)
		require.ErrorIs(t, err, ops.ErrBusy)
		require.NoError(t, f.Close())
		w.open("1.vhdx", ops.Read)
	})
	t.Run("another program is kept out", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		h := w.open("1.vhdx", ops.Write)
		f, err := w.dirs["/vms"].Open("1.vhdx", ops.Read)
		require.NoError(t, err)
		require.ErrorIs(t, f.Lock(false), ops.ErrBusy)
		require.NoError(t, h.Close())
		require.NoError(t, f.Lock(true))
		require.NoError(t, f.Close())
	})
}

func (w *world) lockOutside(path string, write bool) ops.File {
	w.Helper()
	f, err := w.host.Dir("/").Open(path[1:], ops.Write)
	require.NoError(w, err)
	require.NoError(w, f.Lock(write))
	return f
}

func TestSets(t *testing.T) { synctest.Test(t, testSets) }

func testSets(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", parent)
	leaf := recorded("p.vhdx")
	w.image("/vms/Leaf.avhdx", leaf)
	w.put("/vms/s.vhds", []byte("set:leaf.avhdx"))
	found, err := w.lib.Inspect(w.lib.Top("s.vhds"))
	require.NoError(t, err)
	require.NoError(t, found.Err)
	require.Equal(t, "/vms/Leaf.avhdx", found.Leaf.Path())
	require.Equal(t, "00000064-0000-4000-8000-000000000000", found.Info.LinkID.String())
	require.EqualValues(t, 4096, found.Size)
	chain, err := w.lib.ChainOf(w.lib.Top("s.vhds"))
	require.NoError(t, err)
	require.Len(t, chain, 2)
	require.Equal(t, "/vms/p.vhdx", chain[1].Ref.Path())

	_, err = w.lib.Open(w.lib.Top("Leaf.avhdx"), ops.Write)
	require.ErrorIs(t, err, ops.ErrReadOnly)
	require.ErrorContains(t, err, "belongs to the set /vms/s.vhds")
	own := w.open("Leaf.avhdx", ops.Read)
	_, err = w.lib.Open(w.lib.Top("s.vhds"), ops.Write)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.NoError(t, own.Close())
	set := w.open("s.vhds", ops.Write)
	_, err = set.WriteAt([]byte("x"), 5)
	require.NoError(t, err)
	_, err = w.lib.Open(w.lib.Top("Leaf.avhdx"), ops.Read)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.NoError(t, set.Close())
	b, err := w.read("Leaf.avhdx")
	require.NoError(t, err)
	require.Equal(t, byte('x'), b[5])
}

func TestSetsThatLead(t *testing.T) {
	for _, tt := range []struct {
		leaf string
		err  error
		text string
	}{
		{"s.vhds", ops.ErrCorrupt, "a set where a disk is needed"},
		{"gone.avhdx", ops.ErrParentMissing, `active disk "gone.avhdx" of set /vms/s.vhds`},
		{`..\other\a.vhdx`, ops.ErrCorrupt, "is not a name in its own folder"},
		{"/other/a.vhdx", ops.ErrCorrupt, "is not a name in its own folder"},
		{"a.vhd", ops.ErrCorrupt, "is a fakev"},
		{"link.vhdx", ops.ErrParentMissing, "passes a symbolic link"},
	} {
		t.Run(tt.leaf, func(t *testing.T) {
			w := newWorld(t)
			w.image("/other/a.vhdx", parent)
			w.image("/vms/a.vhd", fakeImage{Magic: "fakev", ID: guid(1)})
			w.image("/vms/b.vhdx", parent)
			w.host.Symlink("b.vhdx", "/vms/link.vhdx")
			w.put("/vms/s.vhds", []byte("set:"+tt.leaf))
			found, err := w.lib.Inspect(w.lib.Top("s.vhds"))
			require.NoError(t, err)
			require.ErrorIs(t, found.Err, tt.err)
			require.ErrorContains(t, found.Err, tt.text)
			_, err = w.lib.Open(w.lib.Top("s.vhds"), ops.Read)
			require.ErrorIs(t, err, tt.err)
		})
	}
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

// F25, H03, H43: what happens to a file while it is open.
func TestChangedUnderneath(t *testing.T) {
	rewrite := func(w *world, path string) {
		f, err := w.host.Dir("/").Open(path[1:], ops.Write)
		require.NoError(w, err)
		_, err = f.WriteAt([]byte{99}, fakeData+8+512)
		require.NoError(w, err)
		require.NoError(w, f.Close())
	}
	t.Run("written by another program", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		h := w.open("1.vhdx", ops.Read)
		rewrite(w, "/vms/1.vhdx")
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Read)
		require.ErrorIs(t, err, ops.ErrChanged)
		require.NoError(t, h.Close())
		b, err := w.read("1.vhdx")
		require.NoError(t, err)
		require.Equal(t, byte(99), b[512])
	})
	t.Run("replaced by another file", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		h := w.open("1.vhdx", ops.Read)
		require.NoError(t, w.dirs["/vms"].Remove("1.vhdx"))
		w.image("/vms/1.vhdx", fakeImage{ID: guid(5), blocks: map[int64]byte{1: 55}})
		b, err := w.read("1.vhdx")
		require.NoError(t, err)
		require.Equal(t, byte(55), b[512])
		_, err = h.ReadAt(b[:1], 512)
		require.NoError(t, err)
		require.Equal(t, byte(1), b[0], "the handle stays on what it opened")
	})
	t.Run("renamed", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		h := w.open("1.vhdx", ops.Write)
		require.NoError(t, w.dirs["/vms"].Rename("1.vhdx", "new.vhdx"))
		_, err := h.WriteAt([]byte("x"), 0)
		require.NoError(t, err)
		b, err := w.read("new.vhdx")
		require.NoError(t, err)
		require.Equal(t, byte('x'), b[0])
	})
	t.Run("a parent written", func(t *testing.T) {
		w := newWorld(t)
		leaf := w.line(2)
		h := w.open(leaf, ops.Write)
		_, err := h.WriteAt([]byte("x"), 0)
		require.NoError(t, err)
		rewrite(w, "/vms/1.vhdx")
		_, err = w.lib.Open(w.lib.Top(leaf), ops.Read)
		require.ErrorIs(t, err, ops.ErrChanged)
		require.NoError(t, h.Flush(), "what was written stays")
		_, err = h.WriteAt([]byte("x"), 0)
		require.ErrorIs(t, err, ops.ErrChanged)
		require.NoError(t, h.Flush())
		_, err = h.ReadAt(make([]byte, 1), 0)
		require.NoError(t, err)
	})
	t.Run("a parent replaced", func(t *testing.T) {
		w := newWorld(t)
		leaf := w.line(2)
		h := w.open(leaf, ops.Read)
		require.NoError(t, w.dirs["/vms"].Remove("1.vhdx"))
		w.image("/vms/1.vhdx", fakeImage{ID: guid(1)})
		_, err := w.lib.Open(w.lib.Top(leaf), ops.Read)
		require.ErrorIs(t, err, ops.ErrChanged)
		require.NoError(t, h.Close())
		w.open(leaf, ops.Read)
	})
	t.Run("cut short", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		h := w.open("1.vhdx", ops.Read)
		f, err := w.dirs["/vms"].Open("1.vhdx", ops.Write)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(fakeData+10, "test"))
		require.NoError(t, f.Close())
		_, err = h.ReadAt(make([]byte, 512), 512)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
}

// A panic of a layer ends the use of that image, not of the others.
func TestPanicPoisons(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	var panics []string
	o.Panicked = func(where string, _ any, stack []byte) { panics = append(panics, where) }
	w.lib = ops.NewLibrary(o)
	w.image("/vms/bad.vhdx", fakeImage{Panics: true})
	w.line(1)
	bad, good := w.open("bad.vhdx", ops.Write), w.open("1.vhdx", ops.Write)
	_, err := bad.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, ops.ErrPoisoned)
	require.Equal(t, []string{"read /vms/bad.vhdx"}, panics)
	_, err = bad.WriteAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, ops.ErrPoisoned)
	_, err = good.WriteAt(make([]byte, 512), 0)
	require.NoError(t, err)
	require.Len(t, panics, 1)
	require.NoError(t, bad.Close())
	require.NoError(t, w.lib.Close())
	_, err = good.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, iofs.ErrClosed)
	_, err = w.lib.Open(w.lib.Top("1.vhdx"), ops.Read)
	require.ErrorIs(t, err, iofs.ErrClosed)
}

// Readers, writers of whole and part sectors, zeros, flushes and opens at once:
// each writer owns a range and reads back what it wrote.
func TestConcurrentUse(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Size: 64 << 10, blocks: map[int64]byte{1: 1, 5: 5}})
	c := recorded("p.vhdx")
	c.Size = 64 << 10
	w.image("/vms/c.avhdx", c)
	h := w.open("c.avhdx", ops.Write)
	w.host.SetFault(func(sim.Call) error {
		runtime.Gosched() // others come between a read and the write that follows
		return nil
	})
	var wg sync.WaitGroup
	const workers, each = 8, 700 // ranges that share sectors with their neighbours
	for i := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			model := make([]byte, each)
			off := int64(8192 + i*each)
			for step := range 150 {
				at, n := rng.IntN(each), 0
				n = rng.IntN(each-at) + 1
				p := bytes.Repeat([]byte{byte(step + 1)}, n)
				var err error
				switch step % 5 {
				case 0:
					err = h.Zero(off+int64(at), int64(n), true)
					clear(p)
				case 1:
					err = h.Flush()
					p = p[:0]
				case 2:
					var o *ops.Handle
					if o, err = w.lib.Open(w.lib.Top("c.avhdx"), ops.Access(rng.IntN(2))); err == nil {
						_, err = o.ReadAt(make([]byte, 4096), int64(rng.IntN(32<<10)))
						err = errors.Join(err, o.Close())
					}
					p = p[:0]
				default:
					_, err = h.WriteAt(p, off+int64(at))
				}
				copy(model[at:], p)
				got := make([]byte, each)
				_, rerr := h.ReadAt(got, off)
				if err := errors.Join(err, rerr); err != nil || !bytes.Equal(model, got) {
					t.Errorf("worker %d step %d: %v, equal %v", i, step, err, bytes.Equal(model, got))
					return
				}
			}
		}()
	}
	wg.Wait()
}

// A file that is being closed is waited for: its locks are in the way, and its
// last bytes are on their way.
func TestOpenWaitsForClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		h, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
		require.NoError(t, err)
		goOn := make(chan struct{})
		w.host.SetFault(func(c sim.Call) error {
			if c.Op == sim.OpClose {
				<-goOn
			}
			return nil
		})
		results := make(chan error, 2)
		go func() { results <- h.Close() }()
		synctest.Wait()
		go func() {
			b, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
			results <- err
			if err == nil {
				results <- b.Close()
			}
		}()
		synctest.Wait()
		require.Empty(t, results)
		close(goOn)
		for range 3 {
			require.NoError(t, <-results)
		}
	})
}

// Opens and closes of everything at once leave nothing open and nothing locked.
func TestOpenCloseStorm(t *testing.T) {
	w := newWorld(t)
	w.line(4)
	w.image("/vms/single.vhdx", fakeImage{ID: guid(50)})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for range 100 {
				name, a := strconv.Itoa(1+rng.IntN(4))+".vhdx", ops.Read
				if rng.IntN(3) == 0 {
					name, a = "single.vhdx", ops.Access(rng.IntN(2))
				}
				if name == "4.vhdx" {
					a = ops.Access(rng.IntN(2))
				}
				h, err := w.lib.Open(w.lib.Top(name), a)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				_, err = h.ReadAt(make([]byte, 4096), 0)
				if err = errors.Join(err, h.Close()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}()
	}
	wg.Wait()
	for _, name := range []string{"1.vhdx", "2.vhdx", "3.vhdx", "4.vhdx", "single.vhdx"} {
		f := w.lockOutside("/vms/"+name, true)
		require.NoError(t, f.Close())
	}
}
