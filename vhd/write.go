package vhd

import (
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// writer is a dynamic or differencing image opened for writing.
//
// What a crash leaves at any point is a file whose copy of the footer at 0 is
// good, whose table leads to whole blocks with every flushed byte, and at worst
// space behind the last block that nothing uses. These rules give that:
//
//   - the copy at 0 is durable before the end footer moves;
//   - the end footer is durable at its new place before anything is written
//     where the old one ended the file: a guest's sector never ends the file;
//   - bitmap and data of a block are durable before its table entry is written;
//   - data are durable before the bitmap bits that announce them are written.
//
// Table entries and bits wait in memory for a flush, which needs one sync for
// all data and one for all of them.
type writer struct {
	*Disk
	unsettable
	found   slots       // the footers as they were when the file was opened
	changed atomic.Bool // something was written since the last flush
	session session     // guarded by Disk.mu
	flushes sync.Mutex  // one flush at a time; taken before Disk.mu, held over its syncs
}

// session is what the first write of a disk begins.
type session struct {
	mending
	compared bool // the footers with those found at opening
	begun    bool
	scanned  bool
	poisoned bool
	mendHead bool  // the copy at 0 has to be written
	tail     int64 // offset of the end footer, -1 when it has to be written
	overlong bool  // a growth failed: the file may be longer than that footer says
	floor    int64 // least length of the file at the end: what it had at the start

	// known once scanned
	next  int64 // where the last block or structure ends
	stale int64 // up to here the file may hold old bytes
	free  int64 // blocks that are not allocated
	ahead int64 // blocks to make room for at the next growth
}

func newWriter(d *Disk, c *choice, found slots) *writer {
	w := &writer{Disk: d, found: found}
	d.mu.wait = newPending()
	w.session.mending = c.mending
	w.session.tail = c.tail
	w.session.mendHead = (c.mend || c.mendable) && (c.tail >= 0 || c.rewrite)
	w.session.ahead = 1
	return w
}

// checkSectors is the range rule of writes: whole sectors inside the disk.
func checkSectors(off, n, size int64) error {
	if off < 0 || n < 0 || off%sectorSize != 0 || n%sectorSize != 0 {
		return ops.Errorf(ops.ErrUsage, 0, "vhd: %d bytes at %d are not whole sectors", n, off)
	}
	if off > size || n > size-off {
		return ops.Errorf(ops.ErrPastEnd, 0, "vhd: %d bytes at %d end past the disk of %d", n, off, size)
	}
	return nil
}

var errPoisoned = ops.Errorf(ops.ErrPoisoned, ops.StatusMetadataWrite, "vhd")

// WriteAt stores whole sectors; see [ops.Writer].
func (w *writer) WriteAt(p []byte, off int64) (int, error) {
	if err := checkSectors(off, int64(len(p)), w.Size()); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		b := off / w.blockSize
		in := off - b*w.blockSize
		part := p[done:min(int64(len(p)), int64(done)+w.blockSize-in)]
		if err := w.writeBlock(b, in, part); err != nil {
			return done, err
		}
		done += len(part)
		off += int64(len(part))
	}
	return done, nil
}

// writeBlock stores p at byte in of block b. Sectors that the block holds
// already are overwritten beside other requests; anything else is alone.
func (w *writer) writeBlock(b, in int64, p []byte) error {
	if stored, err := w.overwrite(b, in, p); stored || err != nil {
		return err
	}
	w.mu.Lock()
	err := w.writeLocked(b, in, int64(len(p)), p)
	full := w.fullLocked()
	w.mu.Unlock()
	if err == nil && full {
		err = w.Flush()
	}
	return err
}

