package track

import (
	"errors"
	iofs "io/fs"
	"path"

	"vhdfs/ops"
)

const newFilePerm = 0o600 // what a disk holds is for its owner, and so is where

// Create implements [ops.Tracking]. After a crash there is
//
//	remove           nothing: changes are not tracked
//	regions, sync    a file without a header, which is worthless
//	headers, sync    the file
//	sync of folder   the file, durably
func (Files) Create(image ops.Ref, d ops.TrackedDisk) (ops.Tracker, error) {
	again, err := Files{}.removeLost(image)
	if err != nil {
		return nil, err
	}
	h := header{
		geometry: newGeometry(d.Size), state: stateOpen, flags: flagLoose, active: 1,
		size: d.Size, diskID: d.DiskID, expected: d.LinkID,
	}
	if again {
		h.flags |= flagAgain
	}
	t, err := create(image, d, h)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// removeLost removes a file that is there, and tells whether one was.
func (Files) removeLost(image ops.Ref) (bool, error) {
	err := image.Dir.Remove(fileName(image))
	if errors.Is(err, iofs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// create lays a file with an empty table out.
func create(image ops.Ref, d ops.TrackedDisk, h header) (_ *Tracker, err error) {
	if err := h.geometry.check(h.size); err != nil {
		return nil, ops.Errorf(ops.ErrUsage, 0, "%s: a disk of %d bytes is too long to be tracked", image.Path(), h.size)
	}
	f, err := image.Dir.Create(fileName(image), newFilePerm)
	if err != nil {
		return nil, err
	}
	t := newTracker(image, d)
	t.file.f, t.file.used, t.file.loosened, t.geometry = f, true, true, h.geometry
	t.file.h, t.file.slot = h, 1
	t.mu.active, t.mu.regions = h.active, make([]live, h.regions(h.size))
	if err := t.layOut(h); err != nil {
		return nil, errors.Join(err, f.Close(), image.Dir.Remove(fileName(image)))
	}
	return t, nil
}

func (t *Tracker) layOut(h header) error {
	t.file.Lock()
	defer t.file.Unlock()
	all := make([]int64, len(t.mu.regions))
	for i := range all {
		all[i] = int64(i)
	}
	if err := t.putRegionsLocked(all, "track.new"); err != nil {
		return err
	}
	for range headerAt { // both, so that there is room for either
		if err := t.putLocked(h, "track.header"); err != nil {
			return err
		}
	}
	return t.image.Dir.Sync(path.Dir(t.image.Name), "track.name")
}

// Remove implements [ops.Tracking].
func (Files) Remove(image ops.Ref) error {
	was, err := Files{}.removeLost(image)
	if err != nil || !was {
		return err
	}
	return image.Dir.Sync(path.Dir(image.Name), "track.gone")
}

// Move implements [ops.Tracking]. After a crash there is one of both, or none.
func (Files) Move(from, to ops.Ref) error {
	if _, err := from.Dir.Stat(fileName(from)); errors.Is(err, iofs.ErrNotExist) {
		return Files{}.Remove(to)
	}
	if _, err := (Files{}).removeLost(to); err != nil {
		return err
	}
	if err := from.Dir.Rename(fileName(from), fileName(to)); err != nil {
		return err
	}
	if err := to.Dir.Sync(path.Dir(to.Name), "track.name"); err != nil {
		return err
	}
	return from.Dir.Sync(path.Dir(from.Name), "track.gone")
}

// Inherit implements [ops.Tracking]. The new file has a session of its own, so that
// two children of one disk never give the same id. After a crash it is whole, or
// worthless, or not there.
func (Files) Inherit(from ops.Ref, was ops.TrackedDisk, to ops.Ref, is ops.TrackedDisk) (err error) {
	src, err := open(from, was, false)
	if src == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if src.isLost() != nil {
		return nil
	}
	h := src.file.h
	h.number, h.state, h.flags, h.stamp = 0, stateLost, flagLoose, ops.GUID{} // until it has the table
	h.active++                                                                // what the child is given counts as older than what is written to it
	h.size, h.nextSize, h.diskID, h.expected, h.announced = was.Size, 0, is.DiskID, is.LinkID, ops.GUID{}
	dst, err := create(to, is, h)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err = dst.copyFrom(src); err == nil && is.Size != was.Size {
		err = dst.Resize(is.Size, func() error { return nil })
	}
	if err == nil {
		err = dst.Suspend(ops.GUID{})
	}
	if err == nil {
		err = dst.Resume(is)
	}
	if err != nil {
		return errors.Join(err, Files{}.Remove(to))
	}
	return nil
}

// copyFrom takes the table of another file over.
func (t *Tracker) copyFrom(src *Tracker) error {
	t.file.Lock()
	defer t.file.Unlock()
	var list []int64
	for i := range t.mu.regions {
		l := &src.mu.regions[i]
		if l.version == 0 && l.bits == nil {
			continue
		}
		b, err := src.page(int64(i), l.version, src.mu.active)
		if err != nil {
			return err
		}
		for k := range t.perRegion() {
			if l.has(k, k+1) {
				le.PutUint32(b[pageHead+4*k:], src.mu.active)
			}
		}
		encodePage(b, int64(i), 1)
		if _, err := t.file.f.WriteAt(b, t.pageAt(int64(i), 1)); err != nil {
			return err
		}
		list = append(list, int64(i))
	}
	if err := t.file.f.Sync("track.pages"); err != nil {
		return err
	}
	for _, i := range list {
		t.mu.regions[i].version = 1
	}
	return t.putRegionsLocked(list, "track.copied")
}
