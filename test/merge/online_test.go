package merge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// slow lets guests take steps between two calls that change a file of the host,
// unless they wait for somebody.
func slow(h *sim.Host, file string, steps *atomic.Int64) {
	h.SetFault(func(c sim.Call) error {
		if c.Path == file && (c.Op == sim.OpWrite || c.Op == sim.OpSync || c.Op == sim.OpPunch) {
			before := steps.Load()
			for n := 0; n < 2000 && steps.Load() < before+4; n++ {
				runtime.Gosched()
			}
		}
		return nil
	})
}

// guest writes and reads a disk of which it knows every byte.
type guest struct {
	disk  *ops.Handle
	model []byte
	rng   *rand.Rand
	own   int
	steps *atomic.Int64 // of all guests
}

func newGuest(h *ops.Handle, model []byte, seed uint64, steps *atomic.Int64) *guest {
	return &guest{disk: h, model: bytes.Clone(model), rng: rand.New(rand.NewPCG(seed, 7)), steps: steps}
}

// step is one random request.
func (g *guest) step() error {
	g.own++
	defer g.steps.Add(1)
	unit := int64(1) // any alignment
	if g.rng.IntN(3) > 0 {
		unit = 4096
	}
	size := int64(len(g.model))
	n := min((g.rng.Int64N(16)+1)*unit*(1+g.rng.Int64N(3)*16), size/unit*unit)
	off := g.rng.Int64N((size-n)/unit+1) * unit
	switch g.rng.IntN(8) {
	case 0, 1, 2:
		if !g.disk.Writable() {
			return g.check(off, n)
		}
		p := bytes.Repeat([]byte{byte(g.rng.IntN(255) + 1)}, int(n))
		_, err := g.disk.WriteAt(p, off)
		copy(g.model[off:], p)
		return err
	case 3:
		if !g.disk.Writable() {
			return nil
		}
		err := g.disk.Zero(off, n, g.rng.IntN(2) == 0)
		clear(g.model[off : off+n])
		return err
	case 4:
		return g.disk.Flush()
	}
	return g.check(off, n)
}

func (g *guest) check(off, n int64) error {
	b := make([]byte, n)
	if _, err := g.disk.ReadAt(b, off); err != nil && err != io.EOF {
		return err
	}
	if err := same(b, g.model[off:off+n]); err != nil {
		return fmt.Errorf("%d bytes at %d after %d steps: %w", n, off, g.own, err)
	}
	return nil
}

// work takes steps until it is told to stop.
func (g *guest) work(stop *atomic.Bool) error {
	for !stop.Load() {
		if err := g.step(); err != nil {
			return err
		}
	}
	return g.check(0, int64(len(g.model)))
}

// A leaf that is written all the time is merged away under its writer, who goes on
// with the destination by the same handle; readers beside it, too.
func TestLeafInUse(t *testing.T) {
	for seed := range uint64(12) {
		tt := terms{format: vhdx.Format, sector: 512, depth: 5, source: 4, dest: int(seed % 4), far: seed%3 == 0, keep: seed%5 == 0}
		if seed%4 == 3 {
			tt.format = vhd.Format
		}
		t.Run(tt.String(), func(t *testing.T) {
			s := tt.scene(seed)
			source, dest := s.line[4], s.line[tt.dest]
			h := s.lay()
			var steps atomic.Int64
			slow(h, s.line[tt.dest].path, &steps)
			lib := library(h)
			w, err := lib.Open(ref(lib, source.path), ops.Write)
			require.NoError(t, err)
			r, err := lib.Open(ref(lib, source.path), ops.Read)
			require.NoError(t, err)
			g := newGuest(w, source.reads(), seed, &steps)
			var stop atomic.Bool
			var work sync.WaitGroup
			var worked error
			work.Go(func() { worked = g.work(&stop) })
			a := merge(lib, source.path, s.request())
			more := newGuest(w, nil, seed, &steps)
			stop.Store(true)
			work.Wait()
			require.NoError(t, worked)
			require.NoError(t, a.Err)
			t.Logf("%d steps meanwhile", g.own)
			more.model = g.model
			for range 50 {
				require.NoError(t, more.step())
			}
			s.movedOn(t, lib, g.model, w, r)
			require.NoError(t, w.Flush())
			require.NoError(t, errors.Join(w.Close(), r.Close()))
			_, ok := lib.MergedInto(ref(lib, source.path))
			require.False(t, ok)
			got, err := read(lib, dest.path)
			require.NoError(t, err)
			require.NoError(t, same(got, g.model))
			require.NoError(t, sound(lib, dest.path))
			require.Equal(t, tt.keep, exists(h, source.path))
			require.NoError(t, lib.Close())
			require.NoError(t, nothingLeft(h))
		})
	}
}

