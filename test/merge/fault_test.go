package merge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// points is how many faults all scenes together see.
func points(t *testing.T) int {
	t.Helper()
	if n := os.Getenv("VHDFS_SOAK"); n != "" {
		points, err := strconv.Atoi(n)
		require.NoError(t, err, "VHDFS_SOAK is a number of points")
		return points
	}
	if os.Getenv("CI") != "" {
		return 1_500
	}
	return 250
}

// Whatever call fails, the disk reads as before, through the program that saw the
// failure too, and the same request succeeds when the host can do it again.
func TestEveryCallFails(t *testing.T) {
	const scenes = 6
	total := points(t)
	for seed := range uint64(scenes) {
		tt := random(rand.New(rand.NewPCG(seed, 3)))
		t.Run(tt.String(), func(t *testing.T) {
			t.Parallel()
			s := tt.scene(seed)
			base := s.lay()
			calls := s.calls(t, base.Clone())
			rng := rand.New(rand.NewPCG(seed, 4))
			for range total / scenes {
				c, f := calls[rng.IntN(len(calls))], sim.Failings[rng.IntN(len(sim.Failings))]
				if !f.Fits(c) {
					continue
				}
				at := fmt.Sprintf("call %d, %s %s %s: %v, short %t, stays %t", c.N, c.Op, c.Path, c.Label, f.Err, f.Short, f.Stays)
				require.NoError(t, s.inject(base.Clone(), c.N, f), at)
			}
		})
	}
}

// calls are those that a merge makes.
func (s *scene) calls(t *testing.T, h *sim.Host) []sim.Call {
	t.Helper()
	var calls []sim.Call
	h.SetFault(func(c sim.Call) error { calls = append(calls, c); return nil })
	require.NoError(t, s.resume(h))
	return calls
}

// inject merges with a fault, then without.
func (s *scene) inject(h *sim.Host, k int, f sim.Failing) error {
	hit := false
	f.From(h, k, func(sim.Call) { hit = true })
	lib := library(h)
	a := merge(lib, s.line[s.source].path, s.request())
	h.SetFault(nil)
	if a.Err != nil && !hit {
		return fmt.Errorf("failed without a fault: %w", a.Err)
	}
	if a.Err != nil {
		if err := s.judgeReads(lib, h); err != nil {
			return fmt.Errorf("after %q, the program that saw it: %w", a.Err, err)
		}
	}
	if err := lib.Close(); err != nil {
		return fmt.Errorf("after %q: close: %w", a.Err, err)
	}
	if err := s.judge(h); err != nil {
		return fmt.Errorf("after %q: %w", a.Err, err)
	}
	if err := s.ends(h); err != nil {
		return fmt.Errorf("after %q: %w", a.Err, err)
	}
	return nil
}

// The same while a guest has the leaf open and has written to it: he reads what he
// wrote, and what he can flush afterwards is there.
func TestEveryCallFailsInUse(t *testing.T) {
	const scenes = 6
	total := points(t)
	for seed := range uint64(scenes) {
		tt := terms{format: vhdx.Format, sector: 512, depth: 4, source: 3 - int(seed%2), dest: int(seed % 3 % 2), far: seed%3 == 0}
		if seed%4 > 1 {
			tt.format = vhd.Format
		}
		t.Run(fmt.Sprint(seed, " ", tt), func(t *testing.T) {
			t.Parallel()
			s := tt.scene(seed)
			base := s.lay()
			calls := len(s.calls(t, base.Clone()))
			rng := rand.New(rand.NewPCG(seed, 9))
			for n := range total / scenes {
				f := sim.Failings[rng.IntN(len(sim.Failings))]
				k := 1 + rng.IntN(calls)
				require.NoError(t, s.injectInUse(base.Clone(), k, f, uint64(n)), "call %d: %v, short %t, stays %t", k, f.Err, f.Short, f.Stays)
			}
		})
	}
}

func (s *scene) injectInUse(h *sim.Host, k int, f sim.Failing, seed uint64) error {
	leaf := s.line[3]
	lib := library(h)
	w, err := lib.Open(ref(lib, leaf.path), ops.Write)
	if err != nil {
		return err
	}
	var steps atomic.Int64
	g := newGuest(w, leaf.reads(), seed, &steps)
	for range 10 {
		if err := g.step(); err != nil {
			return err
		}
	}
	hit := false
	f.From(h, k, func(sim.Call) { hit = true })
	a := merge(lib, s.line[s.source].path, s.request())
	h.SetFault(nil)
	if a.Err != nil && !hit {
		return fmt.Errorf("failed without a fault: %w", a.Err)
	}
	if err := g.check(0, int64(len(g.model))); err != nil {
		return fmt.Errorf("after %v: %w", a.Err, err)
	}
	flushed := w.Flush()
	if flushed != nil && !errors.Is(flushed, ops.ErrPoisoned) {
		return fmt.Errorf("after %v: flush: %w", a.Err, flushed)
	}
	_, _ = w.Close(), lib.Close() // what could not end is seen when it is opened again
	before, err := s.readInUse(h, leaf)
	if err == nil && flushed == nil {
		err = same(before, g.model)
	}
	if err != nil {
		return fmt.Errorf("after %v, opened again: %w", a.Err, err)
	}
	if err := s.resume(h); err != nil {
		return fmt.Errorf("after %v: resume: %w", a.Err, err)
	}
	after, err := s.readInUse(h, leaf)
	if err == nil {
		err = same(after, before)
	}
	return err
}

// A host that is full is seen before anything changes; one that becomes full
// leaves a merge that goes on when there is room.
func TestFullHost(t *testing.T) {
	tt := terms{format: vhdx.Format, sector: 512, depth: 3, source: 2, dest: 0, fork: true}
	s := tt.scene(5)
	s.line[0].writes = nil // so that it needs blocks
	h := s.lay()
	before := h.Clone()
	h.SetCapacity(h.Used() + 4096)
	lib := library(h)
	a := merge(lib, s.line[s.source].path, s.request())
	require.ErrorIs(t, a.Err, syscall.ENOSPC)
	require.ErrorContains(t, a.Err, "/vms/1.vhdx needs")
	for _, im := range s.all() {
		want, _ := before.ReadFile(im.path)
		got, _ := h.ReadFile(im.path)
		require.Equal(t, want, got, im.path)
	}
	require.NoError(t, nothingLeft(h))
	require.NoError(t, lib.Close())
	for room := int64(1); ; room += 37 {
		h := before.Clone()
		lib := library(h)
		a := mergeCtx(t.Context(), lib, s.line[s.source].path, s.request(), func(done, all int64) {
			if done == 0 {
				h.SetCapacity(h.Used() + room*4096)
			}
		})
		require.NoError(t, lib.Close())
		if a.Err == nil {
			require.Greater(t, room, int64(37))
			break
		}
		require.ErrorIs(t, a.Err, syscall.ENOSPC, room)
		require.Equal(t, "ENOSPC", ops.Errno(a.Err))
		require.NoError(t, s.judge(h), room)
		h.SetCapacity(0)
		require.NoError(t, s.ends(h), room)
	}
}
