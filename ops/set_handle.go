package ops

import (
	"errors"
	iofs "io/fs"
)

// leafAttempts is how often the active disk of a set is asked for: it may be discarded
// between the look at the set and the look at its file.
const leafAttempts = 8

// acquireLeaf opens the active disk of a set. Once it is locked the set is asked
// again: another one may have become it just before.
func (h *Handle) acquireLeaf(r Ref) (*Engine, error) {
	var gone error
	for range leafAttempts {
		e, err := h.tryLeaf(r)
		if gone = nil; errors.Is(err, iofs.ErrNotExist) {
			gone = err
			continue
		}
		if e != nil || err != nil {
			return e, err
		}
	}
	if gone != nil {
		return nil, gone
	}
	return nil, Errorf(ErrBusy, StatusOwned, "%s: its active disk changes all the time", r.Path())
}

// tryLeaf is acquireLeaf once; nil and no error where the active disk changed.
func (h *Handle) tryLeaf(r Ref) (*Engine, error) {
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
		// What was opened may be another file than what was looked at.
		if _, err := again.Set.judged(e, again.Set.Leaf); err != nil {
			return nil, errors.Join(err, h.lib.release(e))
		}
		return e, nil
	}
	return nil, errors.Join(err, h.lib.release(e))
}

// Active is a set as it is now, and the file of its active disk. found is what was
// known of it: that disk may have been discarded since.
func (l *Library) Active(found *Found) (*Found, FileStat, error) {
	for try := 1; ; try++ {
		st, err := found.Leaf.Dir.Stat(found.Leaf.Name)
		if try == leafAttempts || !errors.Is(err, iofs.ErrNotExist) {
			return found, st, err
		}
		again, ierr := l.Inspect(found.Ref)
		if ierr != nil || again.Err != nil || again.Set == nil {
			return found, st, err
		}
		found = again
	}
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
