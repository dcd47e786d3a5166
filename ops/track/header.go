package track

import (
	"errors"
	"fmt"
	"io"
	"time"

	"vhdfs/ops"
)

// state says what a header promises.
type state uint32

const (
	// stateClean: no session is under way; the disk has the header's stamp.
	stateClean state = 1
	// stateOpen: a session may have begun, and may have ended in a crash.
	stateOpen state = 2
	// stateLost: the table is worthless.
	stateLost state = 3
)

const (
	flagLoose  = 1 << iota // in stateOpen: also where the disk's session ended cleanly
	flagAgain              // an earlier table of the disk was lost
	knownFlags = flagLoose | flagAgain
)

// header is one of two copies.
type header struct {
	geometry
	number    uint64 // the valid copy with the higher one counts
	state     state
	flags     uint32
	active    uint32 // the present interval, from 1 on
	size      int64  // of the disk, in bytes
	nextSize  int64  // that it may have as well; 0: none
	diskID    ops.GUID
	expected  ops.GUID // LinkID of the disk
	announced ops.GUID // that it may have as well; zero: none
	stamp     ops.GUID // in stateClean
	ids       []idRecord
}

// idRecord is an id that was given out, at the end of an interval.
type idRecord struct {
	session  ops.GUID // of the opening that gave it
	interval uint32
	time     int64 // Unix milliseconds
}

func (r idRecord) id() ops.TrackingID {
	return ops.TrackingID{ID: formatID(r.session, r.interval), Time: time.UnixMilli(r.time).UTC()}
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize+len(h.ids)*idSize)
	copy(b, magic)
	le.PutUint32(b[12:], version)
	le.PutUint64(b[16:], h.number)
	le.PutUint32(b[24:], uint32(h.state))
	le.PutUint32(b[28:], h.flags)
	le.PutUint32(b[32:], h.active)
	le.PutUint32(b[36:], uint32(len(h.ids)))
	le.PutUint64(b[40:], uint64(h.granule))
	le.PutUint64(b[48:], uint64(h.page))
	le.PutUint64(b[56:], uint64(h.size))
	le.PutUint64(b[64:], uint64(h.nextSize))
	for i, g := range []ops.GUID{h.diskID, h.expected, h.announced, h.stamp} {
		copy(b[72+16*i:], g[:])
	}
	for i, r := range h.ids {
		at := b[headerSize+i*idSize:]
		copy(at, r.session[:])
		le.PutUint32(at[16:], r.interval)
		le.PutUint64(at[24:], uint64(r.time))
	}
	le.PutUint32(b[8:], checksum(b, 8))
	return b
}

// decodeHeader reads a copy and judges everything in it. b is the longest that a
// header can be.
func decodeHeader(b []byte) (header, error) {
	if got := string(b[:8]); got != magic {
		return header{}, corruptf("header: signature %q, want %q", got, magic)
	}
	n := le.Uint32(b[36:])
	if n > maxIDs {
		return header{}, corruptf("header: %d ids, want at most %d", n, maxIDs)
	}
	b = b[:headerSize+n*idSize]
	if got, want := le.Uint32(b[8:]), checksum(b, 8); got != want {
		return header{}, corruptf("header: checksum %#08x, want %#08x", got, want)
	}
	if got := le.Uint32(b[12:]); got != version {
		return header{}, corruptf("header: version %d, want %d", got, version)
	}
	h := header{
		geometry: geometry{granule: int64(le.Uint64(b[40:])), page: int64(le.Uint64(b[48:]))},
		number:   le.Uint64(b[16:]), state: state(le.Uint32(b[24:])), flags: le.Uint32(b[28:]), active: le.Uint32(b[32:]),
		size: int64(le.Uint64(b[56:])), nextSize: int64(le.Uint64(b[64:])),
	}
	for i, g := range []*ops.GUID{&h.diskID, &h.expected, &h.announced, &h.stamp} {
		copy(g[:], b[72+16*i:])
	}
	for i := range n {
		at := b[headerSize+i*idSize:]
		r := idRecord{interval: le.Uint32(at[16:]), time: int64(le.Uint64(at[24:]))}
		copy(r.session[:], at)
		h.ids = append(h.ids, r)
	}
	return h, h.check()
}

func (h *header) check() error {
	switch {
	case h.state < stateClean || h.state > stateLost:
		return corruptf("header: state %d, want 1 to 3", h.state)
	case h.flags&^knownFlags != 0:
		return corruptf("header: flags %#x, known are %#x", h.flags, knownFlags)
	case h.number > 1<<62:
		return corruptf("header: number %d, want at most %d", h.number, uint64(1<<62))
	case h.active == 0:
		return corruptf("header: interval 0")
	case h.nextSize < 0:
		return corruptf("header: a size of %d bytes to come", h.nextSize)
	}
	last := uint32(0)
	for i, r := range h.ids {
		if r.interval <= last || r.interval >= h.active {
			return corruptf("header: id %d is of interval %d, the one before of %d, the present one is %d", i, r.interval, last, h.active)
		}
		last = r.interval
	}
	return h.geometry.check(max(h.size, h.nextSize))
}

// readHeader gives the copy that counts and where it stands.
func readHeader(f io.ReaderAt) (h header, slot int, err error) {
	var found []int
	var copies [2]header
	var bad error
	for i, at := range headerAt {
		b := make([]byte, headerSize+maxIDs*idSize)
		if n, err := f.ReadAt(b, at); n < len(b) && err != io.EOF { // a short file reads as zeros
			return h, 0, fmt.Errorf("tracking file: read header %d: %w", i, err)
		}
		if copies[i], err = decodeHeader(b); err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		found = append(found, i)
	}
	switch {
	case len(found) == 0:
		return h, 0, bad
	case len(found) == 1:
		return copies[found[0]], found[0], nil
	case copies[0].number == copies[1].number:
		return h, 0, corruptf("headers: both have number %d", copies[0].number)
	case copies[1].number > copies[0].number:
		slot = 1
	}
	return copies[slot], slot, nil
}
