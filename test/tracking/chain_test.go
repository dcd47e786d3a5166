package tracking_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/budget"
	"vhdfs/test/sim"
)

// snapshot takes a snapshot of a set, and says what its id stands for.
func (w *workload) snapshot(label string) error {
	if _, err := w.do("snapshot", w.name, label); err != nil {
		return err
	}
	id, err := w.snapshotID(label)
	if err != nil {
		return err
	}
	is, err := w.content(w.name)
	if err == nil {
		w.was[id], w.snaps = is, append(w.snaps, label)
		w.host.Ack("id", id)
	}
	return err
}

// snapshotID is the tracking id of a snapshot.
func (w *world) snapshotID(label string) (string, error) {
	found, err := w.lib.Inspect(w.lib.Top(w.name))
	if err != nil {
		return "", err
	}
	n := found.Set.Snapshot(label)
	if n == nil || n.TrackingID == "" {
		return "", fmt.Errorf("snapshot %q has no tracking id", label)
	}
	return n.TrackingID, nil
}

// setStep is what a user of a set does.
func setStep(w *workload) error {
	switch n := w.rng.IntN(16); {
	case n < 7:
		return w.step()
	case n < 10:
		return w.snapshot(fmt.Sprintf("s%d-%d", w.value, len(w.was)))
	case n < 12 && len(w.snaps) > 0:
		request := w.snaps[w.rng.IntN(len(w.snaps))]
		if n == 10 {
			keep := fmt.Sprintf("k%d", w.value)
			w.value++
			request += " keep=" + keep
		}
		err := w.close()
		if err == nil {
			_, err = w.do("apply", w.name, request)
		}
		return err
	case n < 14 && len(w.snaps) > 0:
		i := w.rng.IntN(len(w.snaps))
		_, err := w.do("delete", w.name, w.snaps[i])
		w.snaps = slices.Delete(w.snaps, i, i+1)
		return err
	case n < 15:
		_, err := w.do("optimize", w.name, "")
		return err
	}
	w.value++
	return w.write(w.rng.Int64N(300), w.value)
}

func optimize(v *world) error {
	_, err := v.do("optimize", v.name, "")
	return err
}

func newSet() (*sim.Host, error) {
	h := sim.New()
	w := newWorld(h, "d.vhds")
	err := w.plant("size=24M type=dynamic block=1M")
	if err == nil {
		_, err = w.do("tracking", w.name, "on")
	}
	return h, errors.Join(err, w.stop())
}

