package track

import (
	"vhdfs/ops"
)

// State implements [ops.Tracker].
func (t *Tracker) State() ops.TrackingState {
	t.file.Lock()
	h := t.file.h
	t.file.Unlock()
	s := ops.TrackingState{Enabled: true, Granule: t.granule}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.lost != nil {
		s.Lost = t.mu.lost.Error()
		return s
	}
	for i := range t.mu.regions {
		if t.mu.regions[i].ready {
			s.Open += t.bytes()
		}
	}
	s.Open = min(s.Open, h.size)
	for _, r := range h.ids {
		s.IDs = append(s.IDs, r.id())
	}
	return s
}

// Changes implements [ops.Tracker].
func (t *Tracker) Changes(id string, within ops.Range) (*ops.Changed, error) {
	session, interval, err := parseID(id)
	if err != nil {
		return nil, err
	}
	if err := t.isLost(); err != nil {
		return nil, err
	}
	t.file.Lock()
	h := t.file.h
	t.file.Unlock()
	if !h.gave(session, interval) {
		status := ops.StatusTrackingID
		if h.flags&flagAgain != 0 {
			status = ops.StatusTrackingMissing
		}
		return nil, ops.Errorf(ops.ErrNoTracking, status, "%s: id %q is not known", t.image.Path(), id)
	}
	c := ops.NewChanged(max(h.size, h.nextSize), t.granule)
	last := h.regions(min(c.Size, within.Off+min(within.Len, c.Size)))
	for i := within.Off / t.bytes(); i < last; i++ {
		if err := t.addChanges(c, i, interval); err != nil {
			return nil, ops.Wrapf(err, ops.ErrNoTracking, ops.StatusTrackingMissing, "%s: what changed is not known", t.image.Path())
		}
	}
	return c, nil
}

// gave tells whether an id is one of those that hold.
func (h *header) gave(session ops.GUID, interval uint32) bool {
	for _, r := range h.ids {
		if r.session == session && r.interval == interval {
			return true
		}
	}
	return false
}

// addChanges adds what is known of region i.
func (t *Tracker) addChanges(c *ops.Changed, i int64, since uint32) error {
	t.file.Lock()
	defer t.file.Unlock()
	t.mu.Lock()
	l, active := t.mu.regions[i], t.mu.active
	l.bits = append([]uint64(nil), l.bits...)
	t.mu.Unlock()
	if l.version == 0 && l.bits == nil {
		return nil
	}
	b, err := t.page(i, l.version, active)
	if err != nil {
		return err
	}
	first := i * t.perRegion()
	for k := range t.perRegion() {
		noted := k/64 < int64(len(l.bits)) && l.bits[k/64]&(1<<(k%64)) != 0
		if noted || le.Uint32(b[pageHead+4*k:]) > since {
			c.Add(first + k)
		}
	}
	return nil
}
