package merge

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
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
		return 3_000
	}
	return 250
}

// fault fails the k-th call of a merge, and those after it where it stays.
type fault struct {
	err   syscall.Errno
	short bool
	stays bool
}

var faults = []fault{{syscall.EIO, false, false}, {syscall.ENOSPC, false, false}, {syscall.ENOSPC, true, false}, {syscall.EIO, false, true}, {syscall.ENOSPC, false, true}}

func (f fault) fits(c sim.Call) bool {
	switch c.Op {
	case sim.OpClose:
		return false // the kernel closes whatever it answers
	case sim.OpWrite:
		return true
	case sim.OpCreate, sim.OpMkdir, sim.OpRename, sim.OpTruncate, sim.OpAllocate, sim.OpPunch, sim.OpSync, sim.OpSyncDir:
		return !f.short
	}
	return f.err == syscall.EIO
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
				c, f := calls[rng.IntN(len(calls))], faults[rng.IntN(len(faults))]
				if !f.fits(c) {
					continue
				}
				at := fmt.Sprintf("call %d, %s %s %s: %v, short %t, stays %t", c.N, c.Op, c.Path, c.Label, f.err, f.short, f.stays)
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
func (s *scene) inject(h *sim.Host, k int, f fault) error {
	hit := false
	h.SetFault(func(c sim.Call) error {
		if c.N != k && !(f.stays && c.N > k) || !f.fits(c) {
			return nil
		}
		hit = true
		if f.short {
			return &sim.ShortWrite{Stored: int(c.Len / 2 / 512 * 512), Err: f.err}
		}
		return f.err
	})
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
