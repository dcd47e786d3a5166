package ops

import (
	"errors"
	"path"
	"slices"
)

// leafSwitch makes another disk the active one of a set while guests have it open.
type leafSwitch struct {
	set  *setInUse
	op   *Operation // on the active disk, through the set
	to   *Engine    // which nobody else knows
	next *Set       // what the set is to say
	// under is the chain of to below it: that of the active disk and itself where it
	// is nil.
	under layers
	// holds, if not nil, is asked once nobody can write any more.
	holds func(leaf Info) error
}

// run holds up every guest, makes what they wrote durable, commits the set, and
// lets them go on with the other disk. After a crash there is
//
//	flush      the old disk, with everything that was answered
//	commit     the old disk or the new one, which read the same in a snapshot
//
// and what guests write from then on is in the new disk alone. When nobody can know
// whether the commit was made the old disk refuses writes: what it took would be
// lost where the set says the new one after a crash.
func (w *leafSwitch) run() error {
	from, chain := w.op.engine(), w.op.chain
	old, err := w.hold(chain)
	if err != nil {
		return err
	}
	w.op.lib.moveLeaf(from, w.to, w.under == nil)
	if w.under != nil { // what the chain read before, it reads no more
		err = w.op.lib.releaseParents(old[1:])
	}
	return err
}

// hold is the part of run in which guests wait; it answers what the chain was.
func (w *leafSwitch) hold(chain *Chain) (layers, error) {
	l, err := chain.lock()
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	leaf := l[0]
	if err := leaf.refuseWriteLocked(); err != nil {
		return nil, err
	}
	if err := leaf.mu.writer.Flush(); err != nil {
		if !outOfSpace(err) {
			leaf.refuseWrites(Errorf(ErrPoisoned, 0, "%s: flush failed: %v", leaf.ref.Path(), err))
		}
		return nil, err
	}
	if w.holds != nil {
		if err := w.holds(leaf.mu.layer.Info()); err != nil {
			return nil, err
		}
	}
	if err := w.set.commit(w.next); err != nil {
		if errors.Is(err, ErrPoisoned) {
			leaf.refuseWrites(Errorf(ErrPoisoned, 0, "%s: its set could not be changed: %v", leaf.ref.Path(), err))
		}
		return nil, err
	}
	under := w.under
	if under == nil {
		under = l
	}
	now := slices.Concat(layers{w.to}, under)
	chain.now.Store(&now)
	return l, nil
}

// moveLeaf makes the handles of from handles of to, with the chain that they share,
// which leads from to now; through from, if below says so.
func (l *Library) moveLeaf(from, to *Engine, below bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	moved := 0
	for _, h := range handlesOf(from) {
		h.countLocked(-1)
		h.at.Store(to)
		h.countLocked(1)
		moved++
	}
	from.use.refs -= moved
	to.use.refs += moved
	if below {
		from.use.refs++
		from.use.children++
		from.visits.Add(1)
	}
	to.use.chain, from.use.chain = from.use.chain, nil
	from.use.left, to.use.left = true, false
	l.freedLocked()
}

func handlesOf(e *Engine) []*Handle {
	list := make([]*Handle, 0, len(e.use.handles))
	for h := range e.use.handles {
		list = append(list, h)
	}
	return list
}

// filesOf are the names of the layers that lie in the set's own folder.
func (s *setInUse) filesOf(l layers) []string {
	var list []string
	for _, e := range l {
		if s.beside(path.Base(e.ref.Name)).Path() == e.ref.Path() {
			list = append(list, path.Base(e.ref.Name))
		}
	}
	return list
}
