package ops

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const nameSet = "set"

// opSet changes one setting. In a mount it is what writing settings.json does.
var opSet = &Op{
	Name:     nameSet,
	Method:   "SetVirtualHardDiskSettingData",
	Document: "settings.json",
	Brief:    "change one setting: where the parent is, the physical sector or the id of the disk",
	Writes:   true,
	Plans:    true,
	Can:      func(f *Found) bool { return f.Info.Type != 0 },
	Args:     settings,
	OneOf:    true,
	Run:      runSet,
}

// settings are those that can be changed.
var settings = []Arg{
	argParent.with("the image that is to be the parent, with the recorded id: set-parent takes others"),
	argPhys.with("512 or 4096, of a VHDX"),
	argID.with("id of the disk, of a VHDX; not the id that children record"),
}

// runSet takes one property at a time, as the service does. A value that the image
// has is a success, and nothing is written.
func runSet(ctx context.Context, r *Request) (Fields, error) {
	found, err := r.Library.Inspect(r.Image)
	if err == nil {
		err = found.Err
	}
	if err != nil {
		return nil, err
	}
	var given []string
	for _, a := range settings {
		if r.Args.Has(a.Name) {
			given = append(given, a.Name)
		}
	}
	switch {
	case len(given) == 0:
		return nil, Errorf(ErrUsage, 0, "set: one of parent, physical and id is required")
	case len(given) > 1:
		return nil, Errorf(ErrUsage, 0, "set: %s at once; one can be changed at a time", strings.Join(given, " and "))
	}
	switch own := found.itself(); given[0] {
	case "ParentPath":
		return r.setParentPath(ctx)
	case "PhysicalSectorSize":
		return r.setPhysicalSector(own)
	default:
		return r.setDiskID(found)
	}
}

// setParentPath records a parent that has the recorded id.
func (r *Request) setParentPath(ctx context.Context) (Fields, error) {
	child, err := r.differencing()
	if err != nil {
		return nil, err
	}
	p, err := r.newParent(child, r.Args.Text("ParentPath"))
	if err != nil {
		return nil, err
	}
	if now := r.present(child); now != nil && now.Found.itself().Stat.ID == p.found().Stat.ID {
		return unchangedSetting("ParentPath", p.found().Ref.Path()), nil
	}
	return r.setParent(ctx, p, false)
}

func (r *Request) setPhysicalSector(own *Found) (Fields, error) {
	const key = "PhysicalSectorSize"
	a, was := r.Args.Amount(key), own.Info.PhysicalSector
	switch {
	case a.Relative || a.Bytes != 512 && a.Bytes != 4096:
		return nil, Errorf(ErrUsage, StatusSectorSize, "physical: %d bytes (relative: %t), want 512 or 4096", a.Bytes, a.Relative)
	case a.Bytes == int64(was):
		return unchangedSetting(key, was), nil
	case own.Format.Number != FormatVHDX:
		return nil, r.onlyVHDX(key, own)
	case a.Bytes < int64(own.Info.LogicalSector):
		return nil, Errorf(ErrUsage, StatusSectorSize, "physical: %d bytes, but logical sectors have %d", a.Bytes, own.Info.LogicalSector)
	}
	return r.set(own, key, was, a.Bytes, func(s Settable) error { return s.SetPhysicalSector(uint32(a.Bytes)) })
}

func (r *Request) setDiskID(found *Found) (_ Fields, err error) {
	const key = "VirtualDiskId"
	own := found.itself()
	id, was := r.Args.ID(key), own.Info.DiskID
	switch {
	case id == was:
		return unchangedSetting(key, was), nil
	case own.Format.Number != FormatVHDX:
		return nil, r.onlyVHDX(key, own)
	}
	if found.Set == nil {
		return r.set(own, key, was, id, func(d Settable) error { return d.SetDiskID(id) })
	}
	s, err := r.Library.useSet(r.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return r.set(own, key, was, id, func(d Settable) error { return s.changeDiskID(id, func() error { return d.SetDiskID(id) }) })
}

func (r *Request) onlyVHDX(key string, own *Found) error {
	return Errorf(errors.ErrUnsupported, StatusWrongType, "%s of %s: that of a %s cannot be changed", key, r.Image.Path(), own.Format.Name)
}

func unchangedSetting(key string, value any) Fields {
	return Fields{{key, value}, {"Changed", false}}
}

// set changes one setting. In this order, each step durable before the next:
//
//	undo record    the old value, and a record of a change that never began
//	the change     the old value or the new one
func (r *Request) set(own *Found, key string, was, to any, change func(Settable) error) (_ Fields, err error) {
	undo := &undoLog{image: own.Ref}
	fields := Fields{{key, to}, {"Before", was}}
	if r.Dry {
		return append(Fields{{"DryRun", true}, {"Changes", []string{own.Ref.Path(), undo.Path()}}}, fields...), nil
	}
	r.Begin(0)
	o, err := r.Library.Operate(r.Image, Terms{Name: nameSet, Quiet: true, Alone: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	err = o.Do(func(w Writer) error {
		s, ok := w.(Settable)
		if !ok {
			return r.onlyVHDX(key, own)
		}
		rec := undoRecord{Time: time.Now().UTC(), Operation: nameSet, Property: key, Old: fmt.Sprint(was), New: fmt.Sprint(to)}
		if err := undo.add(rec); err != nil {
			return fmt.Errorf("undo record %s: %w", undo.Path(), err)
		}
		if err := o.engine().loosen(); err != nil {
			return err
		}
		return change(s)
	})
	if err != nil {
		return nil, err
	}
	return append(fields, Field{"Changed", true}, Field{"UndoRecord", undo.Path()}), nil
}
