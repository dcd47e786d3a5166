package ops

import (
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// StateDir is the folder beside images in which vhdfs keeps journals, undo
// records and temporaries. It is never shown and never searched.
const StateDir = ".vhdfs-state"

// LibraryOptions are the terms of a [Library].
type LibraryOptions struct {
	Top      Dir       // the image folder
	Search   []Dir     // folders whose images may be parents, found by path and by id
	Allow    []Dir     // folders that parents may be opened in, by recorded path only
	Formats  []*Format // in the order they are probed
	Cache    *Cache    // nil: a cache of DefaultCacheBudget
	Tables   Tables    // of partitions; nil: none is known
	Tracking Tracking  // of changes; nil: none
	// BeforeWrite is asked before the first writer of a file, nil: nobody is. It
	// answers ErrBusy while something else uses the file, such as a loop device.
	BeforeWrite func(FileID) error
	// Retired is told that a change tracking file of Hyper-V beside an image, which is
	// written for the first time, has another name; nil: nobody is.
	Retired func(image Ref, from, to string)
	// Panicked is told of a panic that an image caused; the call then fails and
	// the image is poisoned. nil: the panic goes on and ends the program.
	Panicked func(where string, value any, stack []byte)
}

// Library is the images of a folder, the folders in which their parents may
// lie, and the engines of those that are open. Safe for concurrent use.
type Library struct {
	opts      LibraryOptions
	inspected *inspectCache
	unlocked  bool // see Look
	caches    atomic.Pointer[Caches]
	attached  atomic.Pointer[Attachments]
	recent    atomic.Pointer[recentScan] // see ChildrenShown
	changes   atomic.Int64               // how often an operation began or ended that changes images
	mu        struct {
		sync.Mutex
		engines map[FileID]*Engine
		former  map[string]*formerName // by host path
		ended   []File                 // of former names that are to be closed
		freed   chan struct{}          // closed, and made anew, when a user is gone
		closed  bool
	}
}

// NewLibrary opens nothing.
func NewLibrary(o LibraryOptions) *Library {
	if o.Cache == nil {
		o.Cache = NewCache(DefaultCacheBudget)
	}
	l := &Library{opts: o, inspected: newInspectCache(inspectBudget)}
	l.mu.engines = map[FileID]*Engine{}
	l.mu.former = map[string]*formerName{}
	l.mu.freed = make(chan struct{})
	return l
}

// Top names an image of the image folder.
func (l *Library) Top(name string) Ref { return Ref{Dir: l.opts.Top, Name: name} }

// IsImageName tells whether a file of this name is looked at: by extension,
// case-insensitively.
func (l *Library) IsImageName(name string) bool {
	ext := extension(name)
	for _, f := range l.opts.Formats {
		if slices.Contains(f.Extensions, ext) {
			return true
		}
	}
	return false
}

// extension is that of a name in lower case, with its dot.
func extension(name string) string { return strings.ToLower(path.Ext(name)) }

// List is a folder of the image folder: its sub-folders and the files with an
// image's name. It opens no image. Our own state folders are left out.
func (l *Library) List(dir string) ([]DirEntry, error) {
	list, err := l.list(l.opts.Top, dir)
	if err != nil {
		return nil, err
	}
	return l.withFormer(l.opts.Top, dir, list), nil
}

func (l *Library) list(d Dir, name string) ([]DirEntry, error) {
	all, err := d.List(name)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e DirEntry) bool {
		if e.IsDir {
			return e.Name == StateDir
		}
		return !e.IsRegular || !l.IsImageName(e.Name)
	}), nil
}

// Found is what looking at one image file gave, parents and locks aside. It is
// shared: it must not be changed.
type Found struct {
	Ref    Ref
	Stat   FileStat
	Format *Format // nil when no format knows the file
	Size   int64   // virtual size, 0 when it cannot be opened
	Info   Info    // of the leaf, for a set
	Set    *Set    // nil unless the file is a set
	Leaf   Ref     // the file that holds the disk: Ref itself, or the set's leaf
	Err    error   // why it cannot be opened; nil when it can

	disk *Found // of a set: its leaf, nil when that cannot be found
}

// itself is the disk: of a set its leaf.
func (f *Found) itself() *Found {
	if f.disk != nil {
		return f.disk
	}
	return f
}

// Rule says how a parent was found.
type Rule string

// Rules in the order in which they are tried. An absolute path counts only where
// it lies in one of the library's folders.
const (
	RuleRelative Rule = "relative path"
	RuleName     Rule = "name beside the child"
	RuleFolded   Rule = "case-folded"
	RuleAbsolute Rule = "absolute path"
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
	Likely   []Likely     // where the parent is not found: files that may be it, the likeliest first
	Err      error        // why the chain ends here although it should go on
}

// Candidate is a file that was looked at as a parent.
type Candidate struct {
	Path string
	Rule Rule
	ID   GUID
	Why  string // why it was not taken
}

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
	ChainErr error    // why the image cannot be read: Err, or that of an ancestor; nil when it can
	Depth    int      // images of its chain, as far as they are found; itself is 1
	Children []string // paths of images whose parent is this very file with the recorded id
	SameID   []string // paths of other images with the same LinkID
}
