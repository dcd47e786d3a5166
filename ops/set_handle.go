package ops

import (
	"errors"
	iofs "io/fs"
	"time"
)

// acquireLeaf opens the active disk of a set. Once it is locked the set is asked
// again: another one may have become it just before. A disk that is not there was
// discarded since the look at the set, unless the next look names it again.
func (h *Handle) acquireLeaf(r Ref) (*Engine, error) {
	gone := ""
	for end := time.Now().Add(releaseWait); time.Now().Before(end); {
		e, leaf, err := h.tryLeaf(r)
		if errors.Is(err, iofs.ErrNotExist) && leaf != gone {
			gone = leaf
			continue
		}
		if e != nil || err != nil {
			return e, err
		}
	}
	return nil, Errorf(ErrBusy, StatusOwned, "%s: its active disk changes all the time", r.Path())
}

// tryLeaf is acquireLeaf once, and the name of the disk as far as the set was read; no
// engine and no error where the active disk changed.
func (h *Handle) tryLeaf(r Ref) (_ *Engine, leaf string, err error) {
	found, err := h.lib.Inspect(r)
	if err != nil {
		return nil, "", err
	}
	leaf = found.Leaf.Name
	if found.Err != nil {
		return nil, leaf, found.Err
	}
	h.set, h.ref, h.access = found, found.Leaf, NoFollow
	e, err := h.lib.acquire(found.Leaf, NoFollow)
	if errors.Is(err, errIsSet) {
		err = Errorf(ErrChanged, 0, "active disk of %s changed while it was opened", r.Path())
	}
	if err != nil {
		return nil, leaf, err
	}
	again, err := h.lib.Inspect(r)
	if err == nil && again.Err == nil && again.Leaf.Name == leaf {
		// What was opened may be another file than what was looked at.
		if _, err := again.Set.judged(e, again.Set.Leaf); err != nil {
			return nil, leaf, errors.Join(err, h.lib.release(e))
		}
		return e, leaf, nil
	}
	return nil, leaf, errors.Join(err, h.lib.release(e))
}

// Active is a set as it is now, and the file of its active disk. found is what was
// known of it: that disk may have been discarded since, and so may the next one. The
// error is the answer where the set names a disk again that is not there.
func (l *Library) Active(found *Found) (*Found, FileStat, error) {
	for end := time.Now().Add(releaseWait); ; {
		st, err := found.Leaf.Dir.Stat(found.Leaf.Name)
		if err == nil && found.Err == nil || err != nil && !errors.Is(err, iofs.ErrNotExist) || time.Now().After(end) {
			return found, st, err
		}
		again, ierr := l.Inspect(found.Ref)
		if ierr != nil || again.Set == nil || again.Leaf.Name == found.Leaf.Name && again.Err != nil {
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
