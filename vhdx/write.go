package vhdx

import (
	"fmt"

	"vhdfs/ops"
)

// checkRange refuses what is not whole sectors of the disk. Whoever does not hold
// Disk.mu has to ask again when he does: the disk may have become smaller.
func (d *Disk) checkRange(off, n int64) error {
	sector, size := d.geometry.sector, d.size.Load()
	switch {
	case off < 0 || n < 0 || off%sector != 0 || n%sector != 0:
		return ops.Errorf(ops.ErrUsage, 0, "vhdx: %d bytes at %d are not whole sectors of %d", n, off, sector)
	case off > size || n > size-off:
		return ops.Errorf(ops.ErrPastEnd, 0, "vhdx: %d bytes at %d, the disk has %d", n, off, size)
	}
	return nil
}

// WriteAt stores whole sectors. Each block is stored or refused by itself; the
// number of bytes in whole blocks that were stored comes with the error.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		n := min(int64(len(p)-done), w.geometry.block-at%w.geometry.block)
		if err := w.writeBlock(p[done:done+int(n)], at); err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), nil
}

// writeBlock stores p, which lies in one block.
func (w *Writer) writeBlock(p []byte, off int64) error {
	done, err := w.writeInPlace(p, off)
	if done || err != nil {
		return err
	}
	if err := w.roomForChange(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.checkRange(off, int64(len(p))); err != nil {
		return err
	}
	if err := w.showLocked(); err != nil {
		return err
	}
	return w.storeLocked(p, off)
}

// writeInPlace stores p where the file already has a place for all of it, and
// answers false where it has not.
func (w *Writer) writeInPlace(p []byte, off int64) (bool, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.poison != nil || w.session == nil || !w.newLink {
		return false, w.poison
	}
	if err := w.checkRange(off, int64(len(p))); err != nil {
		return false, err
	}
	x, err := w.lookup(off, int64(len(p)))
	if err != nil || x.Kind != ops.Data || x.Len < int64(len(p)) {
		return false, err
	}
	w.touch(off)
	return true, w.put(p, x.Pos)
}

// put writes payload into the file.
func (w *Writer) put(p []byte, pos int64) error {
	_, err := w.f.WriteAt(p, pos)
	w.unsynced.Store(true)
	if err != nil {
		return fmt.Errorf("vhdx: write payload at %#x: %w", pos, err)
	}
	return nil
}

// roomForChange flushes when so many table pages are dirty that another change
// has to wait.
func (w *Writer) roomForChange() error {
	w.mu.RLock()
	full := len(w.table.dirty) >= maxDirty
	w.mu.RUnlock()
	if !full {
		return nil
	}
	return w.Flush()
}

// storeLocked stores p in its block, giving it space first where it has none.
// The BAT entry changes last, and only in memory: up to there the block is what
// it was, and until a flush it is that after a crash.
func (w *Writer) storeLocked(p []byte, off int64) error {
	w.touch(off)
	g := w.geometry
	b, in := off/g.block, off%g.block
	i := g.payloadIndex(b)
	e, err := w.entryAt(i)
	if err == nil {
		err = g.checkPayload(i, e, w.reserved)
	}
	if err != nil {
		return err
	}
	whole := int64(len(p)) == g.used(b)
	switch {
	case e.state() == stateFull:
		return w.put(p, e.offset()+in)
	case e.state() == statePartial:
		if err := w.put(p, e.offset()+in); err != nil {
			return err
		}
		return w.fillLocked(b, i, e, in, int64(len(p)))
	}
	t, err := w.spaceForLocked(e)
	if err != nil {
		return err
	}
	if err := w.put(p, t.off+in); err != nil {
		w.abandonLocked(t, e)
		return err
	}
	if err := w.enterLocked(b, i, e, t, in, int64(len(p)), whole); err != nil {
		w.abandonLocked(t, e)
		return err
	}
	return nil
}

// spaceForLocked is space for a block whose entry is e, reading as zeros: what
// the block kept, or free space.
func (w *Writer) spaceForLocked(e entry) (span, error) {
	if w.keepsLocked(e) {
		t := span{e.offset(), e.offset() + w.geometry.block}
		return t, w.zeroFile(t, true)
	}
	return w.takeLocked(w.geometry.block)
}

// keepsLocked tells whether a block without content has space of its own.
func (w *Writer) keepsLocked(e entry) bool {
	return (e.state() == stateUndefined || e.state() == stateUnmapped) && e.offset() != 0 && w.session.anchors
}

// abandonLocked gives up space for a block whose entry stays e.
func (w *Writer) abandonLocked(t span, e entry) {
	if !w.keepsLocked(e) {
		w.dropLocked(t)
	}
}

// enterLocked puts a block with n bytes at in, stored at t, into the tables. Of a
// differencing disk only a block that was its parent's may be in this file in
// part; any other reads as zeros where it is not written.
func (w *Writer) enterLocked(b, i int64, e entry, t span, in, n int64, whole bool) error {
	if whole || w.kind(e) != ops.Absent {
		return w.setEntryLocked(i, newEntry(stateFull, t.off))
	}
	bitmap, err := w.bitmapLocked(b)
	if err == nil {
		err = w.clearBitsLocked(bitmap, b)
	}
	if err == nil {
		err = w.setBitsLocked(bitmap, b, in, n)
	}
	if err != nil {
		return err
	}
	return w.setEntryLocked(i, newEntry(statePartial, t.off))
}

// fillLocked notes that n bytes at in of a partially present block are in this
// file. A block that is there to its last sector becomes fully present.
func (w *Writer) fillLocked(b, i int64, e entry, in, n int64) error {
	g := w.geometry
	full := newEntry(stateFull, e.offset())
	if n == g.used(b) {
		return w.setEntryLocked(i, full)
	}
	bitmap, err := w.bitmapLocked(b)
	if err == nil {
		err = w.setBitsLocked(bitmap, b, in, n)
	}
	if err != nil || in+n < g.used(b) {
		return err
	}
	set, run, err := w.bitmapRun(b, 0, g.used(b))
	if err != nil || !set || run < g.used(b) {
		return err
	}
	return w.setEntryLocked(i, full)
}
