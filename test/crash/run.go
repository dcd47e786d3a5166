package crash

import (
	"fmt"

	"vhdfs/test/sim"
)

// Limits of recoveries that are cut themselves.
const (
	maxDepth   = 3
	deepStates = 20 // of one recovery
)

// Options say how far a run goes.
type Options struct {
	Seed  uint64
	Limit int // states, a sample of about so many; 0: all
	After int // events before which the power stays on
	Deep  int // one state in so many has its recovery recorded and cut, too; 0: none
}

// Result counts what a run did.
type Result struct {
	States int // of the workload
	Deep   int // of recoveries, and of their recoveries
}

// Add sums up.
func (r *Result) Add(s Result) { r.States, r.Deep = r.States+s.States, r.Deep+s.Deep }

// Violation is a state in which a promise was broken.
type Violation struct {
	State *State
	Depth int // of recoveries that were cut before
	Err   error
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%v\n  depth %d: %s", v.Err, v.Depth, v.State)
}

// Unwrap is what was wrong.
func (v *Violation) Unwrap() error { return v.Err }

// Run verifies the states of a recording that started with the history. A
// broken promise is a [Violation].
func (s *Subject) Run(r *Recording, start *History, o Options) (Result, error) {
	return s.run(r, start, o, 1)
}

func (s *Subject) run(r *Recording, start *History, o Options, depth int) (Result, error) {
	history, seen := start.Clone(), 0
	return r.visit(o, func(state *State, n int) (Result, error) {
		for ; seen < state.At; seen++ {
			history.Note(r.Events[seen])
		}
		deep := o.Deep > 0 && depth < maxDepth && n%o.Deep == 0
		return s.verifyState(state, history, o, depth, deep)
	})
}

// verifyState verifies one state; deep records its recovery and cuts that.
func (s *Subject) verifyState(state *State, history *History, o Options, depth int, deep bool) (Result, error) {
	h, err := state.Host()
	if err != nil {
		return Result{}, err
	}
	var base *sim.Host
	if deep {
		base = h.Clone()
		h.Record()
	}
	view, err := s.Verify(h, history)
	if err != nil {
		return Result{}, &Violation{State: state, Depth: depth, Err: err}
	}
	if !deep {
		return Result{}, nil
	}
	return s.run(&Recording{Base: base, Events: h.Events(), Summed: s.Summed}, view.exactly(s.Differencing), o.deeper(state), depth+1)
}

// Cut records a sequence on a prepared image, with some syncs dropped, and runs
// its states.
func (s *Subject) Cut(p *Prepared, q Sequence, o Options, dropped ...string) (Result, error) {
	r, _, err := s.Record(p, q, dropped...)
	if err != nil {
		return Result{}, err
	}
	n, err := s.Run(r, p.History, o)
	if err != nil {
		err = fmt.Errorf("sequence %q, seed %d: %w", q, o.Seed, err)
	}
	return n, err
}
