package ops

import "errors"

// LibraryOptions are the terms of a [Library].
type LibraryOptions struct {
	Top     Dir       // the image folder
	Search  []Dir     // folders whose images may be parents, found by path and by id
	Allow   []Dir     // folders that parents may be opened in, by recorded path only
	Formats []*Format // in the order they are probed
	Cache   *Cache    // nil: a cache of DefaultCacheBudget
}

// Library is the images of a folder, the folders in which their parents may
// lie, and the engines of those that are open. Safe for concurrent use.
type Library struct {
	opts LibraryOptions
}

// NewLibrary opens nothing.
func NewLibrary(o LibraryOptions) *Library { return &Library{opts: o} }

// Top names an image of the image folder.
func (l *Library) Top(name string) Ref { return Ref{Dir: l.opts.Top, Name: name} }

// IsImageName tells whether a file of this name is looked at: by extension,
// case-insensitively.
func (l *Library) IsImageName(name string) bool { return false }

// List is a folder of the image folder: its sub-folders and the files with an
// image's name. It opens no image. Our own state folders are left out.
func (l *Library) List(dir string) ([]DirEntry, error) { return nil, errors.ErrUnsupported }

// Found is what looking at one image file gave, parents and locks aside.
type Found struct {
	Ref    Ref
	Stat   FileStat
	Format *Format // nil when no format knows the file
	Size   int64   // virtual size, 0 when it cannot be opened
	Info   Info    // of the leaf, for a set
	Set    *Set    // nil unless the file is a set
	Leaf   Ref     // the file that holds the disk: Ref itself, or the set's leaf
	Err    error   // why it cannot be opened; nil when it can
}

// Inspect looks at one image, without locks, without its parents, writing
// nothing. Answers are cached by identity, size and times of the file.
// A file that cannot be opened is a Found with Err; the error result is only
// for a name that is not there or not a regular file.
func (l *Library) Inspect(r Ref) (*Found, error) { return nil, errors.ErrUnsupported }

// Rule says how a parent was found.
type Rule string

// Rules in the order in which they are tried.
const (
	RuleRelative Rule = "relative path"
	RuleName     Rule = "name beside the child"
	RuleFolded   Rule = "case-folded"
	RuleSuffix   Rule = "suffix of an absolute path"
	RuleID       Rule = "id"
)

// Link is one image of a chain as chain.json shows it.
type Link struct {
	Ref      Ref
	Found    *Found
	Rule     Rule         // how this image was found by its child; "" for the first
	Stored   []ParentPath // what it records of its parent; nil for a root
	WantIDs  []GUID       // ids that it records
	Passed   []Candidate  // candidates for its parent that were looked at and not taken
	Warnings []string     // such as a VHD's time stamp mismatch
	Err      error        // why the chain ends here although it should go on
}

// Candidate is a file that was looked at as a parent.
type Candidate struct {
	Path string
	Rule Rule
	ID   GUID
	Why  string // why it was not taken
}

// ChainOf follows the parents of an image as far as they can be found, without
// locks. The last link's Err says why a chain is broken; nil when it is whole.
func (l *Library) ChainOf(r Ref) ([]Link, error) { return nil, errors.ErrUnsupported }

// Open opens an image with all of its parents for guest I/O. One engine serves
// all handles of a host file. ErrParentMissing, ErrParentMismatch or ErrCycle
// for a broken chain: never zeros in place of a parent.
func (l *Library) Open(r Ref, a Access) (*Handle, error) { return nil, errors.ErrUnsupported }

// Graph is every image of the folder with its links.
func (l *Library) Graph() (*Graph, error) { return nil, errors.ErrUnsupported }

// Graph is the link index of a folder: headers and locators only.
type Graph struct {
	Images []GraphNode
}

// GraphNode is one image in a [Graph].
type GraphNode struct {
	Ref      Ref
	Found    *Found
	Parent   string   // path of the parent found; "" for a root or when it is missing
	Rule     Rule     // how it was found
	Err      error    // why the parent is not there
	Children []string // paths of images whose parent is this very file with the recorded id
	SameID   []string // paths of other images with the same LinkID
}

// Children are the images whose parent, by the rules of resolution, is this
// very file with the id that they record.
func (l *Library) Children(r Ref) ([]Ref, error) { return nil, errors.ErrUnsupported }

// Close closes every engine.
func (l *Library) Close() error { return nil }

// Handle is one user of an engine. Its methods may be called concurrently.
type Handle struct{}

// Size is the virtual size in bytes.
func (h *Handle) Size() int64 { return 0 }

// ReadAt reads guest bytes through the chain; io.EOF at the end of the disk.
func (h *Handle) ReadAt(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }

// ChainExtent is a run of one kind in the merged view of a chain.
type ChainExtent struct {
	Extent
	Depth int // index of the layer that holds the data: 0 is the image itself
}

// Extent is the longest run of one kind and one layer at off, at most max bytes.
// Absent does not occur: what no layer holds is Zero.
func (h *Handle) Extent(off, max int64) (ChainExtent, error) {
	return ChainExtent{}, errors.ErrUnsupported
}

// WriteAt stores all of p at off. Any alignment: less than a logical sector is
// read, changed and written. ErrReadOnly unless opened with Write, ErrPastEnd
// when p ends past Size (nothing is written then).
func (h *Handle) WriteAt(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }

// Zero makes a range of any alignment read as zeros, never as a parent's bytes;
// see [Writer] for unmap.
func (h *Handle) Zero(off, n int64, unmap bool) error { return errors.ErrUnsupported }

// Flush returns when every write that completed before survives power loss.
// Concurrent calls share one. See [Writer] for what an error means.
func (h *Handle) Flush() error { return errors.ErrUnsupported }

// Layers are the refs of the chain, the image itself first.
func (h *Handle) Layers() []Ref { return nil }

// Stat is of the image's own host file.
func (h *Handle) Stat() (FileStat, error) { return FileStat{}, errors.ErrUnsupported }

// Close gives the handle back; the last one closes the engine.
func (h *Handle) Close() error { return nil }
