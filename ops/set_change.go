package ops

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// setInUse is a set in the hands of one operation: its file is locked for writing,
// so that no other one, of this program or of another, changes it meanwhile. Who
// reads and writes its disk does not ask for that lock.
type setInUse struct {
	lib    *Library
	ref    Ref
	file   File
	format *Format
	set    *Set    // what the file says
	leaf   *Engine // what keepOut took; nil before
}

// lockWait is how long somebody waits who meets the lock of a reader that is gone
// in a moment.
const lockWait = 10 * time.Millisecond

// useSet takes a set. ErrBusy while another operation has it, ErrReadOnly where it
// must not be written.
func (l *Library) useSet(r Ref) (_ *setInUse, err error) {
	f, err := r.Dir.Open(r.Name, Write)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for end := time.Now().Add(releaseWait); ; time.Sleep(lockWait) {
		if err = f.Lock(true); !errors.Is(err, ErrBusy) || time.Now().After(end) {
			break
		}
	}
	if errors.Is(err, ErrBusy) {
		err = Wrapf(err, ErrBusy, StatusOwned, "%s: another operation works on the set", r.Path())
	}
	if err != nil {
		return nil, err
	}
	s := &setInUse{lib: l, ref: r, file: f}
	if s.format, err = l.probe(f, r.Name); err != nil {
		return nil, err
	}
	if s.format.Set == nil {
		return nil, Errorf(errors.ErrUnsupported, StatusWrongType, "%s is not a set", r.Path())
	}
	set, err := s.format.Set(f)
	if err != nil {
		return nil, err
	}
	if set.ReadOnly != "" {
		return nil, Errorf(ErrReadOnly, 0, "%s: %s", r.Path(), set.ReadOnly)
	}
	s.set = &set
	return s, nil
}

func (s *setInUse) close() error {
	err := s.file.Close()
	if s.leaf != nil {
		err = errors.Join(err, s.lib.release(s.leaf))
	}
	return err
}

// keepOut keeps other programs from the set's disk: ErrBusy while one has it open. An
// operation that opens the disk itself does so in any case. Nobody has a disk open
// that is not there, or that is corrupt.
func (s *setInUse) keepOut() error {
	e, err := s.lib.acquire(s.beside(s.set.Leaf), NoFollow)
	if absent(err) || errors.Is(err, ErrCorrupt) {
		return nil
	}
	if err != nil {
		return err
	}
	s.leaf = e
	return e.file.Lock(true)
}

// next is a copy of what the set says, to be changed and committed. Its own files
// are all in it.
func (s *setInUse) next() *Set {
	n := s.set.clone()
	if len(n.Files) == 0 {
		n.Files = []SetFile{{Name: n.Leaf}}
	}
	return n
}

// commit makes n what the set says; see [Format.CommitSet].
func (s *setInUse) commit(n *Set) error {
	if n.Plain() {
		n.Files, n.Snapshots = nil, nil
	}
	at, err := s.format.CommitSet(s.file, *n)
	if err != nil {
		return err
	}
	now := n.clone()
	now.Sequence, now.Anomalies = at, nil
	s.set = now
	return nil
}

// beside is a file in the set's own folder.
func (s *setInUse) beside(name string) Ref { return beside(s.ref, name) }

// beside is a file in the folder of another.
func beside(r Ref, name string) Ref {
	return Ref{Dir: r.Dir, Name: path.Join(path.Dir(r.Name), name)}
}

// newName is a name for one more disk of a set.
func newName(set string) string { return diskPrefix(set) + NewGUID().String() + ".avhdx" }

// diskPrefix is what the names of a set's disks have before the id.
func diskPrefix(set string) string {
	base := path.Base(set)
	base = strings.TrimSuffix(base, path.Ext(base))
	const most = 255 - len("_.avhdx") - 36
	for len(base) > most {
		base = base[:len(base)-1]
	}
	return strings.ToValidUTF8(base, "") + "_"
}

// snapshotOf is the snapshot that a name stands for.
func (s *setInUse) snapshot(name string) (*SetSnapshot, error) {
	if n := s.set.Snapshot(name); n != nil {
		return n, nil
	}
	return nil, noSnapshot(s.ref, name)
}

