package ops

import (
	"context"
	"time"
)

// Kind says where the bytes of a run come from.
type Kind uint8

const (
	// Absent bytes are the parent's; without a parent they are zeros.
	Absent Kind = iota
	// Zero bytes are zeros, whatever the parent holds.
	Zero
	// Data bytes are stored in this layer's file.
	Data
)

// Extent is a run of one kind.
type Extent struct {
	Len  int64
	Kind Kind
	Pos  int64 // offset in the file of the first byte of Data; -1 otherwise
}

// Layer is the content of one image file, without its parents.
//
// Offsets and lengths are bytes of the virtual disk at any alignment. Every
// method may be called concurrently, checks its own ranges and never panics for
// any offset. A request that starts at or past Size answers io.EOF.
type Layer interface {
	// Size is the virtual size in bytes; the same from open to close unless a
	// resize changes it.
	Size() int64
	// Info is a snapshot of what the file says of itself.
	Info() Info
	// ReadRun reads the longest prefix of p that is one run: n bytes of Data
	// are in p[:n], n bytes of Zero were cleared, n bytes of Absent leave p as
	// it was. n > 0 unless err != nil or p is empty. One lookup, atomic against
	// concurrent changes of the block table.
	ReadRun(p []byte, off int64) (n int, k Kind, err error)
	// Extent is the longest run of one kind at off, at most max bytes (and to
	// the end of the disk); Data is also split where it is not contiguous in
	// the file. Callers join neighbours.
	Extent(off, max int64) (Extent, error)
	// Close ends a write session cleanly if there was one, and closes the file.
	Close() error
}

// Writer is a Layer opened for writing. WriteAt and Zero take whole logical
// sectors (ErrUsage otherwise); [Chain] does the read-modify-write for less.
type Writer interface {
	Layer
	// WriteAt stores all of p or returns an error and leaves every sector it
	// did not store as it was. Not durable before Flush.
	WriteAt(p []byte, off int64) (int, error)
	// Zero makes a range read as zeros, never as the parent's bytes. With unmap
	// space goes back to the image and the host where the type allows it; without
	// it a fixed or allocated block stays allocated. Not durable before Flush.
	Zero(off, n int64, unmap bool) error
	// Flush returns when every earlier write and all metadata it needs survives
	// power loss. An error poisons the layer: writes and flushes answer
	// ErrPoisoned from then on, reads go on (contract C6).
	Flush() error
}

// Checker is a Layer that can look for anomalies beyond what opening checks:
// overlaps, entries out of range, leaked space. It streams them and keeps its
// memory bounded; an error means that the check itself could not go on.
type Checker interface {
	Check(ctx context.Context, report func(Anomaly)) error
}

// TableChecker is a Layer that can look whether its block table is sound, as part
// of what [Checker] does: without reading content, so that it takes seconds for
// the greatest disks.
type TableChecker interface {
	CheckTable(ctx context.Context, report func(Anomaly)) error
}

// Type is how an image stores its disk: the service's numbers.
type Type uint16

// Types of Msvm_VirtualHardDiskSettingData; 0 for ISO and floppy images.
const (
	Fixed        Type = 2
	Dynamic      Type = 3
	Differencing Type = 4
)

func (t Type) String() string {
	switch t {
	case Fixed:
		return "fixed"
	case Dynamic:
		return "dynamic"
	case Differencing:
		return "differencing"
	}
	return "raw"
}

// Info is what an image file says of itself, its parents not asked.
type Info struct {
	Type           Type
	BlockSize      uint32 // bytes; 0 where the format has no blocks
	LogicalSector  uint32 // bytes: 512, 4096; 2048 for ISO
	PhysicalSector uint32
	DiskID         GUID      // the service's VirtualDiskId
	LinkID         GUID      // what a child records to know this file again
	Timestamp      time.Time // zero where the format has none
	Creator        string    // as stored; may hold anything: quote it
	Parent         *Parent   // nil unless differencing
	Log            LogState
	ReadOnly       string // why it cannot be opened for writing; "" when it can
	Aligned        bool   // payload starts at multiples of 4 KiB
	Label          string // volume id of an ISO, BPB label of a floppy
	Anomalies      []Anomaly
}

// LogState says what a VHDX log holds.
type LogState string

// States of a log. Replayed means: replayed in memory, the file is untouched.
const (
	LogNone     LogState = ""
	LogClean    LogState = "clean"
	LogReplayed LogState = "dirty, replayed in memory"
	LogEmpty    LogState = "dirty, without a valid entry"
)

// Severity of an [Anomaly].
type Severity string

// Severities: Note is odd but harmless, Warning may lose something or is
// refused by other readers, Broken means that bytes cannot be trusted.
const (
	Note    Severity = "note"
	Warning Severity = "warning"
	Broken  Severity = "error"
)

// Anomaly is one thing that is not as the format wants it.
type Anomaly struct {
	Name     string // stable, such as "vhdx.header.invalid"; listed in docs/anomalies.md
	Severity Severity
	Where    string // structure and index, such as "bat entry 812"
	Text     string // the sentence with the numbers
}

// Parent is what a differencing image records of its parent.
type Parent struct {
	IDs       []GUID // any of these is accepted as the parent's LinkID
	Paths     []ParentPath
	Timestamp time.Time // of the parent when recorded; zero when not stored
	// Err says why not all of it can be read; nil when all can. Nobody reads through
	// such a record: IDs and Paths are what there is of it.
	Err error
}

// ParentPath is one recorded path, as stored.
type ParentPath struct {
	Kind PathKind
	Path string
}

// PathKind tells how a recorded path is meant.
type PathKind string

// Kinds of recorded paths, in the order in which they are tried.
const (
	PathRelative PathKind = "relative" // to the directory of the child
	PathAbsolute PathKind = "absolute" // drive letter, UNC, or of another system
	PathVolume   PathKind = "volume"   // \\?\Volume{…}\
	PathName     PathKind = "name"     // VHD's name field: base name or whole path
)
