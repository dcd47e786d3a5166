package ops

import "errors"

// acquireLeaf opens the active disk of a set. Once it is locked the set is asked
// again: another one may have become it just before.
func (h *Handle) acquireLeaf(r Ref) (*Engine, error) {
	const attempts = 8
	for range attempts {
		found, err := h.lib.Inspect(r)
		if err == nil {
			err = found.Err
		}
		if err != nil {
			return nil, err
		}
		h.set, h.ref, h.access = found, found.Leaf, NoFollow
		e, err := h.lib.acquire(found.Leaf, NoFollow)
		if errors.Is(err, errIsSet) {
			err = Errorf(ErrChanged, 0, "active disk of %s changed while it was opened", r.Path())
		}
		if err != nil {
			return nil, err
		}
		again, err := h.lib.Inspect(r)
		if err == nil && again.Err == nil && again.Leaf.Name == found.Leaf.Name {
			info, _, err := e.describe()
			if err == nil { // what was opened may be another file than what was looked at
				err = again.Set.judge(found.Leaf, again.Set.Leaf, info)
			}
			if err != nil {
				err = errors.Join(err, h.lib.release(e))
			}
			return e, err
		}
		if err = errors.Join(err, h.lib.release(e)); err != nil {
			return nil, err
		}
	}
	return nil, Errorf(ErrBusy, StatusOwned, "%s: its active disk changes all the time", r.Path())
}

// name is what the handle's file is called now: a set's active disk changes.
func (h *Handle) name() Ref {
	if h.set != nil {
		return h.engine().ref
	}
	return h.ref
}

// CacheID is the identity under which copies of what the handle reads are kept:
// that of the set's file for a set, whose active disk changes.
func (h *Handle) CacheID() FileID {
	if h.set != nil {
		return h.set.Stat.ID
	}
	return h.engine().id
}