// takes says why a snapshot cannot be added.
func (s *setInUse) takes(label string, id GUID) error {
	if label != "" {
		if err := CheckSetLabel(label); err != nil {
			return err
		}
	}
	for _, name := range []string{label, id.String()} {
		if s.set.Snapshot(name) != nil {
			return fmt.Errorf("%s has a snapshot %q: %w", s.ref.Path(), name, iofs.ErrExist)
		}
	}
	if len(s.set.Snapshots) >= MaxSetSnapshots {
		return Errorf(ErrUsage, 0, "%s has %d snapshots, as many as a set can have", s.ref.Path(), len(s.set.Snapshots))
	}
	return nil
}

// above is the snapshot that the nearest of files is the data of; zero without one.
func (s *Set) above(files []string) GUID {
	for _, f := range files {
		i := slices.IndexFunc(s.Snapshots, func(n SetSnapshot) bool { return n.Path == f })
		if i >= 0 {
			return s.Snapshots[i].ID
		}
	}
	return GUID{}
}

// makeSet makes the file of a set under its name.
func (l *Library) makeSet(r Ref, set Set) error {
	format, err := l.formatFor(r.Name, "")
	if err != nil {
		return err
	}
	return MakeFile(r, func(f File) error { return format.CreateSet(f, set) })
}

// behindSet makes the target the disk of a new set where a set was asked for.
func (t *target) behindSet() error {
	if t.format == nil || t.format.CreateSet == nil {
		return nil
	}
	if err := t.nameIsFree(); err != nil {
		return err
	}
	set := t.ref
	t.set, t.ref = &set, Ref{Dir: set.Dir, Name: path.Join(path.Dir(set.Name), newName(set.Name))}
	var err error
	t.format, err = t.lib.formatFor(t.ref.Name, "")
	return err
}

// newLeaf makes an empty disk that is made from base: one of the set's files that
// it lists already. After a crash it is there, or not: the set does not use it. It
// answers what base said of itself then: the disk records that LinkID, which a
// guest's first write changes.
func (s *setInUse) newLeaf(name string, base *Engine, now time.Time) (Info, error) {
	info, size, err := base.describe()
	if err != nil {
		return info, err
	}
	st, err := base.file.Stat()
	if err != nil {
		return info, err
	}
	ref := s.beside(name)
	relative, err := relativePath(ref.Path(), base.ref.Path())
	if err != nil {
		return info, err
	}
	spec := CreateSpec{Type: Differencing, Size: size, LogicalSector: info.LogicalSector, PhysicalSector: info.PhysicalSector, Now: now,
		Parent: &CreateParent{LinkID: info.LinkID, DiskID: info.DiskID, Timestamp: st.Mtime, Relative: relative, Absolute: base.ref.Path()}}
	return info, MakeFile(ref, func(f File) error { return base.format.Create(f, spec) })
}

// openLeaf takes the engine of a disk that nobody else knows, for writing.
func (s *setInUse) openLeaf(name string) (*Engine, error) {
	e, err := s.lib.acquire(s.beside(name), NoFollow)
	if err != nil {
		return nil, err
	}
	if err := e.upgrade(e.ref, NoFollow, OpenOptions{}); err != nil {
		return nil, errors.Join(err, s.lib.release(e))
	}
	s.lib.mu.Lock()
	e.use.upgraded = true
	s.lib.mu.Unlock()
	return e, nil
}

// discard removes a disk that the set lists and does not use, and then its name
// from the set. ErrChanged where another file is in its place. After a crash it may
// be listed and not be there.
func (s *setInUse) discard(name string) error {
	says, err := s.format.Set(s.file) // whatever this operation believes
	if err != nil {
		return err
	}
	if says.Refers(name) {
		return Errorf(ErrChanged, 0, "%s: refers to %s, which is not removed", s.ref.Path(), name)
	}
	if err := s.isRecorded(name); err != nil {
		return err
	}
	ref := s.beside(name)
	if err := removeAny(ref.Dir, ref.Name); err != nil {
		return err
	}
	if err := ref.Dir.Sync(path.Dir(ref.Name), "set.discard"); err != nil {
		return err
	}
	if err := s.lib.tracking().Remove(ref); err != nil {
		return err
	}
	n := s.next()
	n.Files = slices.DeleteFunc(n.Files, func(f SetFile) bool { return f.Name == name })
	return s.commit(n)
}
