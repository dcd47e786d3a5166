package forest

import (
	"errors"
	"fmt"

	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// fail lets one call of the action fail, or all from there on, asks what is left,
// and lets another program go on. What it came to is where the action then begins.
func (f *Forest) fail(a *action) error {
	if err := f.restart(); err != nil {
		return err
	}
	calls, x := 0, sim.Failings[f.rng.IntN(len(sim.Failings))]
	trial := f.host.Clone()
	trial.SetFault(func(sim.Call) error { calls++; return nil })
	lib := f.library(trial)
	if err := errors.Join(a.do(lib).Err, lib.Close()); err != nil {
		return fmt.Errorf("before the fault: %w", err)
	}
	k, at := 1+f.rng.IntN(calls), sim.Call{}
	h := f.host.Clone()
	x.From(h, k, func(c sim.Call) {
		if at.N == 0 {
			at = c
		}
	})
	lib = f.library(h)
	answer := a.do(lib)
	h.SetFault(nil)
	say := func(what string, err error) error {
		return fmt.Errorf("%s, call %d, %s %s %s: %v, short %t, stays %t, answered %v: %s: %w", a.op, at.N, at.Op, at.Path, at.Label, x.Err, x.Short, x.Stays, answer.Err, what, err)
	}
	if answer.Err != nil && at.N == 0 || answer.Err == nil && at.Op == sim.OpSync {
		return say("that is wrong", errors.ErrUnsupported)
	}
	if err := a.judge(lib, h, f.view()); err != nil {
		return say("the program that saw it", err)
	}
	_ = lib.Close() // what could not end is seen when it is opened again
	lib = f.library(h)
	for _, next := range []struct {
		what string
		do   func() error
	}{
		{"the next program", func() error { return a.judge(lib, h, f.view()) }},
		{"to go on", func() error { return a.complete(lib, h) }},
		{"in the end", func() error { return reads(lib, a.after) }},
		{"to close", lib.Close},
	} {
		if err := next.do(); err != nil {
			return say(next.what, err)
		}
	}
	return nil
}

// crashStates are looked at of one action, about so many.
const crashStates = 12

// crash cuts the power while the action runs elsewhere, and lets another program
// go on from what is left.
func (f *Forest) crash(a *action) error {
	if err := f.restart(); err != nil {
		return err
	}
	before := f.view()
	job := crash.Job{
		Do: func(h *sim.Host) error {
			lib := f.library(h)
			return errors.Join(a.do(lib).Err, lib.Close())
		},
		Judge: func(h *sim.Host, done bool) error {
			lib := f.library(h)
			err := a.judge(lib, h, before)
			if done { // what was answered is there
				err = reads(lib, a.after)
			}
			if err == nil {
				err = a.complete(lib, h)
			}
			if err == nil {
				err = reads(lib, a.after)
			}
			return errors.Join(err, lib.Close())
		},
	}
	_, err := job.Run(f.host.Clone(), crash.Options{Seed: f.rng.Uint64(), Limit: crashStates, Deep: crashStates})
	return err
}
