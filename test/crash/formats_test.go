package crash_test

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/crash"
	"vhdfs/test/kinds"
	"vhdfs/test/sim"
)

// budget is how many states all kinds together have: few at a desk and under the
// race detector, many in CI, and what VHDFS_SOAK says before a release.
func budget(t *testing.T) int {
	t.Helper()
	if n := os.Getenv("VHDFS_SOAK"); n != "" {
		states, err := strconv.Atoi(n)
		require.NoError(t, err, "VHDFS_SOAK is a number of states")
		return states
	}
	switch {
	case raceEnabled:
		return 5_000
	case os.Getenv("CI") != "":
		return 250_000
	}
	return 20_000
}

// Whenever the power goes, an image opens, holds what was flushed, holds nothing
// foreign, and is sound; and so when it goes again during the repair.
func TestEveryStateKeepsThePromises(t *testing.T) {
	list := kinds.All()
	total := budget(t)
	var states, deep atomic.Int64
	t.Cleanup(func() { t.Logf("%d states, %d of recoveries", states.Load(), deep.Load()) })
	for _, s := range list {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			sub, p := s.Prepare(t)
			done, err := runKind(s, sub, p, total/len(list))
			states.Add(int64(done.States))
			deep.Add(int64(done.Deep))
			require.NoError(t, err)
			t.Logf("%d states, %d of recoveries", done.States, done.Deep)
		})
	}
}

// runKind spends two thirds of a budget on short sequences, the rest on long
// random ones.
func runKind(k kinds.Kind, sub *crash.Subject, p *crash.Prepared, total int) (crash.Result, error) {
	var done crash.Result
	for seed := uint64(1); done.States < total; seed++ {
		var list []crash.Sequence
		for i, q := range k.Sequences(seed) {
			list = append(list, q)
			if i%40 == 20 {
				list = append(list, k.Random(seed<<16+uint64(i), 60))
			}
		}
		for i, q := range list {
			n, err := sub.Cut(p, q, crash.Options{Seed: seed<<16 + uint64(i), Limit: min(total-done.States, 1+total/20), Deep: 40})
			done.Add(n)
			if err != nil || done.States >= total {
				return done, err
			}
		}
	}
	return done, nil
}

// meeting is a workload that passes a sync.
type meeting struct {
	kind  string
	sub   *crash.Subject
	start *crash.Prepared
	q     crash.Sequence
	o     crash.Options
}

// meetings finds for each sync label the workloads that pass it, first the short
// ones of every kind.
func meetings(t *testing.T) map[string][]meeting {
	t.Helper()
	met := map[string][]meeting{}
	meet := func(k kinds.Kind, list ...crash.Sequence) {
		sub, p := k.Prepare(t)
		for _, q := range list {
			r, labels, err := sub.Record(p, q)
			require.NoError(t, err)
			for l := range labels {
				met[l] = append(met[l], meeting{k.Name, sub, p, q, aim(r, l)})
			}
		}
	}
	for _, k := range kinds.All() {
		meet(k, append(k.Sequences(1)[:80:80], k.Random(1, 40))...)
		if k.Name == "vhdx dynamic" {
			meet(k, crash.Wrap(140))
		}
	}
	meet(kinds.Wide(), writeEverywhere)
	for _, list := range met {
		slices.SortStableFunc(list, func(a, b meeting) int { return len(a.q) - len(b.q) })
	}
	return met
}

// writeEverywhere has more pages in one flush than a log has room for: the first
// ones are put in place, and the log is turned over, before the flush goes on.
var writeEverywhere = crash.Sequence{{Name: "write everywhere", Do: func(g *crash.Guest) error {
	for off := int64(0); off < g.Writer.Size(); off += 512 << 20 {
		if err := g.Write(off, g.Unit); err != nil {
			return err
		}
	}
	return nil
}}, crash.Steps[8]}

// aim says which states show that a sync is dropped: those after the first such
// sync; in a long recording those around the last one, where the log wraps.
func aim(r *crash.Recording, label string) crash.Options {
	last := 0
	for i, e := range r.Events {
		if (e.Op == sim.OpSync || e.Op == sim.OpSyncDir) && e.Label == label {
			if len(r.Events) < 300 {
				return crash.Options{After: i}
			}
			last = i
		}
	}
	return crash.Options{After: last - 60}
}

// created are the syncs of images that have no name yet.
var created = []string{"vhd.create", "vhdx.create"}

// Each sync of the formats is needed: with it dropped some state breaks a
// promise. The lines that this prints stand in docs/durability.md.
func TestEveryDroppedSyncIsSeen(t *testing.T) {
	met := meetings(t)
	for _, label := range syncLabels(t, "../../vhd", "../../vhdx") {
		if slices.Contains(created, label) {
			continue
		}
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			require.NotEmpty(t, met[label], "no workload meets this sync")
			seen(t, met[label], label)
		})
	}
}

// seen drops a sync in one workload after the other, in a few states of each, then
// in more.
func seen(t *testing.T, list []meeting, label string) {
	states := 0
	for _, limit := range []int{30, 300} {
		for i, m := range list[:min(len(list), 100)] {
			m.o.Seed, m.o.Limit = uint64(i), limit
			n, err := m.sub.Cut(m.start, m.q, m.o, label)
			states += n.States
			var v *crash.Violation
			if errors.As(err, &v) {
				t.Logf("%s: seen after %d states by %s, %q:\n%v", label, states, m.kind, m.q, v)
				return
			}
			require.NoError(t, err)
		}
	}
	t.Fatalf("%s: dropped, and none of %d states in %d workloads shows it", label, states, len(list))
}

// The same long flush with every sync in its place.
func TestFlushOfMoreThanTheLogHolds(t *testing.T) {
	sub, p := kinds.Wide().Prepare(t)
	r, met, err := sub.Record(p, writeEverywhere)
	require.NoError(t, err)
	for _, label := range []string{"vhdx.log.room", "vhdx.log.turn"} {
		require.Positive(t, met[label])
		o := aim(r, label)
		o.Limit = 100
		n, err := sub.Run(r, p.History, o)
		require.NoError(t, err)
		require.Greater(t, n.States, 10)
	}
}
