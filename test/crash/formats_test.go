package crash_test

import (
	"errors"
	"maps"
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
			done, err := runKind(sub, p, total/len(list))
			states.Add(int64(done.States))
			deep.Add(int64(done.Deep))
			require.NoError(t, err)
			t.Logf("%d states, %d of recoveries", done.States, done.Deep)
		})
	}
}

// runKind spends two thirds of a budget on short sequences, the rest on long
// random ones.
func runKind(sub *crash.Subject, p *crash.Prepared, total int) (crash.Result, error) {
	var done crash.Result
	for seed := uint64(1); done.States < total; seed++ {
		var list []crash.Sequence
		for i, q := range crash.Sequences(seed) {
			list = append(list, q)
			if i%40 == 20 {
				list = append(list, crash.Random(seed<<16+uint64(i), 60))
			}
		}
		for i, q := range list {
			n, err := sub.Cut(p, q, crash.Options{Seed: seed<<16 + uint64(i), Limit: min(total-done.States, 1+total/20), Deep: 50})
			done.Add(n)
			if err != nil || done.States >= total {
				return done, err
			}
		}
	}
	return done, nil
}

// savesWork are syncs whose loss no guest sees, and what shows them instead.
var savesWork = map[string]string{
	"vhd.footer":        "a guest could end the file with a footer of its own: vhd.TestGuestCannotForgeTheFooter",
	"vhdx.close.header": "two headers on their way at once, where a drive might lose what it is writing; either sync of closing is enough here",
	"vhdx.close.second": "the older of two headers would stay behind, the newer one serves; either sync of closing is enough here",
	"vhd.trim":          "the end footer could be lost, the copy at 0 serves: vhd.TestCloseLeavesBothFooters",
}

// meeting is a workload that passes a sync.
type meeting struct {
	kind  string
	sub   *crash.Subject
	start *crash.Prepared
	q     crash.Sequence
	after int // events before the sync matters
}

// meetings finds for each sync label the workloads that pass it.
func meetings(t *testing.T) map[string][]meeting {
	t.Helper()
	met := map[string][]meeting{}
	for _, k := range kinds.All() {
		sub, p := k.Prepare(t)
		list := append(crash.Sequences(1)[:80:80], crash.Random(1, 40))
		if k.Name == "vhdx dynamic" {
			list = append(list, crash.Wrap(140))
		}
		for _, q := range list {
			r, labels, err := sub.Record(p, q)
			require.NoError(t, err)
			for l := range labels {
				met[l] = append(met[l], meeting{k.Name, sub, p, q, lastSync(r, l)})
			}
		}
	}
	return met
}

const beforeSync = 60

// lastSync is the number of events some way before the last sync with a label in
// a long recording, 0 in others.
func lastSync(r *crash.Recording, label string) int {
	for i := len(r.Events) - 1; i > 300; i-- {
		if e := r.Events[i]; e.Op == sim.OpSync && e.Label == label {
			return i - beforeSync
		}
	}
	return 0
}

// Each sync is needed: with it dropped some state breaks a promise. The lines
// that this prints stand in docs/durability.md.
func TestEveryDroppedSyncIsSeen(t *testing.T) {
	met := meetings(t)
	require.NotEmpty(t, met)
	for _, label := range slices.Sorted(maps.Keys(met)) {
		t.Run(label, func(t *testing.T) {
			if why, ok := savesWork[label]; ok {
				t.Log(why)
				return
			}
			t.Parallel()
			seen(t, met[label], label)
		})
	}
	t.Run("both of closing", func(t *testing.T) {
		t.Parallel()
		seen(t, met["vhdx.close.header"], "vhdx.close.header", "vhdx.close.second")
	})
}

// seen drops syncs in one workload after the other, short ones of every kind
// first.
func seen(t *testing.T, list []meeting, labels ...string) {
	slices.SortStableFunc(list, func(a, b meeting) int { return len(a.q) - len(b.q) })
	states := 0
	for i, m := range list {
		n, err := m.sub.Cut(m.start, m.q, crash.Options{Seed: uint64(i), Limit: 150, After: m.after}, labels...)
		states += n.States
		var v *crash.Violation
		if errors.As(err, &v) {
			t.Logf("%s: seen after %d states by %s, %q:\n%v", labels, states, m.kind, m.q, v)
			return
		}
		require.NoError(t, err)
		if states > 5000 {
			break
		}
	}
	t.Fatalf("%s: dropped, and none of %d states in %d workloads shows it", labels, states, len(list))
}

// A flush with more pages than the log has room for puts the first ones in place
// and turns the log over before it goes on: both syncs of that are needed.
func TestFlushOfMoreThanTheLogHolds(t *testing.T) {
	sub, p := kinds.Wide().Prepare(t)
	everywhere := func(g *crash.Guest) error {
		for off := int64(0); off < g.Writer.Size(); off += 512 << 20 {
			if err := g.Write(off, g.Unit); err != nil {
				return err
			}
		}
		return nil
	}
	q := crash.Sequence{{Name: "write everywhere", Do: everywhere}, crash.Steps[8]}
	for label, o := range map[string]crash.Options{
		"vhdx.log.room": {Every: 7, Limit: 400},
		"vhdx.log.turn": {Limit: 100},
	} {
		t.Run(label, func(t *testing.T) {
			r, labels, err := sub.Record(p, q)
			require.NoError(t, err)
			require.Positive(t, labels[label])
			if o.After = lastSync(r, label); o.Every == 0 {
				o.After += beforeSync
			}
			n, err := sub.Run(r, p.History, o)
			require.NoError(t, err)
			require.Greater(t, n.States, 10)
			n, err = sub.Cut(p, q, o, label)
			require.Error(t, err, "dropped, and none of %d states shows it", n.States)
			t.Logf("%s: seen after %d states: %.300s", label, n.States, err)
		})
	}
}
