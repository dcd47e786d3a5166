package ops

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a set.
const (
	MaxSetSnapshots = 4096
	MaxSetFiles     = 2 * MaxSetSnapshots // those that optimize has still to remove included
	MaxSetLabel     = 255                 // bytes
)

// Set is what a VHD set file says. Names of files are those of files in the set's
// own directory.
type Set struct {
	Leaf      string // file name of the active disk
	Creator   string // as stored; may hold anything: quote it
	ReadOnly  string // why the set must not be written; "" when it may
	Anomalies []Anomaly

	// The rest is what only a set with snapshots of vhdfs's own has.

	ID        GUID
	Sequence  uint64 // of the commit that it was read from
	Snapshots []SetSnapshot
	Files     []SetFile // all that the set owns, those that nothing refers to included; empty: the leaf alone
	Pending   *SetPending
}

// SetSnapshotType is the type of a snapshot, as MS-RSVD numbers them.
type SetSnapshotType uint16

// Types of snapshots. A writeable one is a leaf that was kept when another
// snapshot was applied.
const (
	SetSnapshotVM        SetSnapshotType = 1
	SetSnapshotWriteable SetSnapshotType = 4
)

// SetSnapshot is one state of the disk that a set keeps.
type SetSnapshot struct {
	ID         GUID
	Label      string // unique in the set, a file name; "" for none
	Type       SetSnapshotType
	Path       string    // file name; "" for a reference without data
	Parent     GUID      // the snapshot that it was made after; zero for the first
	Created    time.Time // to the millisecond
	TrackingID string    // of resilient change tracking; "" for none
}

// Name is what the snapshot is called where names are asked for.
func (s *SetSnapshot) Name() string {
	if s.Label != "" {
		return s.Label
	}
	return s.ID.String()
}

// SetFile is a file that a set owns.
type SetFile struct {
	Name   string
	DiskID GUID
	LinkID GUID // when the set last looked; zero: never
}

// SetPending is an operation that was begun on files of the set and has to be
// finished: From is folded into Into, which takes its place.
type SetPending struct{ From, Into string }

// Plain tells whether a set has nothing that its file would need more for than the
// name of the active disk.
func (s *Set) Plain() bool {
	return len(s.Snapshots) == 0 && s.Pending == nil && !slices.ContainsFunc(s.Files, func(f SetFile) bool { return f.Name != s.Leaf })
}

// Owns tells whether a file is the set's to write and to remove.
func (s *Set) Owns(name string) bool {
	return name == s.Leaf || slices.ContainsFunc(s.Files, func(f SetFile) bool { return f.Name == name })
}

// Refers tells whether the leaf or a snapshot is that file.
func (s *Set) Refers(name string) bool {
	return name == s.Leaf || slices.ContainsFunc(s.Snapshots, func(n SetSnapshot) bool { return n.Path == name })
}

// Snapshot finds a snapshot by its label or its id; nil when there is none.
func (s *Set) Snapshot(name string) *SetSnapshot {
	id, err := ParseGUID(name)
	for i := range s.Snapshots {
		n := &s.Snapshots[i]
		if n.Label == name && name != "" || err == nil && n.ID == id {
			return n
		}
	}
	return nil
}

// clone is a copy that can be changed.
func (s *Set) clone() *Set {
	c := *s
	c.Snapshots, c.Files = slices.Clone(s.Snapshots), slices.Clone(s.Files)
	return &c
}

// Check says what is wrong with a set as something to be stored.
func (s *Set) Check() error {
	if len(s.Snapshots) > MaxSetSnapshots {
		return Errorf(ErrUsage, 0, "a set of %d snapshots, at most %d", len(s.Snapshots), MaxSetSnapshots)
	}
	if len(s.Files) > MaxSetFiles {
		return Errorf(ErrUsage, 0, "a set of %d files, at most %d: optimize it", len(s.Files), MaxSetFiles)
	}
	if err := CheckSetFile(s.Leaf); err != nil {
		return err
	}
	names, files := map[string]bool{}, map[string]bool{}
	for _, f := range s.Files {
		if err := CheckSetFile(f.Name); err != nil {
			return err
		}
		if files[f.Name] {
			return Errorf(ErrUsage, 0, "file %q is in the set twice", f.Name)
		}
		files[f.Name] = true
	}
	if len(s.Files) > 0 && !files[s.Leaf] {
		return Errorf(ErrUsage, 0, "the active disk %q is not among the set's files", s.Leaf)
	}
	for i := range s.Snapshots {
		n := &s.Snapshots[i]
		if err := n.check(); err != nil {
			return err
		}
		if n.Path != "" && !files[n.Path] {
			return Errorf(ErrUsage, 0, "snapshot %s: %q is not among the set's files", n.ID, n.Path)
		}
		if names[n.ID.String()] || n.Label != "" && names[n.Label] {
			return Errorf(ErrUsage, 0, "snapshot %s (%q) is in the set twice", n.ID, n.Label)
		}
		names[n.ID.String()], names[n.Name()] = true, true
	}
	if p := s.Pending; p != nil && (!files[p.From] || !files[p.Into] || p.From == p.Into) {
		return Errorf(ErrUsage, 0, "the pending merge of %q into %q is not one of the set's files", p.From, p.Into)
	}
	return nil
}

func (s *SetSnapshot) check() error {
	switch {
	case s.ID.IsZero():
		return Errorf(ErrUsage, 0, "snapshot %q has the id zero", s.Label)
	case s.Type != SetSnapshotVM && s.Type != SetSnapshotWriteable:
		return Errorf(ErrUsage, 0, "snapshot %s: type %d, want %d or %d", s.ID, s.Type, SetSnapshotVM, SetSnapshotWriteable)
	case s.Created.UTC().Year() < 1 || s.Created.UTC().Year() > 9999:
		return Errorf(ErrUsage, 0, "snapshot %s: made in the year %d", s.ID, s.Created.UTC().Year())
	case len(s.TrackingID) > MaxSetLabel || !utf8.ValidString(s.TrackingID):
		return Errorf(ErrUsage, 0, "snapshot %s: tracking id of %d bytes, want text of at most %d", s.ID, len(s.TrackingID), MaxSetLabel)
	}
	if s.Label != "" {
		if err := CheckSetLabel(s.Label); err != nil {
			return err
		}
	}
	if s.Path == "" {
		return nil
	}
	return CheckSetFile(s.Path)
}

// CheckSetLabel says why a text cannot be the label of a snapshot, which is the
// name of a directory in a mount.
func CheckSetLabel(label string) error {
	if label == "" || label == "." || label == ".." || len(label) > MaxSetLabel || !utf8.ValidString(label) ||
		strings.ContainsFunc(label, func(c rune) bool { return c == '/' || c < 0x20 || c == 0x7f }) {
		return Errorf(ErrUsage, 0, "label %.300q: want the name of a file, of at most %d bytes", label, MaxSetLabel)
	}
	if _, err := ParseGUID(label); err == nil {
		return Errorf(ErrUsage, 0, "label %q: is an id", label)
	}
	return nil
}

// CheckSetFile says why a text cannot be the name of a file in the set's own
// directory.
func CheckSetFile(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 || !utf8.ValidString(name) || strings.ContainsAny(name, "/\\\x00") {
		return Errorf(ErrUsage, 0, "%.300q is no name of a file in the set's own directory", name)
	}
	if strings.HasSuffix(strings.ToLower(name), ".vhds") {
		return Errorf(ErrUsage, 0, "%q is a set itself", name)
	}
	return nil
}