// holding asks all ids that hold.
func (w *workload) holding() (int, error) {
	ids, err := w.ids(w.name)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, id := range ids {
		if was, ok := w.was[id]; ok {
			n++
			if err := w.covers(w.name, id, was); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// Snapshots of a set are taken, applied, deleted and folded while a guest writes: ids
// of the timeline that goes on hold, and tell everything.
func TestIdsOfASet(t *testing.T) {
	asked := 0
	for seed := uint64(1); seed <= 10; seed++ {
		h, err := newSet()
		require.NoError(t, err)
		w := &workload{world: newWorld(h, "d.vhds"), rng: rand.New(rand.NewPCG(seed, 9)), was: map[string][]uint64{}}
		for range 40 {
			require.NoError(t, setStep(w), "seed %d", seed)
			n, err := w.holding()
			require.NoError(t, err, "seed %d", seed)
			asked += n
		}
		require.NoError(t, w.stop())
	}
	require.Greater(t, asked, 400)
}

// Wherever the power goes in any of that.
func TestSetsAfterAPowerCut(t *testing.T) {
	base, err := newSet()
	require.NoError(t, err)
	cutSeeds(t, "tracking, sets", budget.Of(t, 800, 4_000), func(seed uint64) (int, error) {
		w := &workload{world: &world{spy: &spy{}, name: "d.vhds"}, steps: 25, next: setStep, mend: optimize, loses: true}
		return w.cut(base, seed, 0.03)
	})
}

// The ids of a snapshot and its changes, as a backup of a set asks for them.
func TestChangesOfASnapshot(t *testing.T) {
	h, err := newSet()
	require.NoError(t, err)
	w := &workload{world: newWorld(h, "d.vhds"), was: map[string][]uint64{}}
	require.NoError(t, w.write(1, 1))
	require.NoError(t, w.snapshot("a"))
	require.NoError(t, w.write(2, 2))
	require.NoError(t, w.snapshot("b"))
	require.NoError(t, w.write(3, 3))
	for request, want := range map[string][]int64{
		"since=a":          {2, 3},
		"since=a target=b": {2},
		"since=b":          {3},
		"since=b target=b": nil,
	} {
		told, err := w.changes(w.name, request)
		require.NoError(t, err, request)
		require.Equal(t, want, slices.Sorted(maps.Keys(told)), request)
	}
	for request, want := range map[string]ops.StatusCode{
		"since=b target=a": ops.StatusTrackingID,
		"since=x":          ops.StatusTrackingID,
		"since=a target=x": ops.StatusTrackingID,
	} {
		_, err := w.do("changes", w.name, request)
		require.ErrorIs(t, err, ops.ErrNoTracking, request)
		require.Equal(t, want, ops.StatusOf(err), request)
	}
	late, _, err := w.world.seal()
	require.NoError(t, err)
	require.NoError(t, w.close())
	_, err = w.do("apply", w.name, "a")
	require.NoError(t, err)
	_, err = w.do("changes", w.name, "since="+late)
	require.Equal(t, ops.StatusTrackingID, ops.StatusOf(err), "it was thrown away")
	require.NoError(t, w.write(9, 9))
	told, err := w.changes(w.name, "since=a")
	require.NoError(t, err)
	require.Equal(t, []int64{9}, slices.Sorted(maps.Keys(told)))
	require.NoError(t, w.stop())
}

// children makes a child, goes on there, and may fold it back.
func chainStep(w *workload) error {
	switch n := w.rng.IntN(10); {
	case n < 7:
		return w.step()
	case n < 8 && len(w.snaps) < 4:
		child := fmt.Sprintf("c%d.avhdx", w.value)
		err := w.close()
		if err == nil {
			_, err = w.do("create", ".", "path="+child+" parent="+w.name)
		}
		if err == nil {
			w.snaps, w.name = append(w.snaps, w.name), child
			w.value++
		}
		return err
	case n < 9 && len(w.snaps) > 0:
		k := w.rng.IntN(len(w.snaps))
		if _, err := w.do("merge", w.name, "into="+w.snaps[k]); err != nil {
			return err
		}
		if w.disk != nil { // the guest goes on, and by the old name
			w.value++
			if err := errors.Join(w.write(w.rng.Int64N(300), w.value), w.close()); err != nil {
				return err
			}
		}
		w.name = w.snaps[k]
		w.snaps = w.snaps[:k]
		return nil
	}
	w.value++
	return w.write(w.rng.Int64N(300), w.value)
}

// A disk goes on in a child, and is folded back under the hands of a guest: ids hold
// on both ways.
func TestIdsOfAChain(t *testing.T) {
	asked := 0
	for seed := uint64(1); seed <= 10; seed++ {
		h, err := prepare(shapes[seed%2*2])
		require.NoError(t, err)
		w := &workload{world: newWorld(h, "d.vhdx"), rng: rand.New(rand.NewPCG(seed, 9)), was: map[string][]uint64{}}
		for k := range 40 {
			require.NoError(t, chainStep(w), "seed %d", seed)
			n, err := w.holding()
			require.NoError(t, err, "seed %d step %d", seed, k)
			require.Equal(t, len(w.was), n, "seed %d: ids that were given hold", seed)
			asked += n
		}
		require.NoError(t, w.stop())
	}
	require.Greater(t, asked, 400)
}

// A guest writes a child, which is folded into its parent, and goes on there. Wherever
// the power goes: when that is over, the ids from before tell everything.
func TestMergesAfterAPowerCut(t *testing.T) {
	cutSeeds(t, "tracking, merges", budget.Of(t, 800, 4_000), func(seed uint64) (int, error) {
		base, was, refs, err := tracedChain(seed)
		if err != nil {
			return 0, err
		}
		w := &workload{world: &world{spy: &spy{}, name: "c.avhdx", refs: refs}, was: was, steps: 1, loses: true}
		w.next = func(w *workload) error {
			for range 6 {
				w.value++
				if err := w.write(w.rng.Int64N(300), w.value); err != nil {
					return err
				}
			}
			if err := errors.Join(w.give(), w.write(50, 50), w.spy.settle(true), w.write(51, 51)); err != nil {
				return err
			}
			if seed%2 == 0 {
				if err := w.close(); err != nil {
					return err
				}
			}
			if _, err := w.do("merge", w.name, "1"); err != nil {
				return err
			}
			if seed%2 == 0 {
				return nil
			}
			return errors.Join(w.write(52, 52), w.disk.Flush(), w.write(1, 53))
		}
		w.mend = func(v *world) error {
			v.name = "d.vhdx"
			if _, err := v.lib.Stat(v.lib.Top("c.avhdx")); err != nil {
				return nil
			}
			_, err := v.do("merge", "c.avhdx", "1")
			return err
		}
		return w.cut(base, seed, 0.3)
	})
}

// tracedChain is a tracked disk with a child, and what ids of both stand for.
func tracedChain(seed uint64) (*sim.Host, map[string][]uint64, map[int64]bool, error) {
	h, err := prepare(small)
	if err != nil {
		return nil, nil, nil, err
	}
	w := newWorld(h, "d.vhdx")
	rng, was := rand.New(rand.NewPCG(seed, 4)), map[string][]uint64{}
	give := func() error {
		for range 4 {
			if err := w.write(rng.Int64N(300), rng.Uint64()); err != nil {
				return err
			}
		}
		id, is, err := w.seal()
		was[id] = is
		return errors.Join(err, w.close())
	}
	err = give()
	if err == nil {
		_, err = w.do("create", ".", "path=c.avhdx parent=d.vhdx")
	}
	w.name = "c.avhdx"
	if err == nil {
		err = give()
	}
	return h, was, w.refs, errors.Join(err, w.stop())
}
