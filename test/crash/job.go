package crash

import (
	"fmt"
	"math/rand/v2"

	"vhdfs/test/sim"
)

// Job is anything that changes files of a host, with what must hold of it
// wherever the power goes: an operation on some images, a method of a format.
//
//	job := crash.Job{
//		Do:    func(h *sim.Host) error { … open, change, close … },
//		Judge: func(h *sim.Host, done bool) error { … open, compare, repair, compare … },
//	}
//	n, err := job.Run(start, crash.Options{Deep: 20})
//
// An image that a [Guest] changes alone needs no Job: see [Subject.Start].
type Job struct {
	// Do is recorded. It starts from a clone of the start, and the power stays on.
	Do func(h *sim.Host) error
	// Judge answers what is wrong with a host that lost its power; done tells
	// whether Do had returned by then. What Judge changes on h is recovery: with
	// Options.Deep that is recorded and cut as well, and judged by Judge.
	Judge func(h *sim.Host, done bool) error
	// Summed is [Recording.Summed].
	Summed func(sim.Event) bool
}

// Run records the job, with some syncs dropped, and judges the states. One that
// Judge does not like is a [Violation]; an error of Do comes back as it is.
func (j Job) Run(start *sim.Host, o Options, dropped ...string) (Result, error) {
	r, _, err := j.Record(start, dropped...)
	if err != nil {
		return Result{}, err
	}
	return j.cut(r, o, 1, true)
}

// Record does the job on a clone of start, with some syncs dropped, and gives the
// recording and how often each sync label was met.
func (j Job) Record(start *sim.Host, dropped ...string) (*Recording, map[string]int, error) {
	h := start.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	h.Record()
	if err := j.Do(h); err != nil {
		return nil, nil, err
	}
	h.Ack("done", nil)
	return &Recording{Base: start.Clone(), Events: h.Events(), Summed: j.Summed}, h.SyncLabels(), nil
}

// cut judges the states of a recording at whose end the job is done, or not.
func (j Job) cut(r *Recording, o Options, depth int, done bool) (Result, error) {
	return r.visit(o, func(s *State, n int) (Result, error) {
		h, err := s.Host()
		if err != nil {
			return Result{}, err
		}
		deep := o.Deep > 0 && depth < maxDepth && n%o.Deep == 0
		var base *sim.Host
		if deep {
			base = h.Clone()
			h.Record()
		}
		ended := done && s.At == len(r.Events)
		if err := j.judge(h, ended); err != nil {
			return Result{}, &Violation{State: s, Depth: depth, Err: err}
		}
		if !deep {
			return Result{}, nil
		}
		return j.cut(&Recording{Base: base, Events: h.Events(), Summed: j.Summed}, o.deeper(s), depth+1, ended)
	})
}

func (j Job) judge(h *sim.Host, done bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return j.Judge(h, done)
}

// deeper are the options for the recovery of a state.
func (o Options) deeper(s *State) Options {
	return Options{Seed: o.Seed + uint64(s.At), Limit: deepStates, Deep: deepStates / 2}
}

// visit calls f with the states that the options ask for, and the number of each.
func (r *Recording) visit(o Options, f func(s *State, n int) (Result, error)) (Result, error) {
	var done Result
	share, rng := 1.0, rand.New(rand.NewPCG(o.Seed, 0x5A))
	if o.Limit > 0 {
		share = float64(o.Limit) / float64(max(1, r.count(o)))
	}
	err := r.Each(o.Seed, func(s *State) error {
		if s.At < o.After || share < 1 && rng.Float64() >= share {
			return nil
		}
		done.States++
		sub, err := f(s, done.States)
		done.Deep += sub.States + sub.Deep
		return err
	})
	return done, err
}

// count is the number of states from o.After on.
func (r *Recording) count(o Options) (n int) {
	_ = r.epochs(func(pending []sim.Event, at int, _ string) error { // nothing can fail
		if at >= o.After {
			n += len(r.plans(pending, rand.New(rand.NewPCG(o.Seed, uint64(at)))))
		}
		return nil
	}, nil)
	return n
}
