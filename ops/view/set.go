package view

import (
	"io"

	"vhdfs/ops"
)

// SetInformation is Msvm_VHDSetInformation, and what vhdfs knows besides.
type SetInformation struct {
	Path           string
	SnapshotIdList []ops.GUID
	AllPaths       []string // every file of the set, the active disk first; then parents that it does not manage
	ActivePath     string
	Labels         []string // of the snapshots, in the order of their ids; "" for none
	OptimizeNeeded bool
	ReadOnlyReason string `json:",omitempty"`
}

// SnapshotInformation is Msvm_VHDSnapshotInformation, and what vhdfs knows besides.
type SnapshotInformation struct {
	FilePath                  string
	SnapshotId                ops.GUID
	SnapshotPath              string
	ParentPathsList           []string // nearest first
	CreationTime              *string
	ResilientChangeTrackingId string
	Label                     string
	Type                      ops.SetSnapshotType
	ParentSnapshotId          ops.GUID
	Error                     string `json:",omitempty"` // why the data cannot be read
}

// NewSetInformation describes a set. It looks at the files that it names.
func NewSetInformation(lib *ops.Library, set *ops.Found) (*SetInformation, error) {
	s := &SetInformation{Path: set.Ref.Path(), SnapshotIdList: []ops.GUID{}, Labels: []string{}, ActivePath: set.Leaf.Path(),
		OptimizeNeeded: set.Set.OptimizeNeeded(), ReadOnlyReason: set.Set.ReadOnly}
	for i := range set.Set.Snapshots {
		s.SnapshotIdList = append(s.SnapshotIdList, set.Set.Snapshots[i].ID)
		s.Labels = append(s.Labels, set.Set.Snapshots[i].Label)
	}
	seen := map[string]bool{}
	add := func(path string) {
		if !seen[path] {
			seen[path] = true
			s.AllPaths = append(s.AllPaths, path)
		}
	}
	add(set.Leaf.Path())
	for _, f := range set.Set.Files {
		add(set.Beside(f.Name).Path())
	}
	links, err := lib.ChainOf(set.Leaf)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		add(l.Ref.Path())
	}
	return s, nil
}

// NewSnapshotInformation describes one snapshot of a set.
func NewSnapshotInformation(lib *ops.Library, set *ops.Found, n *ops.SetSnapshot) (*SnapshotInformation, error) {
	s := &SnapshotInformation{FilePath: set.Ref.Path(), SnapshotId: n.ID, ParentPathsList: []string{}, CreationTime: DateTime(n.Created),
		ResilientChangeTrackingId: n.TrackingID, Label: n.Label, Type: n.Type, ParentSnapshotId: n.Parent}
	if n.Path == "" {
		return s, nil
	}
	file := set.Beside(n.Path)
	s.SnapshotPath = file.Path()
	data, err := lib.InspectSnapshot(set, n)
	if err == nil {
		err = data.Err
	}
	if err != nil {
		s.Error = ops.Sentence(err)
	}
	links, err := lib.ChainOf(file)
	if err != nil {
		return s, nil // that the file is gone is for chain.json to say
	}
	for _, l := range links[1:] {
		s.ParentPathsList = append(s.ParentPathsList, l.Ref.Path())
	}
	return s, nil
}

func isSet(f *ops.Found) bool { return f.Set != nil }

func renderSet(w io.Writer, s *Source) error {
	found, err := s.Library.Inspect(s.Image)
	if err != nil {
		return err
	}
	if found.Set == nil {
		return found.Err
	}
	info, err := NewSetInformation(s.Library, found)
	if err != nil {
		return err
	}
	return Encode(w, info)
}
