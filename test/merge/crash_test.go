package merge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
	"vhdfs/vhdx"
)

// budget is how many states all scenes together have.
func budget(t *testing.T) int {
	t.Helper()
	if n := os.Getenv("VHDFS_SOAK"); n != "" {
		states, err := strconv.Atoi(n)
		require.NoError(t, err, "VHDFS_SOAK is a number of states")
		return states
	}
	if os.Getenv("CI") != "" {
		return 5_000
	}
	return 600
}

// record carries the merge out on a recording host, with some syncs dropped.
func (s *scene) record(h *sim.Host, dropped ...string) (*crash.Recording, *sim.Host, error) {
	base := h.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	h.Record()
	err := s.resume(h)
	return &crash.Recording{Base: base, Events: h.Events()}, h, err
}

// resume asks for the merge, from whichever of its files is left.
func (s *scene) resume(h *sim.Host) error {
	lib := library(h)
	at, request := s.line[s.source].path, s.request()
	for i := s.source; !exists(h, at); i-- {
		at, request = s.line[i].path, "1"
	}
	readErr := opens(lib, at)
	if at == s.line[s.dest].path || s.keep && errors.Is(readErr, ops.ErrParentMismatch) {
		// Without a source, or with one that is cut off, there may be nothing to do.
		p, err := lib.MergePending(ref(lib, at))
		if p == nil || err != nil {
			return errors.Join(err, lib.Close())
		}
	}
	return errors.Join(merge(lib, at, request).Err, lib.Close())
}

// judge looks at a host as a crash may have left it.
func (s *scene) judge(h *sim.Host) error {
	lib := library(h)
	if err := s.judgeReads(lib, h); err != nil {
		return err
	}
	if err := lib.Close(); err != nil {
		return err
	}
	if err := s.judgeOthers(h.Clone()); err != nil {
		return fmt.Errorf("to another program: %w", err)
	}
	return nil
}

// judgeReads asks for right bytes in everything that can be opened, and that the
// disk can be read by somebody.
func (s *scene) judgeReads(lib *ops.Library, h *sim.Host) error {
	source := s.line[s.source]
	for i, im := range s.all() {
		if i >= s.dest && i <= s.source {
			continue
		}
		if err := shows(lib, im.path, im.reads()); err != nil {
			return err
		}
	}
	var sourceErr, destErr error
	for i := s.source; i >= s.dest; i-- {
		im := s.line[i]
		allowed := [][]byte{im.reads()}
		if i == s.dest {
			if allowed = append(allowed, source.reads()); sourceErr != nil {
				allowed = allowed[1:]
			}
		}
		unread, wrong := look(lib, im.path, allowed...)
		if wrong != nil {
			return wrong
		}
		if i == s.source {
			sourceErr = unread
		}
		destErr = unread
	}
	if sourceErr != nil && destErr != nil {
		return fmt.Errorf("neither source nor destination opens: %w", errors.Join(sourceErr, destErr))
	}
	if len(s.kids()) > 0 {
		if w, err := lib.Open(ref(lib, source.path), ops.Write); err == nil {
			return errors.Join(fmt.Errorf("%s can be written, and others were made from it", source.path), w.Close())
		}
	}
	return nil
}

// kids are the images that were made from the source.
func (s *scene) kids() []*image {
	var list []*image
	for _, im := range s.all() {
		if im.parent == s.line[s.source] {
			list = append(list, im)
		}
	}
	return list
}

// judgeOthers reads as a program that knows nothing of the journal.
func (s *scene) judgeOthers(h *sim.Host) error {
	if err := forgetJournal(h); err != nil {
		return err
	}
	lib := library(h)
	source := s.line[s.source]
	if _, wrong := look(lib, source.path, source.reads()); wrong != nil {
		return wrong
	}
	for _, k := range s.kids() {
		if err := shows(lib, k.path, k.reads()); err != nil {
			return err
		}
	}
	return lib.Close()
}

