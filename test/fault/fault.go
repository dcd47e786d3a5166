// Package fault fails every call that a workload makes on its host, one after
// the other: the k-th call answers an errno once or for good, then the fault is
// gone. What must hold (contract C6): the guest is told, and nothing it was told
// is wrong; the disk that is open still reads right; where the fault was passing
// and poisoned nothing, the same request succeeds; and the file keeps its
// promises wherever the power goes.
package fault

import (
	"errors"
	"fmt"
	"syscall"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// Fault is what a host answers.
type Fault struct {
	Name   string
	Err    error
	Short  bool // half of a write is stored first
	Sticky bool // for good, until the workload ends
}

// Faults are all kinds, each once and sticky.
func Faults() []Fault {
	var list []Fault
	for _, sticky := range []bool{false, true} {
		list = append(list,
			Fault{"EIO", syscall.EIO, false, sticky},
			Fault{"ENOSPC", syscall.ENOSPC, false, sticky},
			Fault{"EDQUOT", syscall.EDQUOT, false, sticky},
			Fault{"EFBIG", syscall.EFBIG, false, sticky},
			Fault{"short write", syscall.ENOSPC, true, sticky},
			Fault{"EOPNOTSUPP", syscall.EOPNOTSUPP, false, sticky},
		)
	}
	return list
}

func (f Fault) String() string {
	if f.Sticky {
		return f.Name + ", sticky"
	}
	return f.Name
}

// Fits tells whether a host could answer this to such a call.
func (f Fault) Fits(op sim.Op) bool {
	switch op {
	case sim.OpRead, sim.OpStat, sim.OpNextData:
		return f.Name == "EIO"
	case sim.OpWrite, sim.OpTruncate:
		return f.Name != "EOPNOTSUPP" && (!f.Short || op == sim.OpWrite)
	case sim.OpSync:
		return f.Name != "EOPNOTSUPP" && !f.Short && f.Name != "EFBIG"
	case sim.OpPunch, sim.OpAllocate:
		return !f.Short
	}
	return false
}

// answer is what the hook returns for a call.
func (f Fault) answer(c sim.Call) error {
	if f.Short {
		return &sim.ShortWrite{Stored: int(c.Len / 2 / 512 * 512), Err: f.Err} // hosts run out between sectors
	}
	return f.Err
}

// Calls lists the calls that a workload makes after opening, with their places
// in the code.
func Calls(s *crash.Subject, p *crash.Prepared, q crash.Sequence) ([]sim.Call, error) {
	h := p.Host.Clone()
	g, err := crash.NewGuest(s, h)
	if err != nil {
		return nil, err
	}
	var calls []sim.Call
	h.TraceSites(true)
	h.SetFault(func(c sim.Call) error { calls = append(calls, c); return nil })
	for _, step := range append(q[:len(q):len(q)], crash.Step{Name: "close", Do: (*crash.Guest).Close}) {
		if err := step.Do(g); err != nil {
			return nil, fmt.Errorf("%s: %w", step.Name, err)
		}
	}
	return calls, nil
}

// run is one workload with one fault.
type run struct {
	s         *crash.Subject
	g         *crash.Guest
	f         Fault
	k         int
	n         int      // calls so far
	hit       sim.Call // the call that failed first
	synced    bool     // a sync of this opening failed
	mayPoison bool     // that, or a flush did: an error of either may poison
}

// Inject runs a workload whose k-th call fails, and then cuts the power in up to
// states of its states. It gives the call that failed.
func Inject(s *crash.Subject, p *crash.Prepared, q crash.Sequence, k int, f Fault, states int) (sim.Call, error) {
	h := p.Host.Clone()
	h.Record()
	g, err := crash.NewGuest(s, h)
	if err != nil {
		return sim.Call{}, err
	}
	r := &run{s: s, g: g, f: f, k: k}
	h.SetFault(r.hook)
	if err := r.steps(q); err != nil {
		return r.hit, err
	}
	h.SetFault(nil)
	if err := r.live(p); err != nil {
		return r.hit, fmt.Errorf("the open disk: %w", err)
	}
	h.SetFault(r.hook)
	if !g.Closed() {
		_ = g.Close() // may fail, by the fault or for what failed before
	}
	h.SetFault(nil)
	events := h.Events()
	o := crash.Options{Seed: uint64(k), Limit: states}
	if _, err := s.Run(&crash.Recording{Base: p.Host.Clone(), Events: events, Summed: s.Summed}, p.History, o); err != nil {
		return r.hit, err
	}
	history := p.History.Clone()
	for _, e := range events {
		history.Note(e)
	}
	if _, err := s.Verify(h.Clone(), history); err != nil {
		return r.hit, fmt.Errorf("after the workload: %w", err)
	}
	return r.hit, nil
}

func (r *run) hook(c sim.Call) error {
	r.n++
	if r.n != r.k && !(r.f.Sticky && r.n > r.k) || !r.f.Fits(c.Op) {
		return nil
	}
	if r.hit.N == 0 {
		r.hit = c
	}
	if c.Op == sim.OpSync {
		r.synced = true
	}
	return r.f.answer(c)
}

// steps runs the workload; what fails because of a passing fault is asked again.
func (r *run) steps(q crash.Sequence) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	for _, step := range q {
		before := r.synced
		err := step.Do(r.g)
		if r.synced && !before && err == nil {
			return fmt.Errorf("a sync failed and %s answered nothing", step.Name)
		}
		if err != nil && r.hit.N == 0 {
			return fmt.Errorf("%s failed before the fault: %w", step.Name, err)
		}
		if step.Name == "reopen" || step.Name == "reopen quietly" || step.Name == "kill" {
			// After a failed sync the host may show what is not on the disk, and
			// never write it: nobody can go on from there.
			if r.synced || r.g.Closed() {
				r.synced = false
				return nil
			}
			r.mayPoison = false
			continue
		}
		if err == nil || r.f.Sticky {
			continue
		}
		r.mayPoison = r.mayPoison || r.synced || step.Lasts
		if again := step.Do(r.g); again != nil && !(r.mayPoison && errors.Is(again, ops.ErrPoisoned)) {
			return fmt.Errorf("%s fails again without a fault: %w", step.Name, again)
		}
	}
	return r.poisoned()
}

// poisoned asks that a failed sync is remembered for good.
func (r *run) poisoned() error {
	if !r.synced {
		return nil
	}
	if _, err := r.g.Writer.WriteAt(make([]byte, r.g.Unit), 0); !errors.Is(err, ops.ErrPoisoned) {
		return fmt.Errorf("a sync failed, then a write answered %v", err)
	}
	if err := r.g.Writer.Flush(); !errors.Is(err, ops.ErrPoisoned) {
		return fmt.Errorf("a sync failed, then a flush answered %v", err)
	}
	return nil
}

// live reads the disk through the writer that saw the fault: each sector holds
// the last value that was taken, or one of those refused since.
func (r *run) live(p *crash.Prepared) error {
	if r.g.Closed() {
		return nil
	}
	view, err := r.s.Read(r.g.Host, r.g.Writer)
	if err != nil {
		return err
	}
	history := p.History.Clone()
	for _, e := range r.g.Host.Events() {
		history.Note(e)
	}
	history.Settle()
	return view.Within(history)
}
