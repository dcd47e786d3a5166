package fs

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"vhdfs/ops"
)

// CacheMode says how the kernel caches the bytes of raw files, in QEMU's words.
type CacheMode uint8

// Modes. With Writeback a write(2) returns when the kernel has the bytes, and
// errors show at fsync or close; with Writethrough when the image has them; with
// CacheNone reads are not cached either. fsync means the same in all of them.
const (
	Writeback CacheMode = iota
	Writethrough
	CacheNone
)

// ParseCacheMode reads "writeback", "writethrough" or "none"; ErrUsage otherwise.
func ParseCacheMode(s string) (CacheMode, error) {
	switch s {
	case "writeback":
		return Writeback, nil
	case "writethrough":
		return Writethrough, nil
	case "none":
		return CacheNone, nil
	}
	return 0, ops.Errorf(ops.ErrUsage, 0, "cache=%q: want writeback, writethrough or none", s)
}

// Options are the terms of a mount.
type Options struct {
	Library    *ops.Library // required; the caller closes it after [Server.Wait]
	MountPoint string       // required: an existing directory
	Single     string       // show only this file of the image folder; "": all
	Source     string       // what df and mount call the source; "": vhdfs

	Ops     []*ops.Op  // one control file each in every image that has it
	Image   []Document // files of an image directory
	Service []Document // files of .vhdfs/; log, metrics and help/ are there anyway

	ReadOnly   bool // opening raw for writing answers EROFS
	AllowOther bool // other users may use the mount, by the mode bits of the files
	Cache      CacheMode
	// Discard makes truncating raw to 0 discard all of it. Without it size 0 is
	// accepted, as nothing, for a disk that reads as zeros, else EEXIST.
	Discard bool

	// Devices, if not nil, are block devices of this machine over files of the
	// mount, by what they say that they lie on: caches of their own. It is called
	// on a thread that can only make system calls (see apart).
	Devices ops.Caches
	// Loops, if not nil, make block devices of attached images. Without it nothing
	// can be attached.
	Loops ops.BlockDevices

	// OnMounted, if not nil, is called with the device number of the mount before
	// Mount returns: paths that lead there must never be opened as images.
	OnMounted func(dev uint64)
	// Panics, if not nil, counts recovered panics in place of a counter of the
	// mount's own: for who recovers those of the library.
	Panics *atomic.Int64
	Log    *logrus.Logger // required
}

// Document is a small file that is only read.
type Document struct {
	Name string
	// Can tells whether an image has the file; nil: all have.
	Can func(*ops.Found) bool
	// Render writes the document; ref is the image, zero for the service. It is
	// called at each open. What is long goes to an unlinked file.
	Render func(ctx context.Context, ref ops.Ref, w io.Writer) error
	// Long documents may be megabytes: a stat does not render them.
	Long bool
}
