package ops

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// AttachTerms are how an image is to be attached.
type AttachTerms struct {
	ReadOnly bool
	Way      Way
	Scan     bool // for partitions
	Dry      bool // only look whether it can be attached
}

// Attacher attaches the images of a library, as a mount does: it keeps them open
// and lays block devices. No lock is held over what is asked of devices. Safe for
// concurrent use.
type Attacher struct {
	lib      *Library
	devices  Devices
	readOnly bool
	emptied  chan struct{}
	mu       struct {
		sync.Mutex
		last   uint32
		list   []*attached // in the order of their numbers
		closed bool
	}
}

// attached is an image that is attached. What it says does not change.
type attached struct {
	Attachment
	handle *Handle
	way    Way
	ending bool // somebody detaches it; guarded by Attacher.mu
}

// NewAttacher attaches images of l from now on, and tells l so; readOnly: none for
// writing.
func NewAttacher(l *Library, d Devices, readOnly bool) *Attacher {
	a := &Attacher{lib: l, devices: d, readOnly: readOnly, emptied: make(chan struct{}, 1)}
	l.SetAttachments(a)
	return a
}

// Attached implements [Attachments].
func (a *Attacher) Attached() []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]Attachment, len(a.mu.list))
	for i, x := range a.mu.list {
		list[i] = x.Attachment
	}
	return list
}

// Attach attaches an image. Where no device can be made for want of a right to,
// it is only kept open, and why says so. What an image allows besides is
// [Library.Open]'s to say; ErrBusy where it is attached already.
//
// A direct device is laid when the image's id has changed, durably: what is
// written to it is seen by nobody. A crash before that leaves the old id or the
// new one, with the same content.
func (a *Attacher) Attach(r Ref, t AttachTerms) (_ Attachment, way Way, why, err error) {
	way = t.Way
	if a.readOnly && !t.ReadOnly {
		return Attachment{}, way, nil, Errorf(ErrReadOnly, 0, "%s: the mount is read-only", r.Path())
	}
	if way != WayNone {
		if why = a.devices.Permitted(); why != nil {
			way = WayNone
		}
	}
	st, err := a.lib.Stat(r)
	if err != nil {
		return Attachment{}, way, why, err
	}
	h, err := a.lib.openPinned(r, pin{write: !t.ReadOnly, device: way != WayNone, direct: way == WayDirect})
	if err != nil {
		return Attachment{}, way, why, err
	}
	x := &attached{handle: h, way: way, Attachment: Attachment{Image: r, ID: st.ID, ReadOnly: t.ReadOnly, Optical: h.engine().format.Number == FormatISO}}
	if err = x.attachable(); err == nil && t.Way == WayDirect {
		if _, err = h.straight(); err == nil {
			err = h.untracked()
		}
	}
	if err != nil || t.Dry {
		return x.Attachment, way, why, errors.Join(err, h.Close())
	}
	x.Device, err = a.lay(x, t)
	if errors.Is(err, ErrForbidden) {
		why, err = err, nil
		h.pinOnly()
		x.way = WayNone
	}
	if err == nil {
		err = a.enter(x)
	}
	if err != nil {
		return x.Attachment, x.way, why, errors.Join(err, a.undo(x))
	}
	return x.Attachment, x.way, why, nil
}

// attachable refuses an image of which the end, or more, is missing.
func (x *attached) attachable() error {
	for _, n := range x.handle.Info().Anomalies {
		if x.Optical && n.Severity == Broken {
			return Corruptf(0, "%s: not attached: %s: %s", x.Image.Path(), n.Where, n.Text)
		}
	}
	return nil
}

// straight is where the disk begins in its file, in which it stands in one piece.
func (h *Handle) straight() (off int64, err error) {
	err = h.call("map", func() error {
		l, err := h.chain.rLock()
		if err != nil {
			return err
		}
		defer l.rUnlock()
		s, ok := l[0].mu.layer.(Straight)
		if !ok {
			return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: its disk does not stand in the file in one piece: attach it without direct=true", h.ref.Path())
		}
		if off, err = s.Straight(); err != nil {
			return fmt.Errorf("%s: %w: attach it without direct=true", h.ref.Path(), err)
		}
		return nil
	})
	return off, err
}

