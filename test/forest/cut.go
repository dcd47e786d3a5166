package forest

import (
	"errors"
	"fmt"
	"syscall"

	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// fault is what a host answers from some call on.
type fault struct {
	err   error
	short bool // a write stores half of it
	stays bool
}

var faults = []fault{
	{syscall.EIO, false, false}, {syscall.ENOSPC, false, false}, {syscall.ENOSPC, true, false},
	{syscall.EIO, false, true}, {syscall.ENOSPC, false, true},
}

func (x fault) fits(c sim.Call) bool {
	switch c.Op {
	case sim.OpClose:
		return false // the kernel closes whatever it answers
	case sim.OpWrite:
		return true
	case sim.OpCreate, sim.OpMkdir, sim.OpRename, sim.OpTruncate, sim.OpAllocate, sim.OpPunch, sim.OpSync, sim.OpSyncDir:
		return !x.short
	}
	return x.err == syscall.EIO && !x.short
}

// fail lets one call of the action fail, or all from there on, asks what is left,
// and lets another program go on. What it came to is where the action then begins.
func (f *Forest) fail(a *action) error {
	if err := f.restart(); err != nil {
		return err
	}
	calls, x := 0, faults[f.rng.IntN(len(faults))]
	trial := f.host.Clone()
	trial.SetFault(func(sim.Call) error { calls++; return nil })
	lib := f.library(trial)
	if err := errors.Join(a.do(lib).Err, lib.Close()); err != nil {
		return fmt.Errorf("before the fault: %w", err)
	}
	k, at := 1+f.rng.IntN(calls), sim.Call{}
	h := f.host.Clone()
	h.SetFault(func(c sim.Call) error {
		if c.N != k && !(x.stays && c.N > k) || !x.fits(c) {
			return nil
		}
		if at.N == 0 {
			at = c
		}
		if x.short {
			return &sim.ShortWrite{Stored: int(c.Len / 2 / 512 * 512), Err: x.err}
		}
		return x.err
	})
	lib = f.library(h)
	answer := a.do(lib)
	h.SetFault(nil)
	say := func(what string, err error) error {
		return fmt.Errorf("%s, call %d, %s %s %s: %v, short %t, stays %t, answered %v: %s: %w", a.op, at.N, at.Op, at.Path, at.Label, x.err, x.short, x.stays, answer.Err, what, err)
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
