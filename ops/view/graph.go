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
	MissingParents     []string // images whose parent was not found
	MismatchedParents  []string // images whose parent has another id
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
	Identifier ops.GUID
	Parent     string   `json:",omitempty"`
	FoundBy    ops.Rule `json:",omitempty"`
	Children   []string `json:",omitempty"`
	Error      string   `json:",omitempty"`
	Errno      string   `json:",omitempty"`
}

// NewGraph makes it from the link index.
func NewGraph(g *ops.Graph) *Graph {
	v := &Graph{
		Images: make([]GraphImage, len(g.Images)), MissingParents: []string{}, MismatchedParents: []string{},
		DuplicateIDs: [][]string{}, UnreadableImages: []string{}, ImagesWithChildren: []string{},
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
	case errors.Is(err, ops.ErrParentMismatch):
		v.MismatchedParents = append(v.MismatchedParents, path)
	case err != nil:
		v.MissingParents = append(v.MissingParents, path)
	}
	if len(n.Children) > 0 {
		v.ImagesWithChildren = append(v.ImagesWithChildren, path)
	}
	// Each group is listed once, by the first of its paths.
	if len(n.SameID) > 0 && path < slices.Min(n.SameID) {
		v.DuplicateIDs = append(v.DuplicateIDs, append([]string{path}, n.SameID...))
	}
	v.Images[i] = GraphImage{
		Path: path, Format: formatName(f), Type: f.Info.Type.String(), Size: f.Size,
		Identifier: f.Info.LinkID, Parent: n.Parent, FoundBy: n.Rule, Children: n.Children,
		Error: ops.Sentence(err), Errno: ops.Errno(err),
	}
}
