package ops

import (
	"errors"
	"fmt"
	"strings"
)

// Adopt settles what became of devices whose program was killed. Those over a raw
// file have nothing below them any more and are taken away, whoever uses them. A
// direct one on an image of this library goes on working: it is taken away where
// nobody uses it, else it is attached from now on, with its lock. It answers what it
// did, one line each, for the log.
func (a *Attacher) Adopt() ([]string, error) {
	list, err := a.devices.Ours()
	if err != nil {
		return nil, err
	}
	var notes []string
	var all error
	for _, d := range list {
		if !d.Dead {
			continue
		}
		note, err := a.adopt(d)
		if note != "" {
			notes = append(notes, note)
		}
		all = errors.Join(all, err)
	}
	return notes, all
}

func (a *Attacher) adopt(d Device) (note string, err error) {
	if d.Way == WayRaw {
		return d.Path + ": its mount is gone; taken away", a.devices.Remove(d.Path, true)
	}
	r, ok := a.lib.refOf(d)
	if !ok {
		return "", nil // for whoever mounts that folder
	}
	err = a.devices.Remove(d.Path, false)
	if !errors.Is(err, ErrBusy) {
		return fmt.Sprintf("%s: left on %s; taken away", d.Path, r.Path()), err
	}
	h, err := a.lib.openPinned(r, pin{write: !d.ReadOnly, device: true, direct: true, adopted: true})
	if err != nil {
		return "", fmt.Errorf("%s: in use, and not attached to %s: %w", d.Path, r.Path(), err)
	}
	x := &attached{handle: h, way: WayDirect, Attachment: Attachment{
		Image: r, ID: d.On, Device: d.Path, ReadOnly: d.ReadOnly, Optical: h.engine().format.Number == FormatISO,
	}}
	if err = h.show(); err == nil {
		err = a.enter(x)
	}
	if err != nil {
		return "", errors.Join(err, h.Close())
	}
	return fmt.Sprintf("%s: %s; attached to %s again", d.Path, a.devices.User(d.Path), r.Path()), nil
}

// refOf is the image of the library that a device lies on.
func (l *Library) refOf(d Device) (Ref, bool) {
	name, ok := beneath(l.opts.Top.Path("."), d.File)
	if !ok || !l.IsImageName(name) || strings.Contains(name, StateDir) {
		return Ref{}, false
	}
	r := l.Top(name)
	st, err := r.Dir.Stat(r.Name)
	return r, err == nil && st.ID == d.On
}

// removeLeft takes the device away that a killed program left on an image; a zero
// Attachment where there is none.
func (a *Attacher) removeLeft(r Ref) (Attachment, error) {
	st, err := r.Dir.Stat(r.Name)
	if err != nil {
		return Attachment{}, err
	}
	list, err := a.devices.Ours()
	if err != nil {
		return Attachment{}, err
	}
	for _, d := range list {
		if d.Way != WayDirect || d.On != st.ID || !d.Dead {
			continue
		}
		err := a.devices.Remove(d.Path, false)
		if errors.Is(err, ErrBusy) {
			err = Errorf(ErrBusy, StatusOwned, "%s: %s %s", r.Path(), d.Path, a.devices.User(d.Path))
		}
		return Attachment{Image: r, ID: d.On, Device: d.Path, ReadOnly: d.ReadOnly}, err
	}
	return Attachment{}, nil
}
