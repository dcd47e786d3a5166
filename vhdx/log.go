package vhdx

import (
	"hash/crc32"
	"io"

	"vhdfs/ops"
)

const (
	// maxDirtyLog bounds what opening reads: Windows and QEMU make logs of 1 MiB.
	maxDirtyLog = 64 * mib
	// logReadAhead is how much of the ring is read at once.
	logReadAhead = 64 * kib

	logHeaderSize  = 64
	descriptorSize = 32
	sequenceHigh   = 32 // shift of the half that a data sector starts with
)

// logEntry is an entry of the log without its updates ([MS-VHDX] 2.3.1.1).
type logEntry struct {
	at      int64 // offset in the ring; not stored
	length  int64
	tail    int64
	seq     uint64
	count   int64 // descriptors
	log     ops.GUID
	flushed uint64 // size that the file had, durably, when the entry was written
	last    uint64 // size that holds every structure
}

// descriptorSectors is how many sectors header and descriptors take.
func (e logEntry) descriptorSectors() int64 {
	return ceilDiv(logHeaderSize+descriptorSize*e.count, pageSize)
}

// decodeLogEntry reads an entry's header in a ring of ringLen bytes; checksum,
// descriptors and data sectors are not looked at. ok is false for what is no
// entry: the ring is full of old updates, so that is nothing worth a message.
func decodeLogEntry(b []byte, ringLen int64) (e logEntry, ok bool) {
	if string(b[0:4]) != "loge" {
		return e, false
	}
	e = logEntry{
		length:  int64(le.Uint32(b[8:])),
		tail:    int64(le.Uint32(b[12:])),
		seq:     le.Uint64(b[16:]),
		count:   int64(le.Uint32(b[24:])),
		log:     ops.GUIDFromLE(b[32:]),
		flushed: le.Uint64(b[48:]),
		last:    le.Uint64(b[56:]),
	}
	ok = e.length > 0 && e.length%pageSize == 0 && e.length <= ringLen &&
		e.tail%pageSize == 0 && e.tail < ringLen &&
		e.seq != 0 && e.descriptorSectors()*pageSize <= e.length
	return e, ok
}

// descriptor is one update of an entry ([MS-VHDX] 2.3.1.2, 2.3.1.3).
type descriptor struct {
	zero     bool
	off      uint64
	length   uint64 // bytes: one page for data
	seq      uint64
	leading  [8]byte // of the data's page, which are not in its sector
	trailing [4]byte
}

func decodeDescriptor(b []byte) (descriptor, error) {
	d := descriptor{off: le.Uint64(b[16:]), seq: le.Uint64(b[24:])}
	switch string(b[0:4]) {
	case "zero":
		d.zero, d.length = true, le.Uint64(b[8:])
	case "desc":
		d.length = uint64(pageSize)
		copy(d.trailing[:], b[4:8])
		copy(d.leading[:], b[8:16])
	default:
		return d, corruptf(0, "signature %q, want %q or %q", b[0:4], "desc", "zero")
	}
	return d, nil
}

// ring is the log area of a file.
type ring struct {
	r      io.ReaderAt
	off    int64 // in the file
	length int64
}

// read fills p from ring offset at, around the end where needed.
func (g ring) read(p []byte, at int64) error {
	first := min(int64(len(p)), g.length-at)
	if err := readFull(g.r, p[:first], g.off+at, "log"); err != nil {
		return err
	}
	if first == int64(len(p)) {
		return nil
	}
	return readFull(g.r, p[first:], g.off, "log")
}

// sectors calls f with every sector of an entry in order.
func (g ring) sectors(e logEntry, f func(i int64, b []byte) bool) error {
	buf := make([]byte, min(logReadAhead, e.length))
	for done := int64(0); done < e.length; done += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), e.length-done)]
		if err := g.read(buf, (e.at+done)%g.length); err != nil {
			return err
		}
		for o := int64(0); o < int64(len(buf)); o += pageSize {
			if !f((done+o)/pageSize, buf[o:o+pageSize]) {
				return nil
			}
		}
	}
	return nil
}

