package track

import (
	"vhdfs/ops"
)

// Begin implements [ops.Tracker].
//
//	header    either LinkID is the disk's
//	link      the disk has the new one
//	header    the new one alone: a disk that is put back has another
func (t *Tracker) Begin(current ops.GUID, link func(ops.GUID) error) error {
	if t.begun.Load() {
		return nil
	}
	t.file.Lock()
	defer t.file.Unlock()
	if t.begun.Load() {
		return nil
	}
	h := t.file.h
	h.state, h.stamp = stateOpen, ops.GUID{}
	h.expected, h.announced = current, ops.NewGUID()
	if !t.file.loosened {
		h.flags &^= flagLoose
	}
	if err := t.putLocked(h, "track.announce"); err != nil {
		return t.failLocked(err)
	}
	if err := t.linkLocked(link); err != nil {
		return err
	}
	t.begun.Store(true)
	return nil
}

// linkLocked gives the disk the LinkID that the header announces.
func (t *Tracker) linkLocked(link func(ops.GUID) error) error {
	h := t.file.h
	if err := link(h.announced); err != nil {
		return err
	}
	h.expected, h.announced = h.announced, ops.GUID{}
	if err := t.putLocked(h, "track.linked"); err != nil {
		return t.failLocked(err)
	}
	return nil
}

// Loosen implements [ops.Tracker].
func (t *Tracker) Loosen() error {
	t.file.Lock()
	defer t.file.Unlock()
	if t.isLost() != nil || t.file.loosened {
		return nil
	}
	h := t.file.h
	h.state, h.stamp = stateOpen, ops.GUID{}
	h.flags |= flagLoose
	if err := t.putLocked(h, "track.loosen"); err != nil {
		return t.failLocked(err)
	}
	t.file.loosened = true
	return nil
}

// Resize implements [ops.Tracker].
//
//	regions    those of what is added are open, and no header knows of them
//	header     either size is the disk's
//	do
//	header     the new one alone
//
// What is cut off keeps its numbers: where the disk grows again, all of it counts
// as changed once more.
func (t *Tracker) Resize(size int64, do func() error) error {
	if err := t.announceSize(size); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err // it has one of both sizes
	}
	t.file.Lock()
	defer t.file.Unlock()
	if t.isLost() != nil {
		return nil
	}
	h := t.file.h
	h.size, h.nextSize = size, 0
	if err := t.putLocked(h, "track.resized"); err != nil {
		return t.failLocked(err)
	}
	return nil
}

func (t *Tracker) announceSize(size int64) error {
	t.file.Lock()
	defer t.file.Unlock()
	if t.isLost() != nil {
		return nil
	}
	h := t.file.h
	old := h.size
	if h.nextSize = size; size == old {
		h.nextSize = 0
	}
	err := h.geometry.check(max(size, old))
	if err == nil && size > old {
		err = t.addLocked(old, size)
	}
	if err == nil {
		err = t.putLocked(h, "track.resize")
	}
	if err != nil {
		return t.failLocked(err)
	}
	return nil
}

// addLocked makes all of [old, size) changed, before the disk has it.
func (t *Tracker) addLocked(old, size int64) error {
	first, end := old/t.granule, t.granules(size)
	var list []int64
	t.mu.Lock()
	for int64(len(t.mu.regions)) < t.regions(size) {
		t.mu.regions = append(t.mu.regions, live{})
	}
	t.each(first, end, func(i, from, to int64) {
		l := &t.mu.regions[i]
		l.open = t.mu.active
		l.set(from, to)
		l.fresh = true
		list = append(list, i)
	})
	t.mu.Unlock()
	if err := t.putRegionsLocked(list, "track.grow"); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range list {
		t.mu.regions[i].ready = true
	}
	return nil
}

// Suspend implements [ops.Tracker]. From here on the table is whole: whether the
// disk's session ends cleanly or not, the file is true.
func (t *Tracker) Suspend(stamp ops.GUID) error {
	t.file.Lock()
	defer t.file.Unlock()
	if t.isLost() != nil {
		return nil
	}
	if t.file.idle = !t.file.used && stamp == t.opened.Stamp; t.file.idle {
		return nil
	}
	err := t.settleLocked(true)
	if err == nil {
		h := t.file.h
		h.state, h.stamp = stateOpen, ops.GUID{}
		h.flags |= flagLoose
		err = t.putLocked(h, "track.suspend")
	}
	if err != nil {
		return t.failLocked(err)
	}
	return nil
}

// Resume implements [ops.Tracker].
func (t *Tracker) Resume(d ops.TrackedDisk) error {
	t.file.Lock()
	defer t.file.Unlock()
	if t.isLost() != nil || t.file.idle || d.Dirty {
		return nil
	}
	h := t.file.h
	if d.LinkID != h.expected && (h.announced.IsZero() || d.LinkID != h.announced) {
		return t.failLocked(ops.Errorf(ops.ErrChanged, 0, "tracking file: the session ends with DataWriteGuid %s, not %s", d.LinkID, h.expected))
	}
	h.state, h.stamp, h.flags = stateClean, d.Stamp, h.flags&^flagLoose
	h.size, h.nextSize, h.diskID = d.Size, 0, d.DiskID
	h.expected, h.announced = d.LinkID, ops.GUID{}
	if err := t.putLocked(h, "track.clean"); err != nil {
		return t.failLocked(err)
	}
	t.begun.Store(false)
	return nil
}
