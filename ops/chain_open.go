package ops

import "errors"

// unchanged looks whether the parents are still what the chain was made of, and
// still where they were. One that has no name any more is not changed by that.
func (c *Chain) unchanged() error {
	l, err := c.rLock()
	if err != nil {
		return err
	}
	defer l.rUnlock()
	return l.unchangedLocked()
}

func (l layers) unchangedLocked() error {
	for _, e := range l[1:] {
		st, err := e.file.Stat()
		if err != nil {
			return err
		}
		if err := e.unchangedLocked(st); err != nil {
			return err
		}
		named, err := e.ref.Dir.Stat(e.ref.Name)
		if err == nil && named.ID != e.id {
			return Errorf(ErrChanged, StatusIDMismatch, "parent %s of %s is another file now", e.ref.Path(), l[0].ref.Path())
		}
	}
	return nil
}

// join makes the chain of a handle's engine, or takes the one that its handles
// share. A handle that goes over to another engine meanwhile takes the chain of that.
func (l *Library) join(h *Handle) (*Chain, error) {
	for {
		l.mu.Lock()
		e := h.engine()
		c := e.use.chain
		l.mu.Unlock()
		if c != nil {
			return c, c.unchanged()
		}
		c, err := l.follow(e)
		l.mu.Lock()
		first, moved := e.use.chain, h.engine() != e
		if err == nil && first == nil && !moved {
			e.use.chain = c
		}
		l.mu.Unlock()
		switch {
		case err == nil && first == nil && !moved:
			return c, nil
		case err == nil: // of no use
			err = l.releaseParents(c.layers()[1:])
		case moved: // and what it came from may be closed
			err = nil
		}
		if err != nil || !moved {
			return first, err
		}
	}
}

// follow opens the parents of an image, one after the other.
func (l *Library) follow(e *Engine) (*Chain, error) {
	c := layers{e}
	below := []FileID{e.id}
	res := &resolver{lib: l}
	for {
		last := c[len(c)-1]
		info, size, err := last.describe()
		if err == nil && info.Parent == nil {
			return newChain(c), nil
		}
		if err == nil && len(c) == MaxChain {
			err = tooDeep(e.ref)
		}
		var parent *Engine
		if err == nil {
			of := &Found{Ref: last.ref, Stat: last.since(), Format: last.format, Size: size, Info: info, Leaf: last.ref}
			parent, err = l.openParent(res, child{found: of, below: below})
		}
		if err != nil {
			return nil, errors.Join(err, l.releaseParents(c[1:]))
		}
		c = append(c, parent)
		below = append(below, parent.id)
	}
}

// openParent finds and opens a parent, and looks at the open file itself whether
// it is what was found.
func (l *Library) openParent(res *resolver, c child) (*Engine, error) {
	got, _, err := res.resolve(c)
	if err != nil {
		return nil, err
	}
	ref := got.found.Ref
	p, err := l.acquire(ref, Read|NoFollow)
	if errors.Is(err, errIsSet) {
		err = errReplaced(ref, c)
	}
	if err != nil {
		return nil, err
	}
	info, _, err := p.describe()
	own := c.found.Info
	if err == nil && (p.id != got.found.Stat.ID || p.format.Number != c.found.Format.Number ||
		info.LinkID != got.found.Info.LinkID || info.LogicalSector != own.LogicalSector) {
		err = errReplaced(ref, c)
	}
	if err == nil {
		err = l.askMergeOfParent(p, info.LinkID, c.found)
	}
	if err == nil {
		err = l.whenFree(func() error {
			if p.use.alone || p.use.merge.shutsChild(c.found.Stat.ID) {
				return p.operated(p.use.operation)
			}
			if p.use.writers > 0 {
				return Errorf(ErrBusy, StatusParentOpen, "%s is open for writing and cannot be the parent of %s", ref.Path(), c.found.Ref.Path())
			}
			p.use.children++
			p.visits.Add(1)
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(err, l.release(p))
	}
	return p, nil
}

func errReplaced(ref Ref, c child) error {
	return Errorf(ErrChanged, StatusIDMismatch, "parent %s of %s changed while it was opened", ref.Path(), c.found.Ref.Path())
}
