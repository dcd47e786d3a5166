// Package crash cuts the power everywhere: it takes a recording of a workload on
// a [sim.Host] and makes each state in which the disk may be found afterwards.
//
// The model of a disk: what was written before a sync of the same file is there;
// of what was written since, any part may be, in any order, and one or two writes
// may be torn: at sectors of 512 bytes, and inside a sector where a format says
// that a checksum would tell. Sizes, holes and directory entries are events of
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
// events, and all pairs of torn writes; of longer ones every prefix, every prefix less one event (a sample of
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
	// Summed tells writes that a power cut may also tear inside a sector, because
	// checksums tell and another copy serves. nil: none.
	Summed func(sim.Event) bool
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
	torn []tornWrite // at most two, all of them kept
}

type tornWrite struct{ event, way int }

// Ways to tear a write.
const (
	firstHalf = iota
	lastHalf
	evenSectors
	midSector
)

var wayNames = [...]string{"first half", "last half", "even sectors", "mid-sector"}

// way is how an event was torn, -1 when it was not.
func (p plan) way(event int) int {
	for _, t := range p.torn {
		if t.event == event {
			return t.way
		}
	}
	return -1
}

// Host is a fresh host in this state.
func (s *State) Host() (*sim.Host, error) {
	h := s.base.Clone()
	for i, e := range s.pending {
		if !s.plan.kept[i] {
			continue
		}
		parts := []sim.Event{e}
		if way := s.plan.way(i); way >= 0 {
			parts = tear(e, way, h)
		}
		for _, part := range parts {
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
		case s.plan.way(i) >= 0:
			what = wayNames[s.plan.way(i)]
		case s.plan.kept[i]:
			what = "kept"
		}
		fmt.Fprintf(&b, "\n  %-12s %s", what, e)
	}
	return b.String()
}

// tear gives the parts of a write that reached the disk of h.
func tear(e sim.Event, way int, h *sim.Host) []sim.Event {
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
	case midSector:
		p, old := e, h.Stored(e)
		cut := middle(e.Data, old)
		p.Data = append(e.Data[:cut:cut], old[cut:]...) // the size ends with a sector
		return []sim.Event{p}
	}
	var list []sim.Event
	for at := int64(0); at < int64(len(e.Data)); at += 2 * sector {
		list = append(list, part(at, min(at+sector, int64(len(e.Data)))))
	}
	return list
}

// middle is where half of the bytes that a write changes lie before.
func middle(data, old []byte) int64 {
	var changed []int64
	for i := range data {
		if data[i] != old[i] {
			changed = append(changed, int64(i))
		}
	}
	if len(changed) == 0 {
		return 0
	}
	return changed[len(changed)/2]
}

// tears are the ways in which a write may be torn, alone and beside another.
func (r *Recording) tears(e sim.Event) (alone, paired []int) {
	if e.Op != sim.OpWrite {
		return nil, nil
	}
	if len(e.Data) > sector {
		alone, paired = []int{firstHalf, lastHalf, evenSectors}, []int{firstHalf, lastHalf}
	}
	if r.Summed != nil && r.Summed(e) {
		alone, paired = append(alone, midSector), append(paired, midSector)
	}
	return alone, paired
}

// Each visits the states of a recording in order, with the same seed the same
// ones, until visit returns an error. Its error is that error.
func (r *Recording) Each(seed uint64, visit func(*State) error) error {
	base := r.Base.Clone()
	return r.epochs(func(pending []sim.Event, at int, label string) error {
		for _, p := range r.plans(pending, rand.New(rand.NewPCG(seed, uint64(at)))) {
			if err := visit(&State{base: base, pending: pending, plan: p, At: at, Label: label}); err != nil {
				return err
			}
		}
		return nil
	}, base.Apply)
}

// epochs calls visit before each sync, and at the end, with what is not durable
// yet, and settled, unless nil, with what is then.
func (r *Recording) epochs(visit func(pending []sim.Event, at int, label string) error, settled func(sim.Event) error) error {
	var pending []sim.Event
	for i, e := range r.Events {
		switch e.Op {
		case sim.OpAck:
			continue
		case sim.OpSync, sim.OpSyncDir:
		default:
			pending = append(pending, e)
			continue
		}
		if err := visit(pending, i, e.Label); err != nil {
			return err
		}
		var rest []sim.Event
		for _, p := range pending {
			if !covers(e, p) {
				rest = append(rest, p)
			} else if settled != nil {
				if err := settled(p); err != nil {
					return err
				}
			}
		}
		pending = rest
	}
	return visit(pending, len(r.Events), "")
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
func (r *Recording) plans(pending []sim.Event, rng *rand.Rand) []plan {
	n := len(pending)
	var list []plan
	add := func(keep func(i int) bool, torn ...tornWrite) {
		p := plan{kept: make([]bool, n), torn: torn}
		for i := range p.kept {
			p.kept[i] = keep(i)
		}
		list = append(list, p)
	}
	if n <= maxExhaustive {
		for mask := range 1 << n {
			add(func(i int) bool { return mask&(1<<i) != 0 })
		}
	} else {
		longEpoch(n, rng, add)
	}
	ways := make([][]int, n)
	for t, e := range pending {
		alone, paired := r.tears(e)
		ways[t] = paired
		for _, way := range alone {
			torn := tornWrite{t, way}
			add(func(i int) bool { return i <= t }, torn)
			add(func(i int) bool { return true }, torn)
			add(func(i int) bool { return i == t }, torn)
		}
	}
	if n <= maxExhaustive {
		pairs(ways, add)
	}
	return list
}

// pairs adds every two torn writes, with all other events, those between and
// before, and no others.
func pairs(ways [][]int, add func(keep func(i int) bool, torn ...tornWrite)) {
	for b := range ways {
		for a := range b {
			for _, wayA := range ways[a] {
				for _, wayB := range ways[b] {
					torn := []tornWrite{{a, wayA}, {b, wayB}}
					add(func(i int) bool { return i == a || i == b }, torn...)
					if b > 1 {
						add(func(i int) bool { return i <= b }, torn...)
					}
					if b < len(ways)-1 {
						add(func(i int) bool { return true }, torn...)
					}
				}
			}
		}
	}
}

// longEpoch samples the subsets of more than maxExhaustive events.
func longEpoch(n int, rng *rand.Rand, add func(keep func(i int) bool, torn ...tornWrite)) {
	for k := range n + 1 {
		add(func(i int) bool { return i < k })
	}
	for k := range n {
		add(func(i int) bool { return i != k })
		add(func(i int) bool { return i == k })
	}
	for k := 2; k < n; k++ {
		for lost := range k - 1 {
			if n*n/2 <= maxPrefixes || rng.IntN(n*n/2) < maxPrefixes {
				add(func(i int) bool { return i < k && i != lost })
			}
		}
	}
	for range randomSubsets {
		bits := make([]bool, n)
		for i := range bits {
			bits[i] = rng.IntN(2) == 0
		}
		add(func(i int) bool { return bits[i] })
	}
}
