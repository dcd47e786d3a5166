package ops

import "time"

// Status codes of change tracking.
const (
	StatusTrackingID      StatusCode = 0xC03A0029 // the id is unknown, or of another disk
	StatusTrackingOff     StatusCode = 0xC03A002A
	StatusTrackingMissing StatusCode = 0xC03A0030 // what was tracked was lost
)

// Tracking keeps, beside a disk, a file that says which parts of the disk changed
// since when. Package track does it; it stands above this one.
type Tracking interface {
	// Open reads the tracking file of an image; nil where there is none. One that
	// cannot be used gives a Tracker that says so of everything that it is asked.
	// Opening writes nothing, with write too.
	Open(image Ref, d TrackedDisk, write bool) (Tracker, error)
	// Create makes a new tracking file, durably, in place of one that cannot be used.
	// Nothing of the disk may be written meanwhile.
	Create(image Ref, d TrackedDisk) (Tracker, error)
	// Remove removes the tracking file of an image, durably; nothing where none is.
	Remove(image Ref) error
	// Inherit gives a new image, which reads as another one does and which nobody
	// has written, a copy of what is known of that one: its ids hold for both. The
	// other is frozen. Nothing where that is not tracked, or what was tracked is lost.
	Inherit(from Ref, was TrackedDisk, to Ref, is TrackedDisk) error
	// Move makes the tracking file of one image that of another, whose content it
	// describes from then on, in place of the one that is there. Durably; nothing
	// where the first has none.
	Move(from, to Ref) error
}

// TrackedDisk is how a tracking file knows its disk again.
type TrackedDisk struct {
	Size   int64 // bytes
	DiskID GUID
	LinkID GUID
	Stamp  GUID // of [Stamped]
	Dirty  bool // a write session did not end cleanly, or goes on
}

// Stamped is a Layer whose file shows when anything in it was changed, by whom
// ever.
type Stamped interface {
	// Stamp is another one after each write session, whatever that did.
	Stamp() GUID
}

// Tracker is the tracking file of one open disk. Its methods may be called
// concurrently. Where what it tracked is lost, what is about writes succeeds and
// does nothing, and what is asked answers ErrNoTracking with [StatusTrackingMissing].
//
// It holds no lock over a call but that of link and do, which may take locks of the
// format and none of this package.
type Tracker interface {
	// Begun tells whether Begin was called with success since it was opened.
	Begun() bool
	// Begin comes before the first write: the file says that the disk is about to
	// get another LinkID, link gives it that, and the file says that it has it. Each
	// step is durable. current is the LinkID until then.
	Begin(current GUID, link func(GUID) error) error
	// Write comes before a change of [off, off+n) of the disk and returns when the
	// tracking file says durably that there may be one. An error: that could not be
	// stored, nor that it could not; the disk must not be changed.
	Write(off, n int64) error
	// Resize comes around a change of the size of the disk by do. What is added
	// counts as changed.
	Resize(size int64, do func() error) error
	// Loosen comes before a change of the image that no guest can see: the tracking
	// file is true whatever its stamp is, until the session ends.
	Loosen() error
	// Settle writes out what is known, so that a crash makes no more of it. Without
	// all, what was written since the last call may wait.
	Settle(all bool) error
	// Seal answers an id for the present content, which is durable and which nobody
	// changes meanwhile. renew, unless it is nil, gives the disk another LinkID.
	Seal(now time.Time, current GUID, renew func(GUID) error) (string, error)
	// State is what is known now.
	State() TrackingState
	// Changes are the parts of the disk that may differ from what they were when the
	// id was given: those that within meets, and maybe others. What it costs goes with
	// the length of within.
	Changes(id string, within Range) (*Changed, error)
	// Suspend comes before a write session ends: everything is written out.
	// stamp is that of the layer, which is still open.
	Suspend(stamp GUID) error
	// Resume comes when the session has ended cleanly: d is the disk as it is then.
	Resume(d TrackedDisk) error
	// Close gives the file back and writes nothing.
	Close() error
}

// TrackingState is what a tracking file knows.
type TrackingState struct {
	Enabled bool
	Lost    string       // why what was tracked is lost; "" when it is not
	Granule int64        // bytes
	Open    int64        // bytes that a crash would make count as changed
	IDs     []TrackingID // the oldest first
}

// TrackingID names the content that a disk had at a time.
type TrackingID struct {
	ID   string
	Time time.Time
}

// Changed is the parts of a disk that changed, at the granule of its tracking
// file: as many bits as the disk has granules. It is complete: nobody can take a
// part of it for all.
type Changed struct {
	Size    int64 // of the disk, in bytes
	Granule int64
	bits    map[int64]*[changedWords]uint64
	Count   int64 // granules that changed
}

const changedWords = 512 // of 64 granules: 4 KiB

// NewChanged is that of a disk without a change.
func NewChanged(size, granule int64) *Changed {
	return &Changed{Size: size, Granule: granule, bits: map[int64]*[changedWords]uint64{}}
}

// Add notes that granule i changed; one past the end of the disk is left out.
func (c *Changed) Add(i int64) {
	if i < 0 || i*c.Granule >= c.Size {
		return
	}
	page := c.bits[i/(64*changedWords)]
	if page == nil {
		page = new([changedWords]uint64)
		c.bits[i/(64*changedWords)] = page
	}
	word, bit := &page[i/64%changedWords], uint64(1)<<(i%64)
	if *word&bit == 0 {
		*word |= bit
		c.Count++
	}
}

func (c *Changed) has(i int64) bool {
	page := c.bits[i/(64*changedWords)]
	return page != nil && page[i/64%changedWords]&(1<<(i%64)) != 0
}

// skip is the first granule from i on that may have changed.
func (c *Changed) skip(i int64) int64 {
	for i*c.Granule < c.Size {
		page := c.bits[i/(64*changedWords)]
		switch {
		case page == nil:
			i = (i/(64*changedWords) + 1) * 64 * changedWords
		case page[i/64%changedWords]>>(i%64) == 0:
			i = (i/64 + 1) * 64
		case !c.has(i):
			i++
		default:
			return i
		}
	}
	return i
}

// Each calls f with every range of [off, off+n) that changed, in order, neighbours
// joined. It ends with f's error.
func (c *Changed) Each(off, n int64, f func(Range) error) error {
	end := min(off+n, c.Size)
	for i := c.skip(off / c.Granule); i*c.Granule < end; i = c.skip(i) {
		first := i
		for i++; c.has(i); i++ {
		}
		r := Range{Off: max(off, first*c.Granule)}
		r.Len = min(end, i*c.Granule) - r.Off
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// noTracking is a library that was given none.
type noTracking struct{}

func (noTracking) Open(Ref, TrackedDisk, bool) (Tracker, error)     { return nil, nil }
func (noTracking) Remove(Ref) error                                 { return nil }
func (noTracking) Move(Ref, Ref) error                              { return nil }
func (noTracking) Inherit(Ref, TrackedDisk, Ref, TrackedDisk) error { return nil }
func (noTracking) Create(r Ref, _ TrackedDisk) (Tracker, error) {
	return nil, Errorf(ErrNoTracking, StatusTrackingOff, "%s: changes are not tracked here", r.Path())
}

func (l *Library) tracking() Tracking {
	if l.opts.Tracking != nil {
		return l.opts.Tracking
	}
	return noTracking{}
}
