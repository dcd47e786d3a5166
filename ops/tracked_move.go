package ops

import (
	"errors"
	"time"
)

// sealForLocked comes when a disk is frozen, whose content is durable and which
// nobody writes: it answers the id of that content, "" where the disk is not tracked,
// and gives what is known of it to the disk that takes its place.
func (e *Engine) sealForLocked(to *Engine, now time.Time) (string, error) {
	t := e.tracked.Load()
	if t == nil || t.State().Lost != "" {
		return "", nil
	}
	id, err := t.Seal(now, e.mu.layer.Info().LinkID, nil) // another LinkID would cut the new disk off
	if err != nil {
		return "", err
	}
	return id, e.handTrackingLocked(to)
}

// handTrackingLocked gives what is known of a disk, which nobody writes any more, to
// one that is open for writing and reads the same.
func (e *Engine) handTrackingLocked(to *Engine) error {
	is, ok := identity(to.mu.layer, false)
	if !ok {
		return nil
	}
	return errors.Join(e.inheritTrackingLocked(to.ref, is), to.openTracking(to.ref, to.mu.writer, false))
}

// loosen tells the tracking files of the merge that the images change in a way that
// nobody sees: all but the destination.
func (m *merger) loosen() error {
	for _, e := range m.line[:len(m.line)-1] {
		if err := e.loosen(); err != nil {
			return err
		}
	}
	for _, k := range m.kids {
		if err := k.engine().loosen(); err != nil {
			return err
		}
	}
	return nil
}

// tracksNoMore is what to say of a merge that ends tracking of the destination: what
// the source changed is known to nobody.
func (m *merger) tracksNoMore() ([]string, error) {
	dest, err := m.lib.isTracked(m.dest())
	if err != nil || !dest {
		return nil, err
	}
	source, err := m.lib.isTracked(m.source())
	if err != nil || source {
		return nil, err
	}
	return []string{"changes of " + m.dest().ref.Path() + " were tracked, those of " + m.source().ref.Path() +
		" were not: tracking ends, and no id holds; tracking on begins anew, and a full backup"}, nil
}

// isTracked tells whether ids of an image hold.
func (l *Library) isTracked(e *Engine) (tracked bool, err error) {
	err = l.readTracking(e, func(t Tracker) error {
		tracked = t.State().Lost == ""
		return nil
	})
	if StatusOf(err) == StatusTrackingOff || errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return tracked, err
}

// trackFrozen gives the destination, which nobody writes, what is known of the
// source.
func (m *merger) trackFrozen() error {
	is, ok := m.dest().identity()
	if !ok {
		return nil
	}
	if err := m.dest().dropTracking(); err != nil {
		return err
	}
	return m.source().inheritTracking(m.dest().ref, is)
}

// trackLocked is trackFrozen for a destination that is written from then on. It holds
// all that the source holds.
func (m *merger) trackLocked() error {
	to := m.dest()
	is, ok := identity(to.mu.layer, true)
	if !ok || m.source().tracked.Load() == nil {
		return nil
	}
	if err := m.source().inheritTrackingLocked(to.ref, is); err != nil {
		return err
	}
	return to.openTracking(to.ref, to.mu.writer, true)
}

// trackParent comes before an image records another parent. One that has not the id
// which is recorded may have other content.
func (o *Operation) trackParent(id GUID) error {
	e := o.engine()
	if p := o.Info().Parent; p != nil {
		for _, had := range p.IDs {
			if had == id {
				return e.loosen()
			}
		}
	}
	return e.dropTracking()
}

// untracked refuses what goes past the tracking file.
func (h *Handle) untracked() error {
	if t := h.engine().tracked.Load(); t != nil && t.State().Lost == "" {
		return Errorf(errors.ErrUnsupported, StatusWrongState, "%s: what is written to a direct device is not tracked: attach it without direct=true, or switch tracking off", h.ref.Path())
	}
	return nil
}
