package vhdx

import (
	"fmt"

	"vhdfs/ops"
)

// maxEntryPages is how many pages one entry carries: as many as its first sector
// has room for descriptors. Two such entries fit the smallest ring.
const maxEntryPages = (pageSize - logHeaderSize) / descriptorSize

// logWriter appends entries to the ring ([MS-VHDX] 2.3). Guarded by whoever
// guards the session's flushes.
type logWriter struct {
	f    ops.File
	ring ring
	guid ops.GUID
	seq  uint64 // of the entry before the next
	head int64  // ring offset of the next entry
	tail int64  // what the next entry names as the oldest that is needed; head: itself
	last int64  // what the entry before it named
	used int64  // bytes up to head from the tail that the newest durable entry names
}

func newLogWriter(f ops.File, h header, guid ops.GUID) *logWriter {
	return &logWriter{f: f, guid: guid, ring: ring{r: f, off: int64(h.logOffset), length: int64(h.logLength)}}
}

// room tells whether an entry of n pages fits. What the newest durable entry needs
// stays as it is, needless pages included: a torn entry over it would leave a log
// without a valid one. One sector more stays free, for an entry without pages.
func (l *logWriter) room(n int) bool {
	return l.used+(1+int64(n))*pageSize+pageSize <= l.ring.length
}

// retire makes the next entry the oldest that is needed: the pages of all others
// are durable in place. Their room is free once that entry is durable.
func (l *logWriter) retire() { l.tail = l.head }

// durable tells that the file was synced with all entries in it: the ring up to
// the tail that the newest one names is free.
func (l *logWriter) durable() {
	l.used = (l.head - l.last + l.ring.length) % l.ring.length
}

// append writes an entry with at most maxEntryPages pages; it counts when the
// file is synced. fileSize is the size that the file has durably and that holds
// every structure. A failed append may be repeated: it goes to the same place.
func (l *logWriter) append(pages []pageCopy, fileSize int64) error {
	b := l.encode(pages, fileSize)
	first := min(int64(len(b)), l.ring.length-l.head)
	_, err := l.f.WriteAt(b[:first], l.ring.off+l.head)
	if err == nil && first < int64(len(b)) {
		_, err = l.f.WriteAt(b[first:], l.ring.off)
	}
	if err != nil {
		return fmt.Errorf("vhdx: write log entry %d: %w", l.seq+1, err)
	}
	l.seq, l.last = l.seq+1, l.tail
	l.head = (l.head + int64(len(b))) % l.ring.length
	l.used += int64(len(b))
	return nil
}

// encode is the next entry: header, descriptors, data sectors. FlushedFileOffset
// is rounded down to what is surely there, LastFileOffset up.
func (l *logWriter) encode(pages []pageCopy, fileSize int64) []byte {
	seq := l.seq + 1
	b := make([]byte, pageSize*(1+int64(len(pages))))
	copy(b, "loge")
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(l.tail))
	le.PutUint64(b[16:], seq)
	le.PutUint32(b[24:], uint32(len(pages)))
	l.guid.PutLE(b[32:])
	le.PutUint64(b[48:], uint64(fileSize/mib*mib))
	le.PutUint64(b[56:], uint64(roundUp(fileSize, mib)))
	for i, p := range pages {
		d := b[logHeaderSize+descriptorSize*i:]
		copy(d, "desc")
		copy(d[4:8], p.b[pageSize-4:])
		copy(d[8:16], p.b[:8])
		le.PutUint64(d[16:], uint64(p.page*pageSize))
		le.PutUint64(d[24:], seq)
		sector := b[pageSize*(1+int64(i)) : pageSize*(2+int64(i))]
		copy(sector, "data")
		le.PutUint32(sector[4:], uint32(seq>>sequenceHigh))
		copy(sector[8:], p.b[8:pageSize-4])
		le.PutUint32(sector[pageSize-4:], uint32(seq))
	}
	le.PutUint32(b[4:], checksum(b))
	return b
}
