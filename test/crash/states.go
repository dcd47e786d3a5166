// Package crash cuts the power everywhere: it takes a recording of a workload on
// a [sim.Host] and makes each state in which the disk may be found afterwards.
//
// The model of a disk: what was written before a sync of the same file is there;
// of what was written since, any part may be, in any order, and one write may be
// torn at sectors of 512 bytes. Sizes, holes and directory entries are events of
// their own; entries last from the sync of their directory.
//
//	r := crash.Recording{Base: start, Events: host.Events()}
//	err := r.Each(seed, func(s *crash.State) error { … open s.Host(), compare … })
//
// A [Guest] writes the recording through a format; its [History] says after each
// cut which values each sector may have; a [Subject] opens a state and compares.
// A [Job] is any other change of a host, with a judge of its own.
package crash

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"vhdfs/test/sim"
)

const sector = 512

// Limits of the states made from one epoch: all subsets of up to maxExhaustive
// events; of longer ones every prefix, every prefix less one event (a sample of
// maxPrefixes), all single drops and survivors, and seeded subsets.
const (
	maxExhaustive = 10
	maxPrefixes   = 400
	randomSubsets = 64
)

// Recording is a workload: what it started from and what it changed.
type Recording struct {
	Base   *sim.Host
	Events []sim.Event
}

// State is one way in which the power may have gone.
type State struct {
	base    *sim.Host
	pending []sim.Event
	plan    plan
	At      int    // events that had happened, marks included
	Label   string // of the sync that was under way; "" at the end
}

// plan says which pending events reached the disk.
type plan struct {
	kept []bool
	torn int // event that was torn, or -1
	way  int // how
}

// Ways to tear a write.
const (
	firstHalf = iota
	lastHalf
	evenSectors
	tearWays
)

// Host is a fresh host in this state.
func (s *State) Host() (*sim.Host, error) {
	h := s.base.Clone()
	for i, e := range s.pending {
		if !s.plan.kept[i] {
			continue
		}
		if i != s.plan.torn {
			if err := h.Apply(e); err != nil {
				return nil, err
			}
			continue
		}
		for _, part := range tear(e, s.plan.way) {
			if err := h.Apply(part); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
}

// String tells what reached the disk.
func (s *State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "power cut after event %d", s.At)
	if s.Label != "" {
		fmt.Fprintf(&b, ", in sync %q", s.Label)
	}
	for i, e := range s.pending {
		what := "lost"
		switch {
		case i == s.plan.torn && s.plan.kept[i]:
			what = [...]string{"first half", "last half", "even sectors"}[s.plan.way]
		case s.plan.kept[i]:
			what = "kept"
		}
		fmt.Fprintf(&b, "\n  %-12s %s", what, e)
	}
	return b.String()
}

// tear splits a write into the parts that reached the disk.
func tear(e sim.Event, way int) []sim.Event {
	half := int64(len(e.Data)) / 2 / sector * sector
	part := func(from, to int64) sim.Event {
		p := e
		p.Off, p.Data = e.Off+from, e.Data[from:to]
		p.Len = to - from
		return p
	}
	switch way {
	case firstHalf:
		return []sim.Event{part(0, half)}
	case lastHalf:
		return []sim.Event{part(half, int64(len(e.Data)))}
	}
	var list []sim.Event
	for at := int64(0); at < int64(len(e.Data)); at += 2 * sector {
		list = append(list, part(at, min(at+sector, int64(len(e.Data)))))
	}
	return list
}

func canTear(e sim.Event) bool { return e.Op == sim.OpWrite && len(e.Data) > sector }

// Each visits the states of a recording in order, with the same seed the same
// ones, until visit returns an error. Its error is that error.
func (r *Recording) Each(seed uint64, visit func(*State) error) error {
	base := r.Base.Clone()
	rng := rand.New(rand.NewPCG(seed, 0xC4A5))
	var pending []sim.Event
	for i := 0; i <= len(r.Events); i++ {
		end := i == len(r.Events)
		var e sim.Event
		if !end {
			e = r.Events[i]
		}
		if !end && e.Op == sim.OpAck {
			continue
		}
		if !end && e.Op != sim.OpSync && e.Op != sim.OpSyncDir {
			pending = append(pending, e)
			continue
		}
		for _, p := range plans(pending, rng) {
			if err := visit(&State{base: base, pending: pending, plan: p, At: i, Label: e.Label}); err != nil {
				return err
			}
		}
		var rest []sim.Event
		for _, p := range pending {
			if !covers(e, p) {
				rest = append(rest, p)
				continue
			}
			if err := base.Apply(p); err != nil {
				return err
			}
		}
		pending = rest
	}
	return nil
}

// covers tells whether a sync makes an earlier change durable.
func covers(sync, change sim.Event) bool {
	switch change.Op {
	case sim.OpCreate, sim.OpMkdir, sim.OpRemove:
		return sync.Op == sim.OpSyncDir && sync.File == change.Dir
	case sim.OpRename:
		return sync.Op == sim.OpSyncDir && (sync.File == change.Dir || sync.File == change.ToDir)
	}
	return sync.Op == sim.OpSync && sync.File == change.File
}

// plans lists which events to keep, and which to tear.
func plans(pending []sim.Event, rng *rand.Rand) []plan {
	n := len(pending)
	var list []plan
	add := func(keep func(i int) bool, torn, way int) {
		p := plan{kept: make([]bool, n), torn: torn, way: way}
		for i := range p.kept {
			p.kept[i] = keep(i)
		}
		list = append(list, p)
	}
	if n <= maxExhaustive {
		for mask := range 1 << n {
			add(func(i int) bool { return mask&(1<<i) != 0 }, -1, 0)
		}
	} else {
		longEpoch(n, rng, add)
	}
	for t, e := range pending {
		if !canTear(e) {
			continue
		}
		for way := range tearWays {
			add(func(i int) bool { return i <= t }, t, way)
			add(func(i int) bool { return true }, t, way)
			add(func(i int) bool { return i == t }, t, way)
		}
	}
	return list
}

// longEpoch samples the subsets of more than maxExhaustive events.
func longEpoch(n int, rng *rand.Rand, add func(keep func(i int) bool, torn, way int)) {
	for k := range n + 1 {
		add(func(i int) bool { return i < k }, -1, 0)
	}
	for k := range n {
		add(func(i int) bool { return i != k }, -1, 0)
		add(func(i int) bool { return i == k }, -1, 0)
	}
	for k := 2; k < n; k++ {
		for lost := range k - 1 {
			if n*n/2 <= maxPrefixes || rng.IntN(n*n/2) < maxPrefixes {
				add(func(i int) bool { return i < k && i != lost }, -1, 0)
			}
		}
	}
	for range randomSubsets {
		bits := make([]bool, n)
		for i := range bits {
			bits[i] = rng.IntN(2) == 0
		}
		add(func(i int) bool { return bits[i] }, -1, 0)
	}
}