// lay makes the device of an image; "" where there is to be none.
func (a *Attacher) lay(x *attached, t AttachTerms) (string, error) {
	h := x.handle
	d := DeviceTerms{Way: x.way, ReadOnly: t.ReadOnly, Scan: t.Scan, Sector: h.Info().LogicalSector}
	switch x.way {
	case WayRaw:
		return a.devices.LayRaw(x.Image, d)
	case WayDirect:
		if err := h.show(); err != nil {
			return "", err
		}
		off, err := h.straight()
		if err != nil {
			return "", err
		}
		d.Offset, d.Length, d.On = off, h.Size(), h.engine().id
		return a.devices.LayFile(h.ref.Path(), d)
	}
	return "", nil
}

// show makes the image say, durably, that it is written: nobody may take it for
// what it was.
func (h *Handle) show() error {
	if !h.write {
		return nil
	}
	return h.call("attach", func() error {
		l, err := h.chain.lock()
		if err != nil {
			return err
		}
		defer l.unlock()
		if err := l[0].refuseWriteLocked(); err != nil {
			return err
		}
		if s, ok := l[0].mu.writer.(LinkSetter); ok {
			return s.SetLinkID(NewGUID())
		}
		return l[0].mu.first.begin() // what the device writes passes it by
	})
}

// enter makes x one of those that are attached.
func (a *Attacher) enter(x *attached) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.closed {
		return Errorf(ErrBusy, 0, "%s: not attached, the service ends", x.Image.Path())
	}
	a.mu.last++
	x.Number = a.mu.last
	a.mu.list = append(a.mu.list, x)
	return nil
}

// undo gives back what x has; nobody knows of it.
func (a *Attacher) undo(x *attached) error {
	var err error
	if x.Device != "" {
		err = a.devices.Remove(x.Device, true)
	}
	return errors.Join(err, x.handle.Close())
}

// Detach ends what [Attacher.Attach] began: when it returns nil, what was written
// to the device is durable in the image. ErrBusy, naming where it is mounted,
// while the device is used; with force it goes when its users do. Nothing is done,
// and no error, where the image is not attached; false then.
func (a *Attacher) Detach(r Ref, force bool) (was Attachment, found bool, err error) {
	was, found = a.lib.AttachedAs(r)
	if !found {
		left, err := a.removeLeft(r)
		return left, left.Device != "", err
	}
	return was, true, a.detach(was.Number, force)
}

func (a *Attacher) detach(number uint32, force bool) error {
	x, err := a.begin(number)
	if err != nil || x == nil {
		return err
	}
	if x.Device != "" {
		if err := a.devices.Remove(x.Device, force); err != nil {
			a.end(x, false)
			if errors.Is(err, ErrBusy) {
				return Errorf(ErrBusy, StatusOwned, "%s: %s %s", x.Image.Path(), x.Device, a.devices.User(x.Device))
			}
			return fmt.Errorf("detach %s: %w", x.Image.Path(), err)
		}
	}
	a.end(x, true)
	return x.settle()
}

// begin takes an attachment for the one who ends it; nil where there is none.
func (a *Attacher) begin(number uint32) (*attached, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.mu.list {
		if x.Number != number {
			continue
		}
		if x.ending {
			return nil, Errorf(ErrBusy, 0, "%s is being detached", x.Image.Path())
		}
		x.ending = true
		return x, nil
	}
	return nil, nil
}

// end gives an attachment back, or takes it off the list.
func (a *Attacher) end(x *attached, gone bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x.ending = false
	if gone {
		a.mu.list = slices.DeleteFunc(a.mu.list, func(o *attached) bool { return o == x })
	}
	if gone && len(a.mu.list) == 0 {
		select {
		case a.emptied <- struct{}{}:
		default:
		}
	}
}

// settle makes durable what came through a device that is gone, and closes the
// image. A device that somebody still has open, after force, is not waited for:
// what comes from it yet is flushed when it is closed.
func (x *attached) settle() error {
	h := x.handle
	if h.write && x.way == WayRaw {
		_ = h.deviceGone() // see above
	}
	var err error
	if h.write && x.way != WayDirect {
		err = errors.Join(h.lib.cached().Launder(h.engine().id), h.Flush())
	}
	return errors.Join(err, h.Close())
}