// overwrite stores p if every sector of it is the block's own already.
func (w *writer) overwrite(b, in int64, p []byte) (stored bool, err error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if !w.session.begun || w.session.poisoned {
		return false, nil
	}
	at, ok, err := w.blockLocked(b)
	if err != nil || !ok {
		return false, err
	}
	m, err := w.bitmapLocked(b, at)
	if err != nil {
		return false, err
	}
	first, last := in/sectorSize, (in+int64(len(p)))/sectorSize
	if n, set := bitRun(m, first, last); !set || first+n < last {
		return false, nil
	}
	pos := at + w.mapBytes + in
	if err := w.checkData(b, pos, int64(len(p))); err != nil {
		return false, err
	}
	w.changed.Store(true)
	_, err = w.file.WriteAt(p, pos)
	return true, err
}

// checkData refuses to write data where the file should have ended.
func (d *Disk) checkData(b, pos, n int64) error {
	if pos+n > d.lay.end {
		return ops.Corruptf(ops.StatusBATCorrupt, "vhd: bat entry %d: data at %#x past end of file %#x", b, pos+n, d.lay.end)
	}
	return nil
}

// writeLocked makes n bytes at byte in of block b those of p, zeros when p is
// nil. The bits follow when the data are durable; until then a crash leaves the
// sectors as they were.
func (w *writer) writeLocked(b, in, n int64, p []byte) error {
	if err := w.beginLocked(); err != nil {
		return err
	}
	at, ok, err := w.blockLocked(b)
	switch {
	case err != nil:
		return err
	case !ok:
		return w.allocateLocked(b, in, n, p)
	}
	pos := at + w.mapBytes + in
	if err := w.checkData(b, pos, n); err != nil {
		return err
	}
	w.changed.Store(true)
	if p == nil {
		err = zeroStored(w.file, pos, n)
	} else {
		_, err = w.file.WriteAt(p, pos)
	}
	if err != nil {
		return err
	}
	return w.announceLocked(b, at, in, n)
}

// announceLocked notes that sectors of a block are its own from the next flush
// on. In a dynamic disk too: other readers honour the bits.
func (w *writer) announceLocked(b, at, in, n int64) error {
	m, err := w.bitmapLocked(b, at)
	if err != nil {
		return err
	}
	first, last := in/sectorSize, (in+n)/sectorSize
	if run, set := bitRun(m, first, last); set && first+run == last {
		return nil
	}
	if _, waits := w.mu.wait.bits[b]; !waits {
		m = append([]byte(nil), m...)
		w.mu.wait.bits[b] = m
	}
	setBits(m, first, last)
	return nil
}

// Zero makes whole sectors zeros; see [ops.Writer]. The block stays, and with
// unmap the host gets its space back: only [writer.Compact] takes blocks out of the
// table.
func (w *writer) Zero(off, n int64, unmap bool) error {
	if err := checkSectors(off, n, w.Size()); err != nil {
		return err
	}
	for end := off + n; off < end; {
		k, full, err := w.zeroRun(off, end-off, unmap)
		if err == nil && full {
			err = w.Flush()
		}
		if err != nil {
			return err
		}
		off += k
	}
	return nil
}

// zeroRun zeroes at most the rest of the block at off, or skips what is zero
// already, and says how far it came and whether a flush is due.
func (w *writer) zeroRun(off, n int64, unmap bool) (done int64, full bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	done, err = w.zeroRunLocked(off, n, unmap)
	return done, w.fullLocked(), err
}

func (w *writer) zeroRunLocked(off, n int64, unmap bool) (int64, error) {
	if w.session.poisoned {
		return 0, errPoisoned
	}
	e, err := w.extentLocked(off, n)
	if err != nil {
		return 0, err
	}
	if e.Kind == ops.Absent && w.typ == ops.Dynamic {
		return e.Len, nil
	}
	b := off / w.blockSize
	in := off - b*w.blockSize
	if e.Kind == ops.Absent || !unmap {
		n = min(n, w.blockSize-in)
		return n, w.writeLocked(b, in, n, nil)
	}
	if err := w.beginLocked(); err != nil {
		return 0, err
	}
	w.changed.Store(true)
	if err := punch(w.file, e.Pos, e.Len); err != nil {
		return 0, err
	}
	return e.Len, w.announceLocked(b, e.Pos-in-w.mapBytes, in, e.Len)
}
