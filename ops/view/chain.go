package view

import "vhdfs/ops"

// Chain is chain.json: an image and every parent as far as they were found.
type Chain struct {
	Path   string
	Whole  bool // every link holds
	Images []ChainImage
	Error  string `json:",omitempty"` // why it is not whole
	Errno  string `json:",omitempty"`

	PendingMerge *PendingMerge `json:",omitempty"`
}

// ChainImage is one image of a chain with its link to the next.
type ChainImage struct {
	Path          string
	Format        string
	Type          string
	Size          int64
	Modified      *string  // when the file was written last
	FoundBy       ops.Rule `json:",omitempty"` // how its child's record led here
	Identifier    ops.GUID // what a child must record
	VirtualDiskId ops.GUID
	Parent        *ParentLink `json:",omitempty"`
	Error         string      `json:",omitempty"` // why this file cannot be opened
}

// ParentLink is what an image records of its parent, and what came of it.
type ParentLink struct {
	StoredPaths       []StoredPath
	StoredIdentifiers []ops.GUID
	StoredTimestamp   *string `json:",omitempty"` // of the parent, where the format stores it
	Path              string  // found; "" when none was
	FoundBy           ops.Rule
	Identifier        ops.GUID // of the file found
	Holds             bool
	PassedOver        []PassedOver `json:",omitempty"`
	Likely            []Likely     `json:",omitempty"` // where none was found: what may be it, for set-parent
	Warnings          []string     `json:",omitempty"`
	Error             string       `json:",omitempty"`
	Errno             string       `json:",omitempty"`
	StatusCode        uint32       `json:",omitempty"`
}

// StoredPath is one recorded path, as stored.
type StoredPath struct {
	Kind ops.PathKind
	Path string
}

// PassedOver is a file that was looked at as a parent and not taken.
type PassedOver struct {
	Path       string
	Rule       ops.Rule
	Identifier ops.GUID
	Why        string
}

// Likely is a file that may be a parent that is not found.
type Likely struct {
	Path          string
	Identifier    ops.GUID
	VirtualDiskId ops.GUID
	Size          int64
	Modified      *string
	Why           []string // what speaks for it
}

// NewChain makes it from a chain, the image itself first.
func NewChain(links []ops.Link) *Chain {
	c := &Chain{Path: links[0].Ref.Path(), Images: make([]ChainImage, len(links))}
	for i := range links {
		var next *ops.Link
		if i+1 < len(links) {
			next = &links[i+1]
		}
		c.Images[i] = newChainImage(&links[i], next)
	}
	err := broken(links)
	c.Whole = err == nil
	c.Error, c.Errno = ops.Sentence(err), ops.Errno(err)
	return c
}

func newChainImage(l, next *ops.Link) ChainImage {
	f := l.Found
	im := ChainImage{
		Path:          l.Ref.Path(),
		Format:        formatName(f),
		Type:          f.Info.Type.String(),
		Size:          f.Size,
		Modified:      DateTime(f.Stat.Mtime),
		FoundBy:       l.Rule,
		Identifier:    f.Info.LinkID,
		VirtualDiskId: f.Info.DiskID,
		Error:         ops.Sentence(f.Err),
	}
	if f.Err != nil || f.Info.Parent == nil && l.Err == nil {
		return im
	}
	p := &ParentLink{
		StoredPaths:       []StoredPath{},
		StoredIdentifiers: append([]ops.GUID{}, l.WantIDs...),
		Holds:             next != nil && l.Err == nil,
		Warnings:          l.Warnings,
		Error:             ops.Sentence(l.Err),
		Errno:             ops.Errno(l.Err),
		StatusCode:        uint32(ops.StatusOf(l.Err)),
	}
	if f.Info.Parent != nil {
		p.StoredTimestamp = DateTime(f.Info.Parent.Timestamp)
	}
	for _, y := range l.Likely {
		p.Likely = append(p.Likely, Likely{y.Found.Ref.Path(), y.Found.Info.LinkID, y.Found.Info.DiskID, y.Found.Size, DateTime(y.Found.Stat.Mtime), y.Why})
	}
	for _, s := range l.Stored {
		p.StoredPaths = append(p.StoredPaths, StoredPath(s))
	}
	for _, c := range l.Passed {
		p.PassedOver = append(p.PassedOver, PassedOver{Path: c.Path, Rule: c.Rule, Identifier: c.ID, Why: c.Why})
	}
	if next != nil {
		p.Path, p.FoundBy, p.Identifier = next.Ref.Path(), next.Rule, next.Found.Info.LinkID
	}
	im.Parent = p
	return im
}

func idText(g ops.GUID) string {
	b, err := g.MarshalText()
	if err != nil {
		return ""
	}
	return string(b)
}
