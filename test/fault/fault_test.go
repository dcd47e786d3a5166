package fault

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/budget"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/kinds"
	"vhdfs/test/sim"
)

// ciPoints are enough to give every call every fault.
const ciPoints = 20_000

// cover counts which place in the code met which fault.
type cover struct {
	mu struct {
		sync.Mutex
		met map[string]map[string]int // site and call: fault: times
	}
}

func site(c sim.Call) string {
	if c.Label != "" {
		return fmt.Sprintf("%s %s (%s)", c.Site, c.Op, c.Label)
	}
	return fmt.Sprintf("%s %s", c.Site, c.Op)
}

func (c *cover) note(call sim.Call, f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.met == nil {
		c.mu.met = map[string]map[string]int{}
	}
	at := site(call)
	if c.mu.met[at] == nil {
		c.mu.met[at] = map[string]int{}
	}
	if f.Name != "" {
		c.mu.met[at][f.Name]++
	}
}

// Every call of the workloads fails in every way that fits it.
func TestEveryCallFails(t *testing.T) {
	list := kinds.All()
	total := budget.Of(t, 1_600, ciPoints)
	run := budget.Start(t, "fault", "points")
	var c cover
	t.Run("kinds", func(t *testing.T) {
		for _, k := range list {
			t.Run(k.Name, func(t *testing.T) {
				t.Parallel()
				spend(t, k, run, total/len(list), &c)
			})
		}
	})
	if t.Failed() {
		return
	}
	for _, at := range slices.Sorted(maps.Keys(c.mu.met)) {
		t.Logf("%-60s %v", at, c.mu.met[at])
	}
	if total >= ciPoints {
		c.asksForAll(t)
	}
}

// spend fails calls of short sequences until the budget is used, all calls of
// each sequence, longer sequences of random steps between.
func spend(t *testing.T, k kinds.Kind, run *budget.Run, total int, c *cover) {
	s, p := k.Prepare(t)
	done := 0
	for seed := run.Seed(); done < total; seed++ {
		for i, q := range k.Sequences(seed) {
			if i%10 == 9 {
				q = k.Random(seed<<16+uint64(i), 20)
			}
			calls, err := Calls(s, p, q)
			require.NoError(t, err, "%s", q)
			for _, call := range calls {
				for _, f := range Faults() {
					if !f.Fits(call.Op) {
						continue
					}
					c.note(call, Fault{})
					hit, err := Inject(s, p, q, call.N, f, 5)
					require.NoError(t, run.Broken(err), "sequence %q, call %d, %s: %s", q, call.N, site(call), f)
					if hit.N > 0 {
						c.note(call, f)
						run.Add("points", 1)
					}
					done++
				}
			}
			if done >= total {
				return
			}
		}
	}
}

// asksForAll fails for a call that changes something and missed a fault.
func (c *cover) asksForAll(t *testing.T) {
	for at, met := range c.mu.met {
		for _, f := range Faults() {
			for op := sim.OpWrite; op <= sim.OpSync; op++ {
				if f.Fits(op) && strings.Contains(at, " "+op.String()) && met[f.Name] == 0 {
					t.Errorf("%s never met %s", at, f.Name)
				}
			}
		}
	}
}

// A header that fails may stand there all the same. It may name a log: the ring is
// not written over before another header is there. And who opens the image next may
// find it, though no sync covered it: the copy that is durable is not touched before
// it is, too. A disk whose block table moves begins a second log in its session.
func TestFailedHeaders(t *testing.T) {
	for _, tt := range []struct {
		kind    string
		steps   []string
		headers int // writes of one, at least
	}{
		{"vhdx differencing, full table", []string{"grow"}, 4},
		{"vhdx dynamic", []string{"write over a border", "reopen", "rewrite"}, 4},
		{"vhdx with a dirty log", []string{"write over a border", "kill", "rewrite"}, 4},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			t.Parallel()
			list := kinds.All()
			k := list[slices.IndexFunc(list, func(k kinds.Kind) bool { return k.Name == tt.kind })]
			s, p := k.Prepare(t)
			failHeaders(t, s, p, sequence(t, k, tt.steps...), tt.headers)
		})
	}
}

func sequence(t *testing.T, k kinds.Kind, names ...string) (q crash.Sequence) {
	t.Helper()
	all := slices.Concat(crash.Steps, k.Steps)
	for _, name := range names {
		i := slices.IndexFunc(all, func(s crash.Step) bool { return s.Name == name })
		require.GreaterOrEqual(t, i, 0, name)
		q = append(q, all[i])
	}
	return q
}

func failHeaders(t *testing.T, s *crash.Subject, p *crash.Prepared, q crash.Sequence, atLeast int) {
	t.Helper()
	calls, err := Calls(s, p, q)
	require.NoError(t, err)
	headers := 0
	for _, call := range calls {
		if call.Op != sim.OpWrite || call.Off != fixture.VHDXHeader1 && call.Off != fixture.VHDXHeader2 {
			continue
		}
		headers++
		for _, f := range Faults() {
			if f.Short {
				_, err := Inject(s, p, q, call.N, f, 60)
				require.NoError(t, err, "call %d, %s: %s", call.N, site(call), f)
			}
		}
	}
	require.GreaterOrEqual(t, headers, atLeast)
}

// Each call of a resize fails, and another resize is asked for. Who opens the image
// next finds the size, and the content, that one of them asked for, or the old ones.
func TestResizesAfterAFailedOne(t *testing.T) {
	for _, name := range []string{"vhdx differencing", "vhdx dynamic", "vhd dynamic", "vhd fixed"} {
		for _, last := range []string{"flush", "kill"} {
			t.Run(name+", "+last, func(t *testing.T) {
				t.Parallel()
				i := slices.IndexFunc(kinds.All(), func(k kinds.Kind) bool { return k.Name == name })
				require.GreaterOrEqual(t, i, 0)
				k := kinds.All()[i]
				s, p := k.Prepare(t)
				q := sequence(t, k, "grow", "grow over a parent", last)
				calls, err := Calls(s, p, q)
				require.NoError(t, err)
				for _, call := range calls {
					for _, f := range Faults() {
						if f.Fits(call.Op) {
							_, err := Inject(s, p, q, call.N, f, 5)
							require.NoError(t, err, "call %d, %s: %s", call.N, site(call), f)
						}
					}
				}
			})
		}
	}
}
