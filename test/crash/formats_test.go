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
	"vhd.footer": "a guest could end the file with a footer of its own: vhd.TestGuestCannotForgeTheFooter",
	"vhd.trim":   "the end footer could be lost, the copy at 0 serves: vhd.TestCloseLeavesBothFooters",
}

// Each sync is needed: with it dropped some state breaks a promise. The lines
// that this prints stand in docs/durability.md.
func TestEveryDroppedSyncIsSeen(t *testing.T) {
	labels := map[string]bool{}
	for _, s := range kinds.All() {
		sub, p := s.Prepare(t)
		for _, q := range crash.Sequences(3)[:60] {
			_, met, err := sub.Record(p, q)
			require.NoError(t, err)
			for l := range met {
				labels[l] = true
			}
		}
	}
	require.NotEmpty(t, labels)
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		t.Run(label, func(t *testing.T) {
			if why, ok := savesWork[label]; ok {
				t.Log(why)
				return
			}
			t.Parallel()
			seenBy(t, label)
		})
	}
}

func seenBy(t *testing.T, label string) {
	states := 0
	for seed := uint64(1); seed <= 3; seed++ {
		for _, s := range kinds.All() {
			sub, p := s.Prepare(t)
			for _, q := range append(crash.Sequences(seed)[:60], crash.Random(seed, 40)) {
				if !meets(t, sub, p, q, label) {
					continue
				}
				n, err := sub.Cut(p, q, crash.Options{Seed: seed, Limit: 400}, label)
				states += n.States
				var v *crash.Violation
				if errors.As(err, &v) {
					t.Logf("%s: seen after %d states by %s, %q:\n%v", label, states, s.Name, q, v)
					return
				}
				require.NoError(t, err)
			}
		}
	}
	t.Fatalf("%s: dropped, and none of %d states shows it", label, states)
}

// meets tells whether a sequence passes a sync.
func meets(t *testing.T, sub *crash.Subject, p *crash.Prepared, q crash.Sequence, label string) bool {
	t.Helper()
	_, met, err := sub.Record(p, q)
	require.NoError(t, err)
	return met[label] > 0
}
