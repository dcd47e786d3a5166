package ops

import (
	"slices"
	"strings"
	"time"
)

// undoParent puts back what an image recorded of its parent before the last
// set-parent. That parent need not be there. What stands in the log of changes
// that a crash or a failure kept from taking place is passed over; ErrChanged
// where something else changed the record since.
//
// Ids, time stamp, and the first path of each kind are put back; further copies of
// a path, which some VHDs have, are not.
func (r *Request) undoParent(child *Found) (Fields, error) {
	if r.Args.Has("ParentPath") || r.Args.Has("LeafPath") || r.Args.Bool("IgnoreIDMismatch") {
		return nil, Errorf(ErrUsage, 0, "set-parent: undo=true puts back what was recorded, and takes no parent, leaf and ignoreidmismatch")
	}
	undo := &undoLog{image: child.Ref}
	records, err := undo.records()
	if err != nil {
		return nil, err
	}
	now := newParentRecord(child.Info.Parent)
	last, err := lastChange(undo, records, now)
	if err != nil {
		return nil, err
	}
	if last.Before.Error != "" {
		return nil, Errorf(ErrUsage, 0, "undo=true: what was recorded before %s could not be read (%s); its bytes are in %s",
			last.Time.Format(time.RFC3339), last.Before.Error, undo.Path())
	}
	c := &relinking{child: child.Ref, undo: undo, to: last.Before.create()}
	c.record = undoRecord{Time: time.Now().UTC(), Operation: nameSetParent, Before: now, After: c.to.record(child), Undoes: &last.Time}
	if r.Dry {
		return c.plan(), nil
	}
	r.Begin(0)
	err = r.relink(c, nil)
	return c.fields(r.Library, err), err
}

// lastChange is the last change of the parent that took place and was not undone.
// It walks back from what the image records now: a change whose result that is
// took place, one that started from there did not.
func lastChange(undo *undoLog, records []undoRecord, now *parentRecord) (*undoRecord, error) {
	undone := map[time.Time]bool{}
	for i := range slices.Backward(records) {
		rec := &records[i]
		switch {
		case rec.Before == nil || rec.After == nil || rec.Before.same(rec.After): // no change of the parent
		case rec.After.same(now) && rec.Undoes != nil:
			undone[*rec.Undoes] = true
			now = rec.Before
		case rec.After.same(now) && undone[rec.Time]:
			now = rec.Before
		case rec.After.same(now):
			return rec, nil
		case !rec.Before.same(now):
			return nil, Errorf(ErrChanged, StatusWrongState, "%s records another parent than set-parent gave it at %s (%s): something else changed that",
				undo.image.Path(), rec.Time.Format(time.RFC3339), idList(rec.After.Identifiers))
		}
	}
	return nil, Errorf(ErrUsage, 0, "undo=true: %s holds no change of the parent to be undone", undo.Path())
}

// create is a record in the form that it is written from.
func (r *parentRecord) create() CreateParent {
	var p CreateParent
	for i, to := range []*GUID{&p.LinkID, &p.NextID} {
		if i < len(r.Identifiers) {
			*to = r.Identifiers[i]
		}
	}
	if r.Timestamp != nil {
		p.Timestamp = *r.Timestamp
	}
	p.Relative, p.Volume = strings.ReplaceAll(r.first(PathRelative), `\`, "/"), r.first(PathVolume)
	p.Name = r.first(PathName)
	if p.Absolute = r.first(PathAbsolute); p.Relative == "" && p.Absolute == "" {
		p.Relative = strings.ReplaceAll(r.first(PathName), `\`, "/")
	}
	return p
}

func (r *parentRecord) first(kind PathKind) string {
	for _, p := range r.Paths {
		if p.Kind == kind {
			return p.Path
		}
	}
	return ""
}
