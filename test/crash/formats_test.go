package crash_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/budget"
	"vhdfs/test/crash"
	"vhdfs/test/kinds"
	"vhdfs/test/sim"
)

// Whenever the power goes, an image opens, holds what was flushed, holds nothing
// foreign, and is sound; and so when it goes again during the repair.
func TestEveryStateKeepsThePromises(t *testing.T) {
	list := kinds.All()
	total := budget.Of(t, 20_000, 250_000)
	if raceEnabled {
		total = 5_000
	}
	run := budget.Start(t, "crash", "states", "recoveries")
	for _, k := range list {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, run.Broken(cutKind(t, k, run, total/len(list))))
		})
	}
}

// cutKind spends two thirds of a budget on short sequences, the rest on long
// random ones.
func cutKind(t *testing.T, k kinds.Kind, run *budget.Run, total int) error {
	sub, p := k.Prepare(t)
	done := 0
	for seed := run.Seed(); done < total; seed++ {
		var list []crash.Sequence
		for i, q := range k.Sequences(seed) {
			list = append(list, q)
			if i%40 == 20 {
				list = append(list, k.Random(seed<<16+uint64(i), 60))
			}
		}
		for i, q := range list {
			n, err := sub.Cut(p, q, crash.Options{Seed: seed<<16 + uint64(i), Limit: min(total-done, 1+total/20), Deep: 40})
			run.Add("states", n.States)
			run.Add("recoveries", n.Deep)
			if done += max(1, n.States); err != nil || done >= total {
				return err
			}
		}
	}
	return nil
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
				for _, o := range aim(r, l) {
					met[l] = append(met[l], meeting{k.Name, sub, p, q, o})
				}
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
// sync; in a long recording, where the log wraps, those right after the last one,
// and those around it.
func aim(r *crash.Recording, label string) []crash.Options {
	last := 0
	for i, e := range r.Events {
		if (e.Op == sim.OpSync || e.Op == sim.OpSyncDir) && e.Label == label {
			if len(r.Events) < 300 {
				return []crash.Options{{After: i}}
			}
			last = i
		}
	}
	return []crash.Options{{After: last}, {After: last - 60}}
}

// elsewhere are the syncs of images that have no name yet, and one that is needed
// only after a header that could not be written: TestFailedHeaders in test/fault.
var elsewhere = []string{"vhd.create", "vhdx.create", "vhdx.header.found"}

// Each sync of the formats is needed: with it dropped some state breaks a
// promise. The lines that this prints stand in docs/durability.md.
func TestEveryDroppedSyncIsSeen(t *testing.T) {
	met := meetings(t)
	for _, label := range syncLabels(t, "../../vhd", "../../vhdx") {
		if slices.Contains(elsewhere, label) || strings.HasPrefix(label, "vhds.") { // those of sets are cut beside their code
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
		for _, o := range aim(r, label) {
			o.Limit = 100
			n, err := sub.Run(r, p.History, o)
			require.NoError(t, err)
			require.Greater(t, n.States, 10)
		}
	}
}
