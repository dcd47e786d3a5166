package ops

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
)

// errOtherFile is [ErrChanged] where a file is not the one that a set recorded.
var errOtherFile = fmt.Errorf("%w: another is in its place", ErrChanged)

// file is what the set says of one of its files; nil where it does not list it.
func (s *Set) file(name string) *SetFile {
	i := slices.IndexFunc(s.Files, func(f SetFile) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Files[i]
}

// record makes the set say what a listed file is: the ids that it is to be known
// by. A zero LinkID is for a disk that is written.
func (s *Set) record(name string, disk, link GUID) {
	if f := s.file(name); f != nil {
		f.DiskID, f.LinkID = disk, link
	}
}

// judge says why an image cannot be the file that the set means by a name:
// [ErrChanged], with the id that is recorded and the one found. Of a file without
// recorded ids nothing is said.
func (s *Set) judge(at Ref, name string, info Info) error {
	f := s.file(name)
	switch {
	case f == nil:
		return nil
	case !f.DiskID.IsZero() && f.DiskID != info.DiskID:
		return Errorf(errOtherFile, StatusIDMismatch, "%s is not the disk that its set had there: VirtualDiskId is %s, expected is %s", at.Path(), info.DiskID, f.DiskID)
	case !f.LinkID.IsZero() && f.LinkID != info.LinkID:
		return Errorf(errOtherFile, StatusIDMismatch, "%s is not the file that its set had there, or was written since: its id is %s, expected is %s", at.Path(), info.LinkID, f.LinkID)
	}
	if name != s.Leaf || info.LinkID.IsZero() {
		return nil
	}
	if i := slices.IndexFunc(s.Files, func(o SetFile) bool { return o.Name != name && o.LinkID == info.LinkID }); i >= 0 {
		return Errorf(errOtherFile, StatusIDMismatch, "%s is not the active disk of its set: its id is %s, that of %q", at.Path(), info.LinkID, s.Files[i].Name)
	}
	return nil
}

// judged is [Set.judge] of an image that is open, and what that says of itself.
func (s *Set) judged(e *Engine, name string) (Info, error) {
	info, _, err := e.describe()
	if err == nil {
		err = s.judge(e.ref, name, info)
	}
	return info, err
}

// InspectSnapshot looks at the file that holds a snapshot of a set. ErrChanged
// where another one is in its place; ErrUsage for a reference without data.
func (l *Library) InspectSnapshot(set *Found, n *SetSnapshot) (*Found, error) {
	ref, err := set.holding(n)
	if err != nil {
		return nil, err
	}
	found, err := l.Inspect(ref)
	if err == nil && found.Err == nil {
		err = set.Set.judge(found.Ref, n.Path, found.Info)
	}
	return found, err
}

// OpenSnapshot opens the file that holds a snapshot of a set, by label or id, for
// reading, and judges what it has open as [Library.InspectSnapshot] does.
// fs.ErrNotExist where there is no such snapshot.
func (l *Library) OpenSnapshot(set Ref, name string) (*Handle, error) {
	found, err := l.Inspect(set)
	if err != nil {
		return nil, err
	}
	if found.Set == nil {
		return nil, Errorf(ErrUsage, 0, "snapshot=%q: %s is not a set", name, set.Path())
	}
	n := found.Set.Snapshot(name)
	if n == nil {
		return nil, noSnapshot(set, name)
	}
	ref, err := found.holding(n)
	if err != nil {
		return nil, err
	}
	h, err := l.Open(ref, Read)
	if err != nil {
		return nil, err
	}
	if _, err := found.Set.judged(h.engine(), n.Path); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// holding is the file of a snapshot.
func (f *Found) holding(n *SetSnapshot) (Ref, error) {
	if n.Path == "" {
		return Ref{}, Errorf(ErrUsage, 0, "snapshot %q of %s is a reference without data", n.Name(), f.Ref.Path())
	}
	return f.Beside(n.Path), nil
}

func noSnapshot(set Ref, name string) error {
	return fmt.Errorf("snapshot=%q: %s has no snapshot of this label or id: %w", name, set.Path(), iofs.ErrNotExist)
}

// isRecorded looks whether a file of the set is what the set records of it. One
// that is gone is, and so is one of which nothing is recorded.
func (s *setInUse) isRecorded(name string) error {
	if f := s.set.file(name); f == nil || f.DiskID.IsZero() && f.LinkID.IsZero() {
		return nil
	}
	found, err := s.lib.inspect(s.beside(name), Read|NoFollow, false)
	if absent(err) {
		return nil
	}
	if err == nil {
		err = found.Err
	}
	if err != nil {
		return err
	}
	return s.set.judge(found.Ref, name, found.Info)
}

// changeDiskID runs change, which gives the active disk another id. After a crash
// there is
//
//	commit     the old id; the set records none, and takes any
//	change     the old id or the new one
//	commit     the new id, recorded
//
// A change that failed may last all the same: nothing is recorded then, until the next
// snapshot.
func (s *setInUse) changeDiskID(to GUID, change func() error) error {
	leaf := s.set.file(s.set.Leaf)
	if leaf == nil {
		return change()
	}
	recorded := func(id GUID) error {
		n := s.next()
		n.record(n.Leaf, id, GUID{})
		return s.commit(n)
	}
	if !leaf.DiskID.IsZero() {
		if err := recorded(GUID{}); err != nil {
			return err
		}
	}
	if err := change(); err != nil {
		return err
	}
	return recorded(to)
}

// checkSet reports files of a set that are not what it records, and snapshots
// whose file is gone. Those of a merge that was broken off are for that to end.
func (l *Library) checkSet(set *Found, report func(Anomaly)) {
	for _, f := range set.Set.Files {
		if f.Name == set.Set.Leaf {
			continue // it is what the whole set is judged by
		}
		ref := set.Beside(f.Name)
		found, err := l.inspect(ref, Read|NoFollow, false)
		if err == nil {
			if p, e := l.mergeOf(ref, found.Stat.ID, found.Info.LinkID); p != nil && e == nil {
				continue
			}
		}
		switch {
		case absent(err) && !set.Set.Refers(f.Name):
			continue // a change that was broken off leaves its name
		case err == nil && found.Err == nil:
			err = set.Set.judge(found.Ref, f.Name, found.Info)
		case err == nil:
			err = found.Err
		}
		if err != nil {
			report(Anomaly{Name: "vhds.file", Severity: Broken, Where: "file of the set", Text: err.Error()})
		}
	}
}
