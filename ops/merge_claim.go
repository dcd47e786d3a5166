package ops

import (
	"errors"
	"slices"
)

// mergeUse is what an engine is in a merge under way; guarded by Library.mu.
type mergeUse struct {
	role     mergeRole
	leaf     bool     // of the source: nothing was made from it
	children []FileID // images whose chains may lead through it
	any      bool     // any may
}

// shuts tells whether guests are kept out.
func (u *mergeUse) shuts() bool { return u != nil && !(u.role == roleSource && u.leaf) }

// shutsChild tells whether an image may not be read through it.
func (u *mergeUse) shutsChild(id FileID) bool {
	return u != nil && !u.any && !slices.Contains(u.children, id)
}

// claim makes the files of the merge its own within this program: no other
// operation, no handle and no chain that does not lead through the source, from
// now on. ErrBusy where there is one already that does not go within a moment.
func (m *merger) claim(kids []FileID) error {
	return m.lib.whenFree(func() error {
		if err := m.othersLocked(kids); err != nil {
			return err
		}
		for i, e := range m.line {
			u := &mergeUse{role: roleBetween, leaf: len(kids) == 0, children: kids}
			if i > 0 {
				u.children = []FileID{m.line[i-1].id}
			}
			switch i {
			case 0:
				u.role = roleSource
			case len(m.line) - 1:
				u.role = roleDestination
				u.children, u.any = append(u.children, kids...), m.state == mergeMoved
			}
			e.use.merge, e.use.operation = u, opMergeName
		}
		m.claimed = true
		return nil
	})
}

// merging tells whether a merge that runs here has claimed an engine, or is
// through with it.
func (l *Library) merging(e *Engine) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return e.use.merge != nil || e.use.movedOn
}

// unclaim takes claim back.
func (m *merger) unclaim() {
	if !m.claimed {
		return
	}
	m.lib.mu.Lock()
	defer m.lib.mu.Unlock()
	for i, e := range m.line {
		e.use.merge = nil
		if i > 0 { // the source's operation is that of its own handle
			e.use.operation = ""
		}
	}
	m.claimed = false
	m.lib.freedLocked()
}

// othersLocked says who is in the way.
func (m *merger) othersLocked(kids []FileID) error {
	for i, e := range m.line {
		use, own := &e.use, 0
		if i == 0 {
			own = 1
		}
		switch {
		case m.set != nil && i > 0 && len(use.handles) > 0:
			return Errorf(ErrBusy, StatusOwned, "%s is open", e.ref.Path())
		case i > 0 && use.operation != "":
			return e.operated(use.operation)
		case use.still > 0:
			return Errorf(ErrBusy, StatusOwned, "%s is read by an operation", e.ref.Path())
		case use.named > own && (i > 0 || len(kids) > 0):
			return Errorf(ErrBusy, StatusOwned, "%s is open", e.ref.Path())
		}
		if m.state == mergeMoved && e == m.dest() {
			continue // it is what other images are made from, and changes no more
		}
		if err := m.chainsLocked(e, i, kids); err != nil {
			return err
		}
	}
	return nil
}

// chainsLocked looks whether every chain through file i of the merge comes from
// its source, by way of an image that is known.
func (m *merger) chainsLocked(e *Engine, i int, kids []FileID) error {
	known := 0
	for _, x := range m.lib.mu.engines {
		if x.use.chain == nil {
			continue
		}
		l := x.use.chain.layers()
		at := slices.Index(l, e)
		if at <= 0 {
			continue
		}
		known++
		if at < i || !slices.Equal(l[at-i:at], m.line[:i]) || at > i && !slices.Contains(kids, l[at-i-1].id) {
			return Errorf(ErrBusy, StatusParentOpen, "%s is the parent of %s, which is open", e.ref.Path(), x.ref.Path())
		}
	}
	if known != e.use.children {
		return Errorf(ErrBusy, StatusParentOpen, "%s is the parent of an image that is being opened", e.ref.Path())
	}
	return nil
}

// change makes the engine of a file of the merge writable, after everything that
// may forbid it was asked. Guests and children notice nothing.
func (m *merger) change(e *Engine) (Writer, error) {
	info, _, err := e.describe()
	if err != nil {
		return nil, err
	}
	if info.ReadOnly != "" {
		return nil, Errorf(ErrReadOnly, 0, "%s: %s", e.ref.Path(), info.ReadOnly)
	}
	if ask := m.lib.opts.BeforeWrite; ask != nil {
		if err := ask(e.id); err != nil {
			return nil, err
		}
	}
	m.lib.mu.Lock()
	e.use.upgraded = true
	m.lib.mu.Unlock()
	e.mu.RLock()
	already := e.mu.writer != nil
	e.mu.RUnlock()
	if !already {
		if err := e.upgrade(e.ref, NoFollow, OpenOptions{Quiet: true}); err != nil {
			return nil, err
		}
		m.upgraded = append(m.upgraded, e)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.mu.writer, e.refuseWriteLocked()
}

// owners refuses files that a set manages.
func (m *merger) owners() error {
	if m.set != nil {
		return nil
	}
	for _, e := range m.line {
		owner, err := m.res.owner(e.id)
		if err != nil {
			return err
		}
		if owner != nil {
			return Errorf(errors.ErrUnsupported, StatusWrongState, "%s belongs to the set %s", e.ref.Path(), owner.Ref.Path())
		}
	}
	return nil
}
