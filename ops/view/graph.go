package view

import (
	"errors"
	"slices"

	"vhdfs/ops"
)

// Graph is graph.json: every image of the folder with its links, and lists of
// what somebody who looks for trouble wants first.
type Graph struct {
	Images             []GraphImage
	Orphans            []string // images that cannot be read because an ancestor is not there, however far up
	MissingParents     []string // images whose own parent was not found
	MismatchedParents  []string // images whose own parent has another id
	UnreadableParents  []string // images whose own parent is there and cannot be opened
	UnreadableLinks    []string // images of which nobody can tell what their parent is
	Cycles             []string // images in a chain that leads back to itself
	DuplicateIDs       [][]string
	UnreadableImages   []string
	ImagesWithChildren []string
}

// GraphImage is one image of a [Graph].
type GraphImage struct {
	Path       string
	Format     string
	Type       string
	Size       int64
	Allocated  int64 // what the host keeps for the file
	Identifier ops.GUID
	Depth      int      // images of its chain, as far as they were found
	Leaf       string   `json:",omitempty"` // of a set: its active disk
	Wanted     *Wanted  `json:",omitempty"` // where the parent is not there
	Parent     string   `json:",omitempty"`
	FoundBy    ops.Rule `json:",omitempty"`
	Children   []string `json:",omitempty"`
	Error      string   `json:",omitempty"`
	Errno      string   `json:",omitempty"`
}

// Wanted is what an image records of a parent that is not there.
type Wanted struct {
	Identifiers []ops.GUID
	Paths       []StoredPath
}

// NewGraph makes it from the link index.
func NewGraph(g *ops.Graph) *Graph {
	v := &Graph{
		Images: make([]GraphImage, len(g.Images)), Orphans: []string{}, MissingParents: []string{}, MismatchedParents: []string{},
		UnreadableParents: []string{}, UnreadableLinks: []string{}, Cycles: []string{}, DuplicateIDs: [][]string{}, UnreadableImages: []string{}, ImagesWithChildren: []string{},
	}
	for i := range g.Images {
		v.add(i, &g.Images[i])
	}
	return v
}

func (v *Graph) add(i int, n *ops.GraphNode) {
	path, f := n.Ref.Path(), n.Found
	err := n.Err
	switch {
	case f.Err != nil:
		err = f.Err
		v.UnreadableImages = append(v.UnreadableImages, path)
	case errors.Is(n.ChainErr, ops.ErrCycle):
		v.Cycles = append(v.Cycles, path)
	case f.Info.Parent != nil && f.Info.Parent.Err != nil:
		v.UnreadableLinks = append(v.UnreadableLinks, path)
	case errors.Is(err, ops.ErrParentMismatch):
		v.MismatchedParents = append(v.MismatchedParents, path)
	case errors.Is(err, ops.ErrParentMissing):
		v.MissingParents = append(v.MissingParents, path)
	case err != nil:
		v.UnreadableParents = append(v.UnreadableParents, path)
	}
	if f.Err == nil && n.ChainErr != nil {
		v.Orphans = append(v.Orphans, path)
		if err == nil {
			err = n.ChainErr
		}
	}
	if len(n.Children) > 0 {
		v.ImagesWithChildren = append(v.ImagesWithChildren, path)
	}
	// Each group is listed once, by the first of its paths.
	if len(n.SameID) > 0 && path < slices.Min(n.SameID) {
		v.DuplicateIDs = append(v.DuplicateIDs, append([]string{path}, n.SameID...))
	}
	v.Images[i] = GraphImage{
		Path: path, Format: formatName(f), Type: f.Info.Type.String(), Size: f.Size, Allocated: f.Stat.Blocks * 512, Depth: n.Depth,
		Identifier: f.Info.LinkID, Parent: n.Parent, FoundBy: n.Rule, Children: n.Children,
		Error: ops.Sentence(err), Errno: ops.Errno(err),
	}
	if f.Set != nil {
		v.Images[i].Leaf = f.Leaf.Path()
	}
	if n.Err != nil && f.Info.Parent != nil {
		w := &Wanted{Identifiers: f.Info.Parent.IDs}
		for _, p := range f.Info.Parent.Paths {
			w.Paths = append(w.Paths, StoredPath(p))
		}
		v.Images[i].Wanted = w
	}
}
