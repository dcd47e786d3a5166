package track

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// Tracker is an open tracking file. It implements [ops.Tracker].
type Tracker struct {
	image   ops.Ref
	opened  ops.TrackedDisk
	session ops.GUID // of the ids that this opening gives
	begun   atomic.Bool
	geometry
	file struct {
		sync.Mutex
		f        ops.File // nil where it could not be opened
		h        header   // the copy that counts
		slot     int
		used     bool // something was written in this opening
		loosened bool // by an operation of this opening
		idle     bool // nothing was, when the session ended
	}
	mu struct {
		sync.Mutex
		lost    error
		active  uint32 // the present interval
		regions []live
		next    *round // of regions that wait to be opened; nil: none
	}
}

var _ ops.Tracker = (*Tracker)(nil)

// live is a region in memory. While it is not ready, its page has all of its bits.
type live struct {
	region          // as the file has it, or is about to
	ready  bool     // open in the file, durably
	fresh  bool     // it has bits that its page has not
	recent bool     // it got bits since the last Settle
	bits   []uint64 // granules that were written in the present interval; nil: none
}

// fileName is the name of the tracking file of an image.
func fileName(image ops.Ref) string { return image.Name + Suffix }

// newTracker has no file yet.
func newTracker(image ops.Ref, d ops.TrackedDisk) *Tracker {
	return &Tracker{image: image, opened: d, session: ops.NewGUID()}
}

// Files implements [ops.Tracking].
type Files struct{}

var _ ops.Tracking = Files{}

// Open implements [ops.Tracking].
func (Files) Open(image ops.Ref, d ops.TrackedDisk, write bool) (ops.Tracker, error) {
	t, err := open(image, d, write)
	if t == nil {
		return nil, err
	}
	return t, err
}

func open(image ops.Ref, d ops.TrackedDisk, write bool) (*Tracker, error) {
	access := ops.NoFollow
	if write {
		access |= ops.Write
	}
	t := newTracker(image, d)
	f, err := image.Dir.Open(fileName(image), access)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		t.file.f = f
		err = t.read()
	}
	if err != nil {
		t.lose(err)
	}
	return t, nil
}

// lose makes everything that was tracked worthless, in memory.
func (t *Tracker) lose(why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.lost == nil {
		t.mu.lost = ops.Wrapf(why, ops.ErrNoTracking, ops.StatusTrackingMissing, "%s: what changed before is not known", t.image.Path())
	}
	t.begun.Store(true)
}

func (t *Tracker) isLost() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.lost
}

// read takes the file in and judges whether it is true of the disk. Every granule
// of a region that is open counts as written.
func (t *Tracker) read() error {
	h, slot, err := readHeader(t.file.f)
	if err != nil {
		return err
	}
	t.file.h, t.file.slot, t.geometry = h, slot, h.geometry
	if err := h.fits(t.opened); err != nil {
		return err
	}
	n := h.regions(max(h.size, h.nextSize))
	t.mu.active, t.mu.regions = h.active, make([]live, n)
	b := make([]byte, sectorSize)
	list := make([]region, perSector)
	for first := int64(0); first < n; first += perSector {
		i := first / perSector
		if got, err := t.file.f.ReadAt(b, regionsAt+i*sectorSize); got < len(b) {
			if err == io.EOF {
				return corruptf("it ends at byte %d, in the regions", regionsAt+i*sectorSize+int64(got))
			}
			return fmt.Errorf("tracking file: read regions: %w", err)
		}
		list = list[:min(perSector, n-first)]
		if err := decodeSector(b, i, h.active, list); err != nil {
			return err
		}
		for k, r := range list {
			l := &t.mu.regions[first+int64(k)]
			l.region = r
			if r.open != 0 {
				l.ready, l.fresh = true, true
				l.set(0, t.perRegion())
			}
		}
	}
	return nil
}

