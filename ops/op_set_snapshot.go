package ops

import (
	"context"
	"errors"
	"math"
	"path"
	"slices"
	"time"
)

// InfoDocument is the document of a snapshot that is written to change its entry.
const InfoDocument = "info.json"

// opSetSnapshot changes or adds the entry of a snapshot.
var opSetSnapshot = &Op{
	Name:     "set-snapshot",
	Method:   "SetVHDSnapshotInformation",
	Brief:    "change the label or the file of a snapshot of a set, or add an entry",
	Writes:   true,
	Plans:    true,
	Snapshot: true,
	Args: []Arg{
		argSnapshot.with("id or label of the snapshot; an id that the set has not adds an entry"),
		{Name: "Label", Kind: ArgText, Help: "new label"},
		{Name: "SnapshotPath", Short: "path", Kind: ArgPath, Help: "file in the set's folder that holds its data: with the same disk id, size and a place in a chain of the set"},
		{Name: "ResilientChangeTrackingId", Short: "tracking", Kind: ArgText, Help: "of a new entry"},
	},
	Can: canSet,
	Run: runSetSnapshot,
}

// runSetSnapshot is one commit, of metadata alone.
func runSetSnapshot(_ context.Context, r *Request) (_ Fields, err error) {
	s, err := r.Library.useSet(r.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.keepOut(); err != nil {
		return nil, err
	}
	name, label := r.Args.Text(argSnapshot.Name), r.Args.Text("Label")
	next := s.next()
	n := next.Snapshot(name)
	if n == nil {
		id, err := ParseGUID(name)
		if err != nil {
			_, err = s.snapshot(name)
			return nil, err
		}
		next.Snapshots = append(next.Snapshots, SetSnapshot{ID: id, Type: SetSnapshotVM, Created: time.Now().UTC().Truncate(time.Millisecond),
			TrackingID: r.Args.Text("ResilientChangeTrackingId")})
		n = &next.Snapshots[len(next.Snapshots)-1]
	} else if r.Args.Has("ResilientChangeTrackingId") && r.Args.Text("ResilientChangeTrackingId") != n.TrackingID {
		return nil, Errorf(ErrUsage, 0, "snapshot %q has the tracking id %q, which cannot be changed", n.Name(), n.TrackingID)
	}
	if label != "" && label != n.Label {
		if err := s.takes(label, NewGUID()); err != nil {
			return nil, err
		}
		n.Label = label
	}
	if r.Args.Has("SnapshotPath") {
		file, err := s.dataFor(r, n)
		if err != nil {
			return nil, err
		}
		if n.Path = file; !slices.ContainsFunc(next.Files, func(f SetFile) bool { return f.Name == file }) {
			return nil, Errorf(ErrUsage, 0, "path=%q: is not one of the set's files", file)
		}
	}
	if r.Dry {
		return Plan{Changes: []string{r.Image.Path()}, Free: math.MaxInt64}.Fields(), next.Check()
	}
	f := Fields{{"Path", r.Image.Path()}, {"SnapshotId", n.ID}, {"Label", n.Label}}
	r.Begin(0)
	return f, s.commit(next)
}

// dataFor is the name of a file that can be a snapshot's data.
func (s *setInUse) dataFor(r *Request, n *SetSnapshot) (string, error) {
	typed := r.Args.Text("SnapshotPath")
	ref, err := r.place("path", typed)
	if err != nil {
		return "", err
	}
	file := path.Base(ref.Name)
	if file == n.Path {
		return file, nil
	}
	if ref.Path() != s.beside(file).Path() {
		return "", Errorf(ErrUsage, 0, "path=%q: is not in the folder of %s", typed, s.ref.Path())
	}
	if file == s.set.Leaf {
		return "", Errorf(ErrUsage, 0, "path=%q: is the active disk, which is written", typed)
	}
	found, err := s.lib.Inspect(ref)
	if err == nil {
		err = found.Err
	}
	if err == nil {
		err = s.set.judge(ref, file, found.Info)
	}
	if err != nil {
		return "", err
	}
	leaf, err := s.lib.Inspect(s.beside(s.set.Leaf))
	if err == nil {
		err = leaf.Err
	}
	if err != nil {
		return "", err
	}
	if found.Info.DiskID != leaf.Info.DiskID || found.Size != leaf.Size {
		return "", Errorf(ErrUsage, StatusSizeMismatch, "path=%q: disk %s of %d bytes, that of the set is %s of %d", typed, found.Info.DiskID, found.Size, leaf.Info.DiskID, leaf.Size)
	}
	return file, nil
}
