package vhdx

import (
	"io"
	"slices"

	"vhdfs/ops"
)

const (
	// maxZeroRanges bounds the memory for zero descriptors: 16 bytes each. A log
	// of 1 MiB has room for 32 thousand.
	maxZeroRanges = 1 << 18
	// maxReplayWork bounds the bookkeeping of zeros over logged pages.
	maxReplayWork = 1 << 22
	// replayFloor is the first byte that a log may change: the identifier and the
	// headers lie below ([MS-VHDX] 2.3).
	replayFloor = 192 * kib
)

// loggedPage is a 4 KiB page whose content stands in the log: 4084 bytes in a
// data sector and the two ends in the descriptor.
type loggedPage struct {
	pos      int64 // of the data sector in the file
	leading  [8]byte
	trailing [4]byte
}

// overlay is a file as it will be after its log is replayed. It writes nothing
// and keeps no content: pages map to where they stand in the log.
type overlay struct {
	f     ops.File
	real  int64 // size of the file
	total int64 // size after the replay
	pages map[int64]loggedPage
	zeros []span // sorted, disjoint; pages in the map win
}

// newOverlay judges every update of an active sequence before the first is
// believed: where it goes, how far it reaches, how much work it is. real is the
// size of the file.
func newOverlay(f ops.File, g ring, seq []logEntry, real int64) (*overlay, error) {
	head := seq[len(seq)-1]
	if head.flushed > uint64(real) {
		return nil, corruptf(ops.StatusFileSizeInvalid, "log entry %d: the file had %#x bytes and has %#x: it was truncated", head.seq, head.flushed, real)
	}
	if head.last > uint64(maxFile) {
		return nil, corruptf(ops.StatusFileSizeInvalid, "log entry %d: last file offset %#x, at most %#x", head.seq, head.last, maxFile)
	}
	o := &overlay{f: f, real: real, total: max(real, int64(head.last)), pages: map[int64]loggedPage{}}
	r := replay{o: o, limit: roundUp(o.total, pageSize), log: span{g.off, g.off + g.length}}
	for _, e := range seq {
		if err := r.entry(g, e); err != nil {
			return nil, err
		}
	}
	o.zeros = joinSpans(o.zeros)
	return o, nil
}

// replay fills an overlay entry by entry.
type replay struct {
	o     *overlay
	limit int64 // no update may reach past it
	log   span
	work  int64
}

func (r *replay) entry(g ring, e logEntry) error {
	var fail error
	sector := e.descriptorSectors() // of the next data descriptor
	table := sector
	err := g.sectors(e, func(i int64, b []byte) bool {
		for k := max(i*pageSize, logHeaderSize); k < min((i+1)*pageSize, logHeaderSize+descriptorSize*e.count); k += descriptorSize {
			d, err := decodeDescriptor(b[k%pageSize:])
			if err == nil {
				err = r.update(d, g.off+(e.at+sector*pageSize)%g.length)
			}
			if err != nil {
				fail = ops.Wrapf(err, ops.ErrCorrupt, 0, "vhdx: log entry %d: descriptor %d", e.seq, (k-logHeaderSize)/descriptorSize)
				return false
			}
			if !d.zero {
				sector++
			}
		}
		return i+1 < table
	})
	if err != nil {
		return err
	}
	return fail
}

// update takes one update; pos is where the data of a data descriptor stands.
func (r *replay) update(d descriptor, pos int64) error {
	if d.off%uint64(pageSize) != 0 || d.length%uint64(pageSize) != 0 {
		return corruptf(0, "%#x bytes at %#x are not whole pages", d.length, d.off)
	}
	if d.off < uint64(replayFloor) || d.off > uint64(r.limit) || d.length > uint64(r.limit)-d.off {
		return corruptf(0, "%#x bytes at %#x, allowed from %#x to %#x", d.length, d.off, replayFloor, r.limit)
	}
	s := span{int64(d.off), int64(d.off + d.length)}
	if s.overlaps(r.log) {
		return corruptf(0, "%#x bytes at %#x touch the log itself", d.length, d.off)
	}
	if !d.zero {
		r.o.pages[s.off/pageSize] = loggedPage{pos: pos, leading: d.leading, trailing: d.trailing}
		return nil
	}
	return r.zero(s)
}

// zero adds a range of zeros and forgets the logged pages that it covers.
func (r *replay) zero(s span) error {
	if s.len() == 0 {
		return nil
	}
	if len(r.o.zeros) == maxZeroRanges {
		return corruptf(0, "more than %d zero descriptors", maxZeroRanges)
	}
	r.o.zeros = append(r.o.zeros, s)
	n := min(s.len()/pageSize, int64(len(r.o.pages)))
	if r.work += n; r.work > maxReplayWork {
		return corruptf(0, "zero descriptors cover the same pages again and again")
	}
	if n < s.len()/pageSize {
		for p := range r.o.pages {
			if s.contains(p * pageSize) {
				delete(r.o.pages, p)
			}
		}
		return nil
	}
	for p := s.off / pageSize; p < s.end/pageSize; p++ {
		delete(r.o.pages, p)
	}
	return nil
}

// joinSpans sorts spans and joins those that touch.
func joinSpans(s []span) []span {
	slices.SortFunc(s, func(a, b span) int { return int(min(max(a.off-b.off, -1), 1)) })
	out := s[:0]
	for _, x := range s {
		if n := len(out); n > 0 && x.off <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, x.end)
			continue
		}
		out = append(out, x)
	}
	return out
}

// ReadAt reads the file as it will be after the replay.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if off >= o.total {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), o.total-off))
	for done := 0; done < n; {
		k, err := o.readRun(p[done:n], off+int64(done))
		done += k
		if err != nil {
			return done, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readRun reads a prefix of p that comes from one place.
func (o *overlay) readRun(p []byte, off int64) (int, error) {
	page, at := off/pageSize, off%pageSize
	if lp, ok := o.pages[page]; ok {
		b, err := o.logged(lp)
		if err != nil {
			return 0, err
		}
		return copy(p, b[at:]), nil
	}
	end := off + int64(len(p))
	for q := page + 1; q*pageSize < end; q++ {
		if _, ok := o.pages[q]; ok {
			end = q * pageSize
			break
		}
	}
	i, _ := slices.BinarySearchFunc(o.zeros, off, func(s span, off int64) int {
		if s.end <= off {
			return -1
		}
		return 1
	})
	if i < len(o.zeros) {
		if z := o.zeros[i]; z.contains(off) {
			p = p[:min(end, z.end)-off]
			clear(p)
			return len(p), nil
		}
		end = min(end, o.zeros[i].off)
	}
	return o.readFile(p[:end-off], off)
}

// readFile reads what the log does not change; past the end of the file there
// are the zeros by which the replay extends it.
func (o *overlay) readFile(p []byte, off int64) (int, error) {
	if off >= o.real {
		clear(p)
		return len(p), nil
	}
	return o.f.ReadAt(p[:min(int64(len(p)), o.real-off)], off)
}

func (o *overlay) logged(lp loggedPage) ([]byte, error) {
	b := make([]byte, pageSize)
	if err := readFull(o.f, b, lp.pos, "log"); err != nil {
		return b, err
	}
	copy(b, lp.leading[:])
	copy(b[pageSize-4:], lp.trailing[:])
	return b, nil
}