// fits judges whether a header is true of the disk as it is found: nobody else wrote
// it, and neither of both was put back to an earlier state without the other.
func (h *header) fits(d ops.TrackedDisk) error {
	foreign := func(format string, args ...any) error {
		return ops.Errorf(ops.ErrChanged, 0, "tracking file: "+format, args...)
	}
	switch {
	case h.state == stateLost:
		return corruptf("an earlier failure made it worthless")
	case h.diskID != d.DiskID:
		return foreign("it is about disk %s, this one is %s", h.diskID, d.DiskID)
	case d.Size != h.size && (h.nextSize == 0 || d.Size != h.nextSize):
		return foreign("the disk has %d bytes, it knows of %d", d.Size, h.size)
	case d.LinkID != h.expected && (h.announced.IsZero() || d.LinkID != h.announced):
		return foreign("the disk was changed by another program, or put back: its DataWriteGuid is %s, not %s", d.LinkID, h.expected)
	case h.state == stateClean && d.Stamp != h.stamp:
		return foreign("the image was opened for writing by another program, or put back")
	case h.state == stateClean || h.flags&flagLoose != 0 || d.Dirty:
		return nil
	case d.LinkID == h.expected && !h.announced.IsZero():
		return nil // it was cut off before the session began
	}
	return foreign("the disk's last session ended without it: it was put back, or another program was there")
}

// set notes granules [first, end) of the region.
func (l *live) set(first, end int64) {
	if l.bits == nil {
		l.bits = make([]uint64, (end+63)/64)
	}
	for int64(len(l.bits)) < (end+63)/64 {
		l.bits = append(l.bits, 0)
	}
	for i := first; i < end; i++ {
		if bit := uint64(1) << (i % 64); l.bits[i/64]&bit == 0 {
			l.bits[i/64] |= bit
			l.fresh, l.recent = true, true
		}
	}
}

// has tells whether all granules [first, end) of the region are noted.
func (l *live) has(first, end int64) bool {
	if int64(len(l.bits))*64 < end {
		return false
	}
	for i := first; i < end; i++ {
		if l.bits[i/64]&(1<<(i%64)) == 0 {
			return false
		}
	}
	return true
}

// putLocked writes h over the header that does not count and makes it durable: a
// crash leaves the one or the other.
func (t *Tracker) putLocked(h header, label string) error {
	f := &t.file
	h.number = f.h.number + 1
	f.h.number = h.number // whatever comes of it
	slot := 1 - f.slot
	if _, err := f.f.WriteAt(h.encode(), headerAt[slot]); err != nil {
		return fmt.Errorf("tracking file: write header: %w", err)
	}
	if err := f.f.Sync(label); err != nil {
		return fmt.Errorf("tracking file: %s: %w", label, err)
	}
	f.h, f.slot, f.used = h, slot, true
	return nil
}

// failLocked comes when something could not be stored: the file must not be
// believed any more, and says so, or is gone. An error: neither could be made
// durable.
func (t *Tracker) failLocked(why error) error {
	if t.isLost() != nil {
		return nil
	}
	h := t.file.h
	h.state = stateLost
	if err := t.putLocked(h, "track.lost"); err != nil {
		err = t.image.Dir.Remove(fileName(t.image))
		if err == nil {
			err = t.image.Dir.Sync(path.Dir(t.image.Name), "track.gone")
		}
		if err != nil {
			return ops.Wrapf(errors.Join(why, err), ops.ErrPoisoned, ops.StatusTrackingMissing, "%s: nothing can be written to its tracking file, which cannot be removed", t.image.Path())
		}
	}
	t.lose(why)
	return nil
}

// Begun implements [ops.Tracker].
func (t *Tracker) Begun() bool { return t.begun.Load() }

// Close implements [ops.Tracker].
func (t *Tracker) Close() error {
	t.file.Lock()
	defer t.file.Unlock()
	if t.file.f == nil {
		return nil
	}
	return t.file.f.Close()
}
