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
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

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

// Whatever call on the host fails, an open that failed holds nothing, and what
// was written before a flush that succeeded is there.
func TestEveryCallFails(t *testing.T) {
	for k := 1; ; k++ {
		w := newWorld(t)
		leaf := w.line(3)
		n := 0
		w.host.SetFault(func(c sim.Call) error {
			if c.Op == sim.OpClose {
				return nil // a file is closed whatever close answers
			}
			if n++; n == k {
				return syscall.EMFILE
			}
			return nil
		})
		flushed := false
		h, err := w.lib.Open(w.lib.Top(leaf), ops.Write)
		if err == nil {
			_, err = h.WriteAt([]byte("hello"), 100)
			if ferr := h.Flush(); err == nil && ferr == nil {
				flushed = true
			}
			err = errors.Join(err, h.Close())
		}
		w.host.SetFault(nil)
		for i := range 3 {
			require.NoError(t, w.lockOutside("/vms/"+strconv.Itoa(i+1)+".vhdx", true).Close(), "call %d", k)
		}
		b, rerr := w.read(leaf)
		require.NoError(t, rerr, "call %d", k)
		if flushed {
			require.Equal(t, "hello", string(b[100:105]), "call %d", k)
		}
		require.Equal(t, byte(2), b[2*512], "call %d", k)
		require.NotErrorIs(t, err, ops.ErrParentMissing, "call %d", k)
		if n < k {
			require.NoError(t, err)
			return
		}
	}
}