// verify reads a whole entry and tells whether it is good: checksum, sequence
// number at every place, as many data sectors as its descriptors need.
func (g ring) verify(e logEntry) (bool, error) {
	var sum, want uint32
	var data int64 // data sectors announced by the descriptors
	good := true
	table := e.descriptorSectors()
	err := g.sectors(e, func(i int64, b []byte) bool {
		if i == 0 {
			want = le.Uint32(b[4:])
			clear(b[4:8])
		}
		sum = crc32.Update(sum, castagnoli, b)
		if i >= table {
			seq := uint64(le.Uint32(b[4:]))<<sequenceHigh | uint64(le.Uint32(b[pageSize-4:]))
			good = string(b[0:4]) == "data" && seq == e.seq
			return good
		}
		for k := max(i*pageSize, logHeaderSize); k < min((i+1)*pageSize, logHeaderSize+descriptorSize*e.count); k += descriptorSize {
			d, err := decodeDescriptor(b[k%pageSize:])
			if err != nil || d.seq != e.seq {
				good = false
				return false
			}
			if !d.zero {
				data++
			}
		}
		return true
	})
	return good && sum == want && e.length == (table+data)*pageSize, err
}

// finder looks for the active sequence of a log. Each position of the ring is
// verified once, whatever the entries there claim.
type finder struct {
	ring
	log    ops.GUID
	known  map[int64]*logEntry // position of what looks like an entry: the entry, nil for a bad one
	budget int64               // bytes that may still be verified
	head   [logHeaderSize]byte
}

// entryAt is the good entry at a ring position, nil when there is none.
func (f *finder) entryAt(at int64) (*logEntry, error) {
	if e, ok := f.known[at]; ok {
		return e, nil
	}
	if err := f.read(f.head[:], at); err != nil {
		return nil, err
	}
	e, ok := decodeLogEntry(f.head[:], f.length)
	if !ok || e.log != f.log {
		return nil, nil // not an entry of this log: the ring holds old ones and their data
	}
	e.at = at
	f.known[at] = nil
	if f.budget -= e.length; f.budget < 0 {
		return nil, corruptf(0, "log: entries overlap each other")
	}
	good, err := f.verify(e)
	if err != nil || !good {
		return nil, err
	}
	f.known[at] = &e
	return &e, nil
}

// run is the longest sequence of entries that follow each other from at on, at
// most once around the ring.
func (f *finder) run(at int64) ([]logEntry, error) {
	var seq []logEntry
	for used := int64(0); used < f.length; {
		e, err := f.entryAt((at + used) % f.length)
		if err != nil {
			return nil, err
		}
		if e == nil || len(seq) > 0 && e.seq != seq[len(seq)-1].seq+1 || used+e.length > f.length {
			break
		}
		seq = append(seq, *e)
		used += e.length
	}
	return seq, nil
}

// tailOf is the index of the entry that the head's tail names, -1 when it names
// none of the sequence.
func tailOf(seq []logEntry) int {
	for i := range seq {
		if seq[i].at == seq[len(seq)-1].tail {
			return i
		}
	}
	return -1
}

// findSequence is the active sequence: of all runs whose head points back into
// the run the one with the highest head, from the tail to the head
// ([MS-VHDX] 2.3.3). Empty when the log has no valid sequence.
func findSequence(g ring, log ops.GUID) ([]logEntry, error) {
	if g.length > maxDirtyLog {
		return nil, corruptf(0, "log: %d MiB to replay, at most %d", g.length/mib, maxDirtyLog/mib)
	}
	// Entries of a real log do not overlap, so one pass over the ring verifies all.
	f := &finder{ring: g, log: log, known: map[int64]*logEntry{}, budget: g.length + maxDirtyLog}
	var best []logEntry
	for at := int64(0); at < g.length; {
		seq, err := f.run(at)
		if err != nil {
			return nil, err
		}
		if len(seq) == 0 {
			at += pageSize
			continue
		}
		if i := tailOf(seq); i >= 0 && (best == nil || seq[len(seq)-1].seq > best[len(best)-1].seq) {
			best = seq[i:]
		}
		// A later start in the same run has the same head and fewer entries:
		// it cannot count where this one did not.
		for _, e := range seq {
			at += e.length
		}
	}
	return best, nil
}
