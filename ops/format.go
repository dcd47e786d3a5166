package ops

import "time"

// Numbers of formats: Msvm_VirtualHardDiskSettingData.Format.
const (
	FormatISO  uint16 = 1
	FormatVHD  uint16 = 2
	FormatVHDX uint16 = 3
	FormatSet  uint16 = 4
	FormatVFD  uint16 = 0
)

// Format is one image format, registered explicitly by the program that uses it.
// Functions that are nil mean that the format cannot do that.
type Format struct {
	Name       string   // "vhdx"
	Number     uint16   // the service's number
	Extensions []string // which files to look at: ".vhdx", ".avhdx"
	// Probe tells by content whether f is of this format; ext (lower case, with
	// dot) only breaks ties. A damaged image of this format is "true": Open says
	// what is wrong with it.
	Probe func(f File, ext string) (bool, error)
	// Open validates what opening needs, within 100 ms and 32 MiB whatever the
	// file holds, and reads. It owns f: a failed Open has closed it. It writes
	// nothing, with o.Write too, before the first WriteAt or Zero.
	Open func(f File, o OpenOptions) (Layer, error)
	// Set reads a file that only names other images; such a format has no Open.
	// It leaves f open.
	Set func(f File) (Set, error)
	// Create lays out an empty image in the new, empty file f and syncs it. The
	// caller gives it its final name afterwards.
	Create func(f File, s CreateSpec) error
	// CreateSet is Create for a format that has Set: it makes s.Leaf and s.Snapshots
	// what the new, empty file f says.
	CreateSet func(f File, s Set) error
	// CommitSet makes s, which was read from f and changed, what f says, in one step:
	// a crash leaves the one or the other. ErrChanged when f says something else by
	// now, ErrReadOnly when s.ReadOnly forbids it. ErrPoisoned when the step was taken
	// and failed: nobody knows which of both f says until it is read after a crash.
	// After any other error it says what it said before. It answers the Sequence that
	// f is at then. The caller holds f's lock for writing.
	CommitSet func(f File, s Set) (sequence uint64, err error)
}

// OpenOptions are the terms of opening one layer.
type OpenOptions struct {
	Write bool // the result must be a [Writer]
	// Quiet is for a Writer that changes nothing that a guest or a child can see:
	// moves, metadata. Its session leaves the LinkID alone until somebody calls
	// WriteAt or Zero, or Resize.
	Quiet bool
	// Repair opens for [Repairer] alone what Info.ReadOnly says must not be written.
	Repair bool
	Ext    string // lower case, with dot
	Cache  *Cache // never nil
}

// CreateSpec describes a new image. Zero values mean the format's defaults.
type CreateSpec struct {
	Type           Type
	Size           int64 // bytes
	BlockSize      uint32
	LogicalSector  uint32
	PhysicalSector uint32
	DiskID         GUID // zero: random
	Parent         *CreateParent
	Now            time.Time
}

// CreateParent is what a differencing image is to record of its parent.
type CreateParent struct {
	LinkID    GUID
	DiskID    GUID      // inherited by a VHDX child
	Timestamp time.Time // the parent file's modification time
	NextID    GUID      // a second LinkID that is accepted while a merge is under way; zero: none
	Relative  string    // slash path from the child's directory, "./p.vhdx" or "../d/p.vhdx"
	Absolute  string    // host path
	Name      string    // of a VHD's name field, to put back what Windows wrote; "": the base of the path
	Volume    string    // \\?\Volume{…}\ path, to put back what Windows wrote; "": none
}