// An image between that was read, and is closed again, is in nobody's way.
func TestLeafInUseAfterAReader(t *testing.T) {
	s := terms{format: vhdx.Format, sector: 512, depth: 4, source: 3, dest: 1}.scene(1)
	lib := library(s.lay())
	w, err := lib.Open(ref(lib, s.line[3].path), ops.Write)
	require.NoError(t, err)
	_, err = read(lib, s.line[2].path)
	require.NoError(t, err)
	require.NoError(t, merge(lib, s.line[3].path, s.request()).Err)
	require.NoError(t, errors.Join(w.Close(), lib.Close()))
}

// movedOn asks what holds while handles of a merged leaf are open.
func (s *scene) movedOn(t *testing.T, lib *ops.Library, model []byte, w, r *ops.Handle) {
	t.Helper()
	source, dest := s.line[s.source], s.line[s.dest]
	require.Equal(t, dest.path, w.Layers()[0].Path())
	got := make([]byte, len(model))
	_, err := r.ReadAt(got, 0)
	require.True(t, err == nil || err == io.EOF, "%v", err)
	require.NoError(t, same(got, model), "through another handle")
	into, ok := lib.MergedInto(ref(lib, source.path))
	require.True(t, ok)
	require.Equal(t, dest.path, into.Path())
	again, err := lib.Open(ref(lib, source.path), ops.Write)
	require.NoError(t, err, "the name is still that of the disk")
	_, err = again.ReadAt(got, 0)
	require.True(t, err == nil || err == io.EOF, "%v", err)
	require.NoError(t, same(got, model))
	require.NoError(t, again.Close())
	found, err := lib.Inspect(ref(lib, source.path))
	require.NoError(t, err)
	require.NoError(t, found.Err)
	require.EqualValues(t, len(model), found.Size)
	links, err := lib.ChainOf(ref(lib, source.path))
	require.NoError(t, err)
	require.Equal(t, dest.path, links[0].Ref.Path())
	_, err = lib.Operate(ref(lib, source.path), ops.Terms{Name: "work", Quiet: true})
	require.ErrorIs(t, err, ops.ErrBusy)
	_, err = lib.Open(ref(lib, dest.path), ops.Read)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.ErrorContains(t, err, "is open by the name of an image that was merged into it")
	_, err = lib.Operate(ref(lib, dest.path), ops.Terms{Name: "work", Quiet: true})
	require.ErrorIs(t, err, ops.ErrBusy)
}

// A disk in the middle is merged away under a leaf that is written, and under
// another one that is read.
func TestMiddleInUse(t *testing.T) {
	for seed := range uint64(12) {
		tt := terms{format: vhdx.Format, sector: 512, depth: 5, source: 2 + int(seed%2), fork: true, far: seed%3 == 0, keep: seed%5 == 0}
		tt.dest = int(seed) % tt.source
		if seed%4 == 3 {
			tt.format = vhd.Format
		}
		t.Run(tt.String(), func(t *testing.T) {
			s := tt.scene(seed)
			h := s.lay()
			var steps atomic.Int64
			slow(h, s.line[tt.dest].path, &steps)
			lib := library(h)
			leaf, other := s.line[4], s.others[0]
			w, err := lib.Open(ref(lib, leaf.path), ops.Write)
			require.NoError(t, err)
			r, err := lib.Open(ref(lib, other.path), ops.Read)
			require.NoError(t, err)
			guests := []*guest{newGuest(w, leaf.reads(), seed, &steps), newGuest(r, other.reads(), seed, &steps)}
			var stop atomic.Bool
			var work sync.WaitGroup
			worked := make([]error, len(guests))
			for i, g := range guests {
				work.Go(func() { worked[i] = g.work(&stop) })
			}
			a := merge(lib, s.line[tt.source].path, s.request())
			stop.Store(true)
			work.Wait()
			require.NoError(t, errors.Join(worked...))
			require.NoError(t, a.Err)
			t.Logf("%d and %d steps meanwhile", guests[0].own, guests[1].own)
			for range 50 {
				require.NoError(t, guests[0].step())
				require.NoError(t, guests[1].step())
			}
			require.Len(t, w.Layers(), 5-(tt.source-tt.dest))
			require.Len(t, r.Layers(), tt.dest+2)
			require.NoError(t, errors.Join(w.Close(), r.Close()))
			leaf.disk = guests[0].model
			require.NoError(t, lib.Close())
			require.NoError(t, s.over(h))
		})
	}
}
