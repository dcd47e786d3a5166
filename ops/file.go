package ops

import (
	"io"
	"time"
)

// File is one host file: an image, a journal, a temporary. Offsets are absolute;
// there is no shared position. All methods may be called concurrently.
//
// A label names the place in the code that asks for durability or changes the
// size, such as "vhdx.log.entry": tests drop and fail calls by it.
type File interface {
	// ReadAt fills p or says why not; at the end of the file it returns io.EOF
	// with the bytes that are there.
	io.ReaderAt
	// WriteAt stores all of p or returns an error; bytes stored before the error
	// stay stored. It extends the file when p ends past its end.
	io.WriterAt
	io.Closer
	// Stat is of the open file, whatever its name means by now.
	Stat() (FileStat, error)
	// Truncate sets the size; added bytes read as zeros. Not durable before Sync.
	Truncate(size int64, label string) error
	// Sync makes every completed change of content and size durable (fdatasync).
	// After an error nothing may be assumed about earlier changes, ever again.
	Sync(label string) error
	// Punch makes [off, off+n) read as zeros and gives its space back to the
	// host; the size stays. errors.ErrUnsupported where the host cannot.
	Punch(off, n int64) error
	// Allocate reserves space for [off, off+n), extending the size; content
	// stays, added bytes read as zeros. errors.ErrUnsupported where the host cannot.
	Allocate(off, n int64) error
	// NextData finds the first run of stored data at or after off: [data, hole).
	// io.EOF when only a hole is left.
	NextData(off int64) (data, hole int64, err error)
	// Lock takes QEMU's image locks for a reader or a writer and keeps them
	// until Close; asking again with write true upgrades. ErrBusy when another
	// open file description of this machine holds what excludes it; a failed
	// upgrade keeps the reader's locks.
	Lock(write bool) error
}

// FileID is the identity of a host file, whatever its names.
type FileID struct{ Dev, Ino uint64 }

// FileStat is what the host says of a file or directory.
type FileStat struct {
	ID         FileID
	Size       int64
	Blocks     int64 // allocated, in units of 512 bytes
	Mtime      time.Time
	Ctime      time.Time
	Mode       uint32 // permission bits
	UID, GID   uint32
	IsDir      bool
	IsRegular  bool
	SectorSize uint32 // of the device below, 0 when unknown
}

// Access is how [Dir.Open] opens a file.
type Access uint8

// Read leaves access times alone where the host allows that. NoFollow refuses
// symbolic links on the whole path: for paths that were read out of an image.
// ForDevice, to [Library.Open] alone, opens an image for the block device of its
// attachment, which nobody else may write beside.
const (
	Read      Access = 0
	Write     Access = 1 << 0
	NoFollow  Access = 1 << 1
	ForDevice Access = 1 << 2
)

// Dir is a directory of the host and all that lies beneath it. Names are
// slash-separated paths relative to it. No name, "..", absolute path or
// symbolic link leads outside (ErrForbidden), and what was checked is what was
// opened: there is no gap to swap a file in. "." is the directory itself.
type Dir interface {
	io.Closer
	// Path is the absolute host path of name, for answers and messages only.
	Path(name string) string
	// Open opens a regular file; anything else (FIFO, device, directory, a file
	// of our own mount) is refused without waiting: ErrForbidden.
	Open(name string, a Access) (File, error)
	// Create makes a new file, open for writing: fs.ErrExist when the name is taken.
	Create(name string, perm uint32) (File, error)
	// Stat follows symbolic links that stay beneath the directory.
	Stat(name string) (FileStat, error)
	// List reads a directory in name order; opens nothing in it.
	List(name string) ([]DirEntry, error)
	Mkdir(name string, perm uint32) error
	// Remove unlinks a file or an empty directory.
	Remove(name string) error
	// Rename gives a file or a directory another name. It never replaces:
	// fs.ErrExist when the new name is taken.
	Rename(old, new string) error
	// Free is how many bytes the file system of directory name has left for new
	// content, reserves for root aside; math.MaxInt64 where it does not say.
	Free(name string) (int64, error)
	// Sync makes creations, renames and removals in directory name durable.
	Sync(name, label string) error
}

// DirEntry is one name in a directory. A symbolic link reports what it leads to
// when that lies beneath the directory, and is left out of lists otherwise.
type DirEntry struct {
	Name      string
	IsDir     bool
	IsRegular bool
}

// Ref names an image: a host directory tree and a path in it.
type Ref struct {
	Dir  Dir
	Name string
}

// Path is the absolute host path, for answers and messages.
func (r Ref) Path() string { return r.Dir.Path(r.Name) }
