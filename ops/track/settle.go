package track

import (
	"fmt"
	"io"
	"math"
	"time"

	"vhdfs/ops"
)

// settling is a region whose page is written anew.
type settling struct {
	index int64
	was   region
	bits  []uint64 // nil: the page stays
}

// Settle implements [ops.Tracker].
func (t *Tracker) Settle(all bool) error {
	t.file.Lock()
	defer t.file.Unlock()
	if t.isLost() != nil {
		return nil
	}
	if err := t.settleLocked(all); err != nil {
		return t.failLocked(err)
	}
	return nil
}

// settleLocked closes regions, all of them or those that got nothing new since it
// was called last:
//
//	pages        in the places that do not count: a crash makes all of the regions changed
//	sync
//	regions      with these pages, closed unless something was noted meanwhile
//	sync         the other places may be written next time
func (t *Tracker) settleLocked(all bool) error {
	list := t.settlings(all)
	if len(list) == 0 {
		return nil
	}
	written := false
	for _, s := range list {
		if s.bits == nil {
			continue
		}
		if err := t.putPageLocked(s); err != nil {
			return err
		}
		written = true
	}
	if written {
		if err := t.file.f.Sync("track.pages"); err != nil {
			return fmt.Errorf("tracking file: track.pages: %w", err)
		}
	}
	return t.putRegionsLocked(t.closed(list), "track.close")
}

// settlings are the regions to be closed.
func (t *Tracker) settlings(all bool) []settling {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []settling
	for i := range t.mu.regions {
		l := &t.mu.regions[i]
		if !l.ready {
			continue
		}
		if l.recent && !all {
			l.recent = false
			continue
		}
		s := settling{index: int64(i), was: l.region}
		if l.fresh {
			s.bits = append([]uint64(nil), l.bits...)
			l.fresh = false
		}
		list = append(list, s)
	}
	return list
}

// closed notes which pages count, and closes their regions: nobody writes to a
// granule of one that is not noted before it is open again.
func (t *Tracker) closed(list []settling) []int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := make([]int64, 0, len(list))
	for _, s := range list {
		l := &t.mu.regions[s.index]
		if s.bits != nil {
			l.version = s.was.version + 1
		}
		if !l.fresh {
			l.open, l.ready = 0, false
		}
		changed = append(changed, s.index)
	}
	return changed
}

// putPageLocked writes the page of a region to the place that does not count.
func (t *Tracker) putPageLocked(s settling) error {
	if s.was.version == math.MaxUint32 {
		return corruptf("page of region %d: no version comes after %d", s.index, s.was.version)
	}
	t.mu.Lock()
	active := t.mu.active
	t.mu.Unlock()
	b, err := t.page(s.index, s.was.version, active)
	if err != nil {
		return err
	}
	for k := range t.perRegion() {
		if k/64 < int64(len(s.bits)) && s.bits[k/64]&(1<<(k%64)) != 0 {
			le.PutUint32(b[pageHead+4*k:], active)
		}
	}
	encodePage(b, s.index, s.was.version+1)
	t.file.used = true
	if _, err := t.file.f.WriteAt(b, t.pageAt(s.index, s.was.version+1)); err != nil {
		return fmt.Errorf("tracking file: write page: %w", err)
	}
	return nil
}

// page reads the page of a region; without a version it is zeros.
func (t *Tracker) page(i int64, version, active uint32) ([]byte, error) {
	b := make([]byte, t.geometry.page)
	if version == 0 {
		return b, nil
	}
	at := t.pageAt(i, version)
	if n, err := t.file.f.ReadAt(b, at); n < len(b) {
		if err == io.EOF {
			return nil, corruptf("it ends at byte %d, in the page of region %d", at+int64(n), i)
		}
		return nil, fmt.Errorf("tracking file: read page: %w", err)
	}
	return b, checkPage(b, i, version, active)
}

// Seal implements [ops.Tracker].
//
//	pages, regions    as in Settle: everything up to now is in the table
//	header            the id, and the next interval; the LinkID that comes
//	renew             a copy of the disk from before cannot be taken for this one
//	header            with that LinkID alone
//
// An id of which nobody was told, because of a crash, is as good as any other.
func (t *Tracker) Seal(now time.Time, current ops.GUID, renew func(ops.GUID) error) (string, error) {
	t.file.Lock()
	defer t.file.Unlock()
	if err := t.isLost(); err != nil {
		return "", err
	}
	h := t.file.h
	if h.active == math.MaxUint32 {
		return "", ops.Errorf(ops.ErrNoTracking, ops.StatusTrackingMissing, "%s: no interval comes after %d; switch tracking off and on", t.image.Path(), h.active)
	}
	h.ids = append(h.ids[:len(h.ids):len(h.ids)], idRecord{t.session, h.active, now.UnixMilli()})
	if extra := len(h.ids) - maxIDs; extra > 0 {
		h.ids = h.ids[extra:]
	}
	h.active++
	if renew != nil {
		h.expected, h.announced = current, ops.NewGUID()
	}
	err := t.settleLocked(true)
	if err == nil {
		err = t.putLocked(h, "track.seal")
	}
	if err != nil {
		err = ops.Wrapf(err, ops.ErrNoTracking, ops.StatusTrackingMissing, "%s: no id can be given", t.image.Path())
		return "", joinFailed(err, t.failLocked(err))
	}
	t.nextInterval(h.active)
	if renew != nil {
		err = t.linkLocked(renew)
	}
	return formatID(t.session, h.active-1), err
}

// joinFailed prefers the worse of two failures.
func joinFailed(why, worse error) error {
	if worse != nil {
		return worse
	}
	return why
}

// nextInterval forgets what was noted: the pages have it.
func (t *Tracker) nextInterval(active uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.active = active
	for i := range t.mu.regions {
		l := &t.mu.regions[i]
		l.bits, l.fresh, l.recent = nil, false, false
	}
}
