package ops

import (
	"errors"
	iofs "io/fs"
	"path"
	"slices"
)

// mergeState is how far a merge came that its record tells of.
type mergeState uint8

const (
	// mergeVoid: not begun, or over; the record is left behind.
	mergeVoid mergeState = iota
	// mergeMoving: the source reads right through the disks between and the
	// destination, which are not to be read by themselves.
	mergeMoving
	// mergeMoved: the destination reads as the source, which still reads right, too.
	mergeMoved
	// mergeEnded: the destination is what the source was; the other files are dead.
	mergeEnded
)

// PendingMerge is a merge that has begun and is not over, as seen from one of its
// files.
type PendingMerge struct {
	Role        string // of this file: "source", "between" or "destination"
	Source      string // absolute host paths
	Destination string
	Moved       bool // nothing has to be copied any more

	record *mergeRecord
	state  mergeState
	role   mergeRole
}

// MergePending tells of a merge that an image is part of, nil without one. It
// reads the journal and headers only.
func (l *Library) MergePending(r Ref) (*PendingMerge, error) {
	found, err := l.Inspect(r)
	if err != nil {
		return nil, err
	}
	return l.mergeOf(r, found.Stat.ID, found.Info.LinkID)
}

// mergeOf is MergePending by what is known of a file. A name counts as much as an
// identity: who puts another file in the place of one that a merge is about has to
// end that first.
func (l *Library) mergeOf(r Ref, id FileID, link GUID) (*PendingMerge, error) {
	records, err := mergeRecords(folderOf(r))
	if err != nil {
		return nil, err
	}
	for _, rec := range records {
		i := slices.IndexFunc(rec.Files, func(f mergeFile) bool {
			return rec.path(&f) == r.Path() || f.Inode == id.Ino && path.Dir(string(f.Path)) == "." ||
				f.Role == roleDestination && rec.NextID != rec.OldID && rec.NextID == link
		})
		if i < 0 {
			continue
		}
		p := &PendingMerge{record: rec, role: rec.Files[i].Role, Role: string(rec.Files[i].Role)}
		p.Source, p.Destination = rec.path(rec.source()), rec.path(rec.destination())
		if p.state, err = l.stateOf(rec, r.Dir); err != nil {
			return nil, err
		}
		if p.Moved = p.state > mergeMoving; p.state != mergeVoid {
			return p, nil
		}
	}
	return nil, nil
}

// stateOf looks how far a merge came. Where the destination's folder is out of
// reach it is taken to be under way.
func (l *Library) stateOf(rec *mergeRecord, own Dir) (mergeState, error) {
	home, ok := l.mergeHome(rec, own)
	if !ok {
		return mergeMoving, nil
	}
	has := func(suffix string) (bool, error) {
		_, err := home.Dir.Stat(path.Join(home.Name, StateDir, rec.ID.String()+suffix))
		if errors.Is(err, iofs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	begun, err := has(mergeSuffix)
	if err != nil || !begun {
		return mergeVoid, err
	}
	ending, err := has(string(markEnding))
	if err != nil {
		return 0, err
	}
	if ending {
		if cut, err := l.isCut(rec, own); err != nil || cut {
			return mergeEnded, err
		}
	}
	moved, err := has(string(markMoved))
	if err != nil || !moved {
		return mergeMoving, err
	}
	return mergeMoved, nil
}

// mergeHome is the folder of the destination.
func (l *Library) mergeHome(rec *mergeRecord, own Dir) (Ref, bool) {
	if rec.primary {
		return rec.home, true
	}
	ref, ok := l.refAt(rec.path(rec.destination()), own)
	return folderOf(ref), ok
}

// isCut tells whether the disk above the destination records another parent, or
// is gone.
func (l *Library) isCut(rec *mergeRecord, own Dir) (bool, error) {
	ref, ok := l.refAt(rec.path(&rec.Files[len(rec.Files)-2]), own)
	if !ok {
		return false, nil
	}
	found, err := l.inspect(ref, Read|NoFollow, false)
	if absent(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	p := found.Info.Parent
	return found.Err == nil && p != nil && p.Err == nil && !slices.Contains(p.IDs, rec.NextID), nil
}

// refAt names a clean absolute host path in a folder of the library, that of own
// first.
func (l *Library) refAt(host string, own Dir) (Ref, bool) {
	roots := append([]Dir{own, l.opts.Top}, l.opts.Search...)
	for _, d := range distinct(append(roots, l.opts.Allow...)) {
		if name, ok := beneath(d.Path("."), host); ok && name != "." {
			return Ref{Dir: d, Name: name}, true
		}
	}
	return Ref{}, false
}

// pending is what is said to who may not do what a merge forbids.
func (p *PendingMerge) refusal(path string) error {
	if p.state == mergeEnded && p.role != roleDestination {
		return Errorf(ErrBusy, StatusOwned, "%s has been merged into %s and is to be removed: run merge on it to end that", path, p.Destination)
	}
	return Errorf(ErrBusy, StatusOwned, "%s: the merge of %s into %s is not finished: run merge on %s again", path, p.Source, p.Destination, p.Source)
}

// askMerge refuses what a merge that was broken off does not allow with the
// image: the source can be used by guests as long as its content counts, the
// destination from when it has everything, the disks between not at all.
func (h *Handle) askMerge() error {
	e := h.engine()
	if h.lib.merging(e) {
		return nil // how far is decided when it enters
	}
	info, _, err := e.describe()
	if err != nil {
		return err
	}
	p, err := h.lib.mergeOf(e.ref, e.id, info.LinkID)
	switch {
	case err != nil || p == nil:
		return err
	case h.terms != nil && h.terms.merge == p.record.ID:
		return nil
	case h.terms != nil && p.role == roleDestination && p.state == mergeEnded:
		return h.lib.endEmptyMerge(p)
	case h.terms != nil:
	case h.set != nil && !h.write && p.role == roleDestination: // which a set names when it has everything
		return nil
	case p.role == roleSource && p.state == mergeMoving,
		p.role == roleSource && p.state == mergeMoved && !h.write,
		p.role == roleDestination && p.state == mergeEnded:
		return nil
	case !h.write && p.role == roleDestination && p.state == mergeMoved:
		// Of a set a snapshot may be this file by now.
		if owner, err := (&resolver{lib: h.lib}).owner(e.id); err != nil || owner != nil {
			return err
		}
	}
	if h.set != nil {
		return Errorf(ErrBusy, StatusOwned, "%s: optimize of the set was broken off: run it again", h.set.Ref.Path())
	}
	return p.refusal(e.ref.Path())
}

// askMergeOfParent refuses a child of the disks that a broken merge changes, but
// for those that it is about.
func (l *Library) askMergeOfParent(p *Engine, link GUID, child *Found) error {
	m, err := l.mergeOf(p.ref, p.id, link)
	if err != nil || m == nil || m.role == roleSource || m.state >= mergeMoved {
		return err
	}
	if slices.ContainsFunc(m.record.Files, func(f mergeFile) bool {
		return m.record.path(&f) == child.Ref.Path() || f.Inode == child.Stat.ID.Ino
	}) {
		return nil
	}
	return m.refusal(p.ref.Path())
}

// askMergeForCopy refuses a copy of, or another child for, what a broken merge
// will remove or change.
func (h *Handle) askMergeForCopy() error {
	info, _, err := h.engine().describe()
	if err != nil {
		return err
	}
	e := h.engine()
	p, err := h.lib.mergeOf(e.ref, e.id, info.LinkID)
	if err != nil || p == nil || p.role == roleDestination && p.state == mergeEnded {
		return err
	}
	return p.refusal(e.ref.Path())
}
