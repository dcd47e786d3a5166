package merge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// throughChain is a handle as the guests of package crash know disks.
type throughChain struct{ *ops.Handle }

func (throughChain) ReadRun([]byte, int64) (int, ops.Kind, error) {
	return 0, 0, errors.ErrUnsupported
}
func (throughChain) Extent(int64, int64) (ops.Extent, error) {
	return ops.Extent{}, errors.ErrUnsupported
}

// mostSteps bounds what a guest does while a merge is recorded: states take time
// with the square of what is written between two syncs.
const mostSteps = 250

// recordInUse merges a leaf, or a disk below it, while the leaf is written, and
// records that.
func (s *scene) recordInUse(h *sim.Host, leaf *image, seed uint64) (*crash.Recording, error) {
	base := h.Clone()
	var steps atomic.Int64
	slow(h, s.line[s.dest].path, &steps)
	h.Record()
	lib := library(h)
	w, err := lib.Open(ref(lib, leaf.path), ops.Write)
	if err != nil {
		return nil, err
	}
	g := &crash.Guest{Host: h, Writer: throughChain{w}, Block: leaf.block, Unit: int64(s.sector)}
	var stop atomic.Bool
	var work sync.WaitGroup
	var worked error
	work.Go(func() {
		more := 0
		for n := uint64(0); more < 6 && worked == nil; n++ {
			for _, step := range crash.Random(seed<<20+n, 1) {
				if step.Name == "reopen" || step.Name == "kill" {
					step.Do = (*crash.Guest).Flush
				}
				worked = step.Do(g)
			}
			steps.Add(1)
			if stop.Load() || n > mostSteps {
				more++
			}
		}
	})
	a := merge(lib, s.line[s.source].path, s.request())
	stop.Store(true)
	work.Wait()
	err = errors.Join(worked, a.Err, g.Close(), lib.Close())
	return &crash.Recording{Base: base, Events: h.Events()}, err
}

// Wherever the power goes while a leaf, or a disk below it, is merged under a guest
// who writes, what he flushed is there, and the merge goes on.
func TestEveryStateInUse(t *testing.T) {
	const scenes = 8
	total := budget(t)
	var states atomic.Int64
	t.Cleanup(func() { t.Logf("%d states", states.Load()) })
	for seed := range uint64(scenes) {
		tt := terms{format: vhdx.Format, sector: 512, depth: 4, source: 3 - int(seed%2), dest: int(seed % 3 % 2), far: seed%3 == 0, keep: seed%5 == 4}
		if seed%4 > 1 {
			tt.format = vhd.Format
		}
		t.Run(fmt.Sprint(seed, " ", tt), func(t *testing.T) {
			t.Parallel()
			s := tt.scene(seed)
			leaf := s.line[3]
			r, err := s.recordInUse(s.lay(), leaf, seed)
			require.NoError(t, err)
			n, err := s.cutInUse(r, leaf, seed, total/scenes)
			states.Add(int64(n))
			require.NoError(t, err)
		})
	}
}

// cutInUse judges limit states of a recording in which the leaf is written.
func (s *scene) cutInUse(r *crash.Recording, leaf *image, seed uint64, limit int) (int, error) {
	all := 0
	if err := r.Each(seed, func(*crash.State) error { all++; return nil }); err != nil {
		return 0, err
	}
	history, seen, met, done := crash.NewHistory(false), 0, 0, 0
	hold(history, leaf.reads())
	every := max(1, all/limit)
	rng := rand.New(rand.NewPCG(seed, 8))
	next := rng.IntN(every)
	err := r.Each(seed, func(state *crash.State) error {
		if met++; met <= next {
			return nil
		}
		next += 1 + rng.IntN(2*every)
		for ; seen < state.At; seen++ {
			history.Note(r.Events[seen])
		}
		done++
		h, err := state.Host()
		if err == nil {
			err = s.judgeInUse(h, leaf, history)
		}
		if err != nil {
			return fmt.Errorf("%w\n  %s", err, state)
		}
		return nil
	})
	return done, err
}

// hold tells a history what a disk holds.
func hold(history *crash.History, disk []byte) {
	for off := 0; off < len(disk); off += 512 {
		if b := disk[off : off+512]; !isZero(b) {
			history.Hold(int64(off), b)
		}
	}
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// judgeInUse reads the leaf, or what it became, goes on with the merge, and reads
// that again.
func (s *scene) judgeInUse(h *sim.Host, leaf *image, history *crash.History) error {
	got, err := s.readInUse(h, leaf)
	defer free(got)
	if err == nil {
		err = history.AllowsDisk(got)
	}
	if err != nil {
		return err
	}
	bare := h.Clone()
	if err := forgetJournal(bare); err != nil {
		return err
	}
	if again, err := s.readInUse(bare, leaf); err != nil {
		return fmt.Errorf("to another program: %w", err)
	} else if err := same(again, got); err != nil {
		return fmt.Errorf("to another program: %w", err)
	} else {
		free(again)
	}
	if err := s.resume(h); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	after, err := s.readInUse(h, leaf)
	defer free(after)
	if err == nil {
		err = same(after, got)
	}
	if err != nil {
		return fmt.Errorf("after the merge: %w", err)
	}
	return nil
}

// readInUse reads the leaf, or the destination where the leaf is no more.
func (s *scene) readInUse(h *sim.Host, leaf *image) ([]byte, error) {
	lib := library(h)
	got, err := read(lib, leaf.path)
	if err != nil && leaf == s.line[s.source] {
		var destErr error
		if got, destErr = read(lib, s.line[s.dest].path); destErr != nil {
			return nil, errors.Join(err, destErr)
		}
		err = nil
	}
	return got, errors.Join(err, lib.Close())
}
