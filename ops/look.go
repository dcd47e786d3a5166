package ops

import "errors"

// Look opens an image with its parents for a passing glance: no locks, nothing
// that another program could notice. What this program has open is read through
// its engine, with what its writers have not flushed; of an image that somebody
// else writes, metadata may be seen half written, and fail.
func (l *Library) Look(r Ref) (*Handle, error) {
	if _, ok := l.MergedInto(r); ok {
		return l.Open(r, Read)
	}
	found, err := l.Inspect(r)
	if err != nil {
		return nil, err
	}
	st, err := found.Leaf.Dir.Stat(found.Leaf.Name)
	if err != nil {
		return nil, err
	}
	if l.isOpen(st.ID) {
		h, err := l.Open(r, Read)
		if !errors.Is(err, ErrBusy) { // but while an operation has it alone
			return h, err
		}
	}
	o := l.opts
	o.Cache = NewCache(layerCache) // the shared one is for images in use
	glance := NewLibrary(o)
	glance.unlocked, glance.inspected = true, l.inspected
	return glance.Open(r, Read)
}

func (l *Library) isOpen(id FileID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.mu.engines[id]
	return e != nil && e.use.refs > 0
}
