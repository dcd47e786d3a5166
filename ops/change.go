package ops

import "context"

// What a [Writer] may be able to do beyond guest I/O. Operations find these by
// type assertion; a format whose type of disk cannot do something answers
// errors.ErrUnsupported with [StatusWrongType] there, before anything changes.
//
// Every method may run while guest I/O goes on, which it holds up for moments
// only; one of them runs at a time. Each begins the write session where there is
// none. When it answers nil, what it did survives power loss. After an error the
// image is whole: as it was, or with a part of the work done that nobody has to
// undo; after a failed sync the layer is poisoned, as after a failed Flush. A
// crash at any point leaves an image that opens and reads as the method promises.

// Resizer can change its virtual size.
type Resizer interface {
	// CanResize says why Resize would be refused, without changing anything:
	// ErrUsage for a size that the format cannot have.
	CanResize(size int64) error
	// Resize makes the disk size bytes long, a multiple of the logical sector.
	// What is added reads as zeros, whatever an earlier, longer life of the disk
	// left in the file and whatever the parent, whose disk has below bytes, holds
	// there. What is cut off is gone, and its space is given back. A crash leaves
	// the old size or the new one. The caller makes sure that no guest I/O past
	// the smaller of both sizes is under way.
	Resize(ctx context.Context, size, below int64) error
}

// CompactOptions are the terms of [Compacter].
type CompactOptions struct {
	// Scan looks for allocated blocks whose bytes are all zeros, and drops them.
	Scan bool
	// Trim gives the host back what reads as zeros within blocks that stay.
	Trim bool
	// Move moves blocks towards the start of the file and cuts its end off.
	Move bool
	// Below tells whether the parents read as zeros throughout [off, off+n). nil
	// without a parent. A block may become absent only where they do; elsewhere it
	// stays a block of zeros, in as little space as the format has for that. It
	// takes the parents' locks: no lock of the layer is held over it.
	Below func(off, n int64) (bool, error)
	// Free, if not nil, tells whether the bytes of [off, off+n) are of no use to
	// anybody: a block of such bytes is dropped with Scan like one of zeros, and
	// reads as zeros from then on. The LinkID changes before the first one is, as
	// by a write. It calls nothing and is asked while no write of a guest can reach
	// the block before it is dropped.
	Free func(off, n int64) bool
	// Dry changes nothing, and answers what would be done.
	Dry bool
	// Progress, if not nil, is told how many bytes of the file's blocks are done.
	Progress func(done, all int64)
}

// CompactResult is what a compaction did, or would do.
type CompactResult struct {
	Dropped, Moved int64 // blocks
	Trimmed        int64 // bytes given back within blocks
	Before, After  int64 // length of the file in bytes
}

// Compacter can give space back to the host.
type Compacter interface {
	// Compact changes no byte that a guest sees but those that are Free, and no id
	// that a child recorded but for them.
	// When ctx ends it stops at the next whole state, with what it did so far in
	// effect, and answers the context's error; running it again goes on.
	Compact(ctx context.Context, o CompactOptions) (CompactResult, error)
}

// Relinker is a differencing image that can record another parent.
type Relinker interface {
	// SetParent replaces ids, time stamp and every recorded path in one step: a
	// crash leaves the old record or the new one. It changes no id of the image
	// itself. A record that cannot be read is replaced like any other.
	SetParent(p CreateParent) error
	// UnreadParent is what the file holds of its parent where not all of it can be
	// read, at most 1 MiB; nil where all can.
	UnreadParent() ([]byte, error)
}

// Settable can change what an image says of its disk. Neither changes the id
// that children record; a crash leaves the old value or the new one.
type Settable interface {
	SetPhysicalSector(bytes uint32) error
	SetDiskID(id GUID) error
}

// LinkSetter is an image whose LinkID changes with its content, as that of a
// VHDX does. Before it is written on behalf of a merge, its children have to know
// the id that it will have.
type LinkSetter interface {
	// SetLinkID makes id the image's LinkID, durably, and for the rest of this
	// write session: the first write changes it no more.
	SetLinkID(id GUID) error
}

// Repairer can mend anomalies.
type Repairer interface {
	// Repair mends what can be mended without guessing: a good copy over a bad
	// one, a log that has to be replayed or has nothing in it, sizes and checksums
	// that follow from the rest, space that nobody uses. It calls report with each
	// thing that it is about to change, in time for the caller to write that down
	// first; when report fails it stops there. What it cannot mend it leaves.
	Repair(ctx context.Context, report func(Anomaly) error) error
}
