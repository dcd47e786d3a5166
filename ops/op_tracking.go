package ops

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// What tracking is asked to do.
const (
	trackingOn  = "on"
	trackingOff = "off"
	trackingNew = "new"
)

// opTracking starts and ends change tracking, and gives ids.
var opTracking = &Op{
	Name:  "tracking",
	Brief: "track which parts of the disk change: switch it on or off, give an id to the present content, or tell what is known",
	Args: []Arg{{Name: "Action", Kind: ArgText, Bare: true,
		Help: "on starts tracking; off ends it, and what was known is gone; new answers an id, to ask changes with later; default tells the state"}},
	WritesIf: func(a Args) bool { return a.Has("Action") },
	Plans:    true,
	Can:      canTrack,
	State:    (*Request).trackingState,
	Run:      runTracking,
}

// canTrack: what an earlier session left shows whether anybody else wrote a VHDX;
// other formats have no such mark.
func canTrack(f *Found) bool {
	return f.itself().Format != nil && f.itself().Format.Number == FormatVHDX
}

func runTracking(ctx context.Context, r *Request) (_ Fields, err error) {
	action := r.Args.Text("Action")
	act, ok := map[string]func(*trackingChange) error{
		trackingOn: (*trackingChange).on, trackingOff: (*trackingChange).off, trackingNew: (*trackingChange).seal,
	}[action]
	switch {
	case action == "":
		return r.trackingState()
	case !ok:
		return nil, Errorf(ErrUsage, 0, "action=%q: want on, off or new", action)
	}
	c := &trackingChange{}
	if c.Operation, c.renews, err = r.operateTracking(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if r.Dry {
		return Plan{Changes: []string{c.engine().ref.Path()}, Free: math.MaxInt64, Size: c.Size()}.Fields(), nil
	}
	r.Begin(0)
	if action == trackingNew {
		if err := c.launder(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.held(func() error { return act(c) }); err != nil {
		return nil, err
	}
	f := Fields{{"Path", c.engine().ref.Path()}}
	if c.id != "" {
		f = append(f, Field{"ResilientChangeTrackingId", c.id})
	}
	state, err := c.lib.trackingOf(c.engine())
	return append(f, state...), err
}

// operateTracking opens the image. What other images were made from keeps its
// LinkID: nobody writes it.
func (r *Request) operateTracking() (_ *Operation, renews bool, err error) {
	o, err := r.Library.Operate(r.Image, Terms{Name: "tracking"})
	if !errors.Is(err, ErrReadOnly) {
		return o, true, err
	}
	o, err = r.Library.Operate(r.Image, Terms{Name: "tracking", Quiet: true})
	return o, false, err
}

// trackingChange is one request to change what is tracked.
type trackingChange struct {
	*Operation
	renews bool // a new id comes with a new LinkID
	id     string
}

// held runs f while no guest reads or writes.
func (c *trackingChange) held(f func() error) error {
	return c.DoAlone(func(w Writer) error {
		if _, ok := w.(Stamped); !ok {
			return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: changes of a %s image cannot be tracked", c.Image().Path(), c.engine().format.Name)
		}
		return f()
	})
}

// on makes a tracking file where there is none, or none that can be used. Nobody
// has an id yet.
func (c *trackingChange) on() error {
	e := c.engine()
	if t := e.tracked.Load(); t != nil && t.State().Lost == "" {
		return nil
	}
	if err := e.endTracking(); err != nil {
		return err
	}
	d, _ := e.identityLocked()
	t, err := c.lib.tracking().Create(e.ref, d)
	if err == nil {
		e.startTracking(t)
	}
	return err
}

func (c *trackingChange) off() error {
	e := c.engine()
	return errors.Join(e.endTracking(), c.lib.tracking().Remove(e.ref))
}

// seal gives the present content an id:
//
//	flush    what was written is durable: no crash makes it older than the id
//	begin    the disk has a LinkID that no copy of it has
//	seal     the id
//
// After a crash the id is there or not; either way everything known before is.
func (c *trackingChange) seal() error {
	e := c.engine()
	t := e.tracked.Load()
	if t == nil {
		return Errorf(ErrNoTracking, StatusTrackingOff, "%s: changes are not tracked; tracking on begins it", e.ref.Path())
	}
	if err := c.chain.layers().flushLocked(); err != nil {
		return err
	}
	w := e.mu.writer
	renew := w.(LinkSetter).SetLinkID
	if !c.renews {
		renew = nil
	} else if err := t.begin(w); err != nil {
		return err
	}
	var err error
	c.id, err = t.Seal(time.Now(), w.Info().LinkID, renew)
	return err
}

// trackingState is what is known of an image.
func (r *Request) trackingState() (_ Fields, err error) {
	h, err := r.Library.Open(r.Image, Read)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	return r.Library.trackingOf(h.engine())
}

// trackingRecord is an id with the time when it was given.
type trackingRecord struct {
	ID   string `json:"Id"`
	Time time.Time
}

func (l *Library) trackingOf(e *Engine) (f Fields, err error) {
	err = l.readTracking(e, func(t Tracker) error {
		s := t.State()
		ids, recent, newer := []trackingRecord{}, "", false
		for _, id := range s.IDs {
			ids, recent = append(ids, trackingRecord(id)), id.ID
		}
		if recent != "" {
			c, err := t.Changes(recent, Range{Len: math.MaxInt64})
			if err != nil {
				return err
			}
			newer = c.Count > 0
		}
		f = Fields{{"Enabled", true}, {"NewerChanges", newer}, {"MostRecentId", recent}, {"Ids", ids}, {"Granularity", s.Granule}}
		if s.Lost != "" {
			f = append(f, Field{"Lost", s.Lost + "; tracking on begins anew"})
		}
		return nil
	})
	if StatusOf(err) == StatusTrackingOff {
		return Fields{{"Enabled", false}, {"NewerChanges", false}, {"MostRecentId", ""}, {"Ids", []trackingRecord{}}}, nil
	}
	return f, err
}

// readTracking runs f with the tracking file of an open image; again where the image
// is opened for writing meanwhile.
func (l *Library) readTracking(e *Engine, f func(Tracker) error) error {
	if t := e.tracked.Load(); t != nil {
		return f(t)
	}
	d, ok := e.identity()
	if !ok {
		return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: changes of a %s image cannot be tracked", e.ref.Path(), e.format.Name)
	}
	t, err := l.tracking().Open(e.ref, d, false)
	if err != nil {
		return fmt.Errorf("tracking file of %s: %w", e.ref.Path(), err)
	}
	if t != nil {
		err = errors.Join(f(t), t.Close())
	} else {
		err = Errorf(ErrNoTracking, StatusTrackingOff, "%s: changes are not tracked; tracking on begins it", e.ref.Path())
	}
	if live := e.tracked.Load(); live != nil {
		return f(live)
	}
	return err
}