// forgetJournal removes what is in the folders of vhdfs's own.
func forgetJournal(h *sim.Host) error {
	for _, dir := range []string{"/vms", "/vms/sub"} {
		d := h.Dir(dir)
		list, err := d.List(ops.StateDir)
		if err != nil {
			continue
		}
		for _, e := range list {
			if err := d.Remove(path.Join(ops.StateDir, e.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ends resumes the merge and asks that it is over then.
func (s *scene) ends(h *sim.Host) error {
	if err := s.resume(h); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	err := s.over(h)
	if errors.Is(err, errLeft) {
		return nil // names that the crash brought back; the next merge sweeps them
	}
	return err
}

// cut judges limit states of a recording, spread evenly, and those of some
// resumes in turn.
func (s *scene) cut(r *crash.Recording, seed uint64, limit, depth int) (int, error) {
	all := 0
	if err := r.Each(seed, func(*crash.State) error { all++; return nil }); err != nil {
		return 0, err
	}
	every, met, done := max(1, all/limit), 0, 0
	rng := rand.New(rand.NewPCG(seed, 0xDEE9))
	err := r.Each(seed, func(state *crash.State) error {
		if met++; met%every != int(seed)%every {
			return nil
		}
		done++
		h, err := state.Host()
		if err != nil {
			return err
		}
		if err := s.judge(h); err != nil {
			return fmt.Errorf("%w\n  depth %d: %s", err, depth, state)
		}
		if depth < 3 && rng.IntN(40) == 0 {
			again, after, err := s.record(h.Clone())
			if err != nil {
				return fmt.Errorf("resume: %w\n  depth %d: %s", err, depth, state)
			}
			n, err := s.cut(again, seed+1, 15, depth+1)
			done += n
			if err != nil {
				return fmt.Errorf("%w\n  of a resume after depth %d: %s", err, depth, state)
			}
			h = after
		}
		if err := s.ends(h); err != nil {
			return fmt.Errorf("%w\n  depth %d: %s", err, depth, state)
		}
		return nil
	})
	return done, err
}

// Wherever the power goes, each disk reads as before, and the merge goes on.
func TestEveryStateReadsRight(t *testing.T) {
	const scenes = 12
	var states atomic.Int64
	t.Cleanup(func() { t.Logf("%d states", states.Load()) })
	total := budget(t)
	for seed := range uint64(scenes) {
		tt := random(rand.New(rand.NewPCG(seed, 2)))
		t.Run(tt.String(), func(t *testing.T) {
			t.Parallel()
			s := tt.scene(seed)
			r, h, err := s.record(s.lay())
			require.NoError(t, err)
			require.NoError(t, s.over(h))
			n, err := s.cut(r, seed, total/scenes, 1)
			states.Add(int64(n))
			require.NoError(t, err)
		})
	}
}

// Each sync of a merge is needed: with it dropped some state breaks a promise.
func TestEveryDroppedSyncIsSeen(t *testing.T) {
	near := terms{format: vhdx.Format, sector: 512, depth: 4, source: 2, dest: 0}
	far := near
	far.far = true
	for label, tt := range map[string]terms{
		"merge.record.folder": near, "merge.record": near, "merge.record.name": near,
		"merge.record.beside.folder": far, "merge.record.beside": far, "merge.record.beside.name": far,
		"merge.moved": near, "merge.ending": near, "merge.remove": near, "merge.forget": near,
	} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			states := 0
			for seed := range uint64(8) {
				s := tt.scene(seed)
				r, h, err := s.record(s.lay(), label)
				require.NoError(t, err)
				if h.SyncLabels()[label] == 0 {
					continue
				}
				n, err := s.cut(r, seed, 400, 3)
				if states += n; err != nil {
					t.Logf("seen after %d states: %v", states, err)
					return
				}
			}
			t.Fatalf("dropped, and none of %d states shows it", states)
		})
	}
}
