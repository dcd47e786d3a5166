package vhd

import (
	"context"
	"encoding/binary"
	"errors"

	"vhdfs/ops"
)

var (
	_ ops.Resizer = (*writer)(nil)
	_ ops.Resizer = (*fixedWriter)(nil)
)

// checkResize says why a disk of a type cannot get another size: VHD disks never
// shrink, and a child has the size that its parent's tools gave it.
func checkResize(typ ops.Type, from, to int64) error {
	switch {
	case typ == ops.Differencing:
		return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhd: a differencing disk cannot be resized")
	case to <= 0 || to%sectorSize != 0 || to > maxSparseSize:
		return ops.Errorf(ops.ErrUsage, ops.StatusSizeInvalid, "vhd: size %d is not a whole number of sectors up to 2040 GiB", to)
	case to < from:
		return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhd: size %d is below the disk's %d: a VHD does not shrink", to, from)
	}
	return nil
}

// resized is the footer of f's disk with size bytes. OriginalSize stays.
func (f *footer) resized(size int64) footer {
	g := *f
	g.currentSize, g.chs = uint64(size), geometryFor(size)
	if g.misread() {
		g.creator = sizeCreators[g.creator]
	}
	return decodeFooter(g.encode())
}

// CanResize implements [ops.Resizer]: it may grow, unless it is differencing.
func (w *writer) CanResize(size int64) error {
	if err := checkResize(w.typ, w.Size(), size); err != nil {
		return err
	}
	if n := blocksFor(size, w.blockSize); n > maxEntries {
		return ops.Errorf(ops.ErrUsage, ops.StatusSizeInvalid, "vhd: size %d takes %d blocks of %d bytes, want at most %d", size, n, w.blockSize, maxEntries)
	}
	return nil
}

// Resize makes the disk larger; see [ops.Resizer]. The order:
//
//	zeros behind the old end; unused entries for blocks behind it; flush
//	room behind the table: blktap's map there loses its cookie, blocks move to the
//	end, each as in moveBlockLocked; flush
//	unused entries in that room                      no header says so yet
//	header, copy at 0, end footer                    as in replaceHeaderLocked
//
// The end footer is the last and has the new size; before it a crash leaves the
// old one, with blocks in other places and some room that nothing uses.
func (w *writer) Resize(ctx context.Context, size, _ int64) error {
	if err := w.CanResize(size); err != nil {
		return err
	}
	switch {
	case w.isPoisoned(): // which size it has nobody knows
		return errPoisoned
	case size == w.Size():
		return nil
	}
	w.flushes.Lock()
	defer w.flushes.Unlock()
	if err := w.clearBehind(ctx); err != nil {
		return err
	}
	entries := max(blocksFor(size, w.blockSize), w.entries())
	to, err := w.roomForTable(ctx, entries)
	if err == nil {
		err = w.storeSize(size, entries, to)
	}
	if err != nil {
		return errors.Join(err, w.settle())
	}
	return nil
}

func (w *writer) isPoisoned() bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.session.poisoned
}

func (w *writer) entries() int64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return int64(w.head.entries)
}

// clearBehind makes what the file holds behind the disk's end zeros: the rest of
// the last block, and blocks of a longer life. Flushes are held off.
func (w *writer) clearBehind(ctx context.Context) error {
	b, err := w.clearLastBlock()
	for more := true; more && err == nil; {
		if err = ctx.Err(); err == nil {
			b, more, err = w.dropHidden(b)
		}
	}
	if err != nil {
		return err
	}
	return w.flushHeld()
}

// clearLastBlock zeroes the part of the last block that is behind the end, and
// gives the first block that is wholly behind it.
func (w *writer) clearLastBlock() (next int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.beginLocked(); err != nil {
		return 0, err
	}
	if err := w.scanOnceLocked(); err != nil {
		return 0, err
	}
	size := w.Size()
	next = blocksFor(size, w.blockSize)
	last := next - 1
	at, ok, err := w.blockLocked(last)
	if in := size - last*w.blockSize; err == nil && ok && in < w.blockSize {
		w.changed.Store(true)
		err = zeroStored(w.file, at+w.mapBytes+in, w.blockSize-in)
	}
	return next, err
}

// dropHidden takes the first block from b on that is allocated out of the table.
func (w *writer) dropHidden(b int64) (next int64, more bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	end := int64(w.head.entries)
	n, err := w.unusedRunLocked(b, end)
	if b += n; err != nil || b >= end {
		return b, false, err
	}
	if n < maxUnusedRun {
		err = w.dropLocked(b)
	}
	return b, true, err
}

// roomForTable makes room for a table of so many entries, and says where: in its
// place, with the blocks behind it moved away, or behind everything when
// something else is in its way.
func (w *writer) roomForTable(ctx context.Context, entries int64) (to int64, err error) {
	to, grows, err := w.reserveTable(entries)
	if err != nil || !grows {
		return to, err
	}
	end := to + 4*entries
	for b := int64(0); b < w.entries(); b++ {
		if b%(tablePage/4) == 0 {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
		}
		if err := w.moveAway(b, to, end); err != nil {
			return 0, err
		}
	}
	return to, w.flushHeld()
}

// reserveTable decides where the table goes and lets no new block into that room.
func (w *writer) reserveTable(entries int64) (to int64, grows bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to = int64(w.head.tableOffset)
	if entries == int64(w.head.entries) {
		return to, false, nil
	}
	if err := w.dropBatmapLocked(); err != nil {
		return 0, false, err
	}
	s := &w.session
	for _, o := range w.structures() {
		if o.off > to && o.off < to+4*entries {
			to = roundUp(s.next, sectorSize)
			break
		}
	}
	end := roundUp(to+4*entries, sectorSize)
	if w.mu.info.Aligned {
		end = roundUp(end, blockAlignment)
	}
	if end > s.tail {
		if err := w.moveFooterLocked(end); err != nil {
			return 0, false, err
		}
	}
	s.next = max(s.next, end)
	return to, true, nil
}

// moveAway moves block b behind everything if it is in [lo, hi).
func (w *writer) moveAway(b, lo, hi int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok, err := w.blockLocked(b)
	if err != nil || !ok || at >= hi || at+w.stride() <= lo {
		return err
	}
	to, err := w.nextPlaceLocked(b)
	if err != nil {
		return err
	}
	if err := w.moveBlockLocked(b, at, to); err != nil {
		return err
	}
	w.session.next = to + w.stride()
	return nil
}

// storeSize lets header and footers say that the disk has size bytes and a table
// of so many entries at byte to, where room for it was made.
func (w *writer) storeSize(size, entries, to int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	foot := w.foot.resized(size)
	had := int64(w.head.entries)
	if had == entries {
		if err := w.switchFootersLocked(&foot); err != nil {
			return err
		}
		w.foot = foot
	} else if err := w.growTableLocked(foot, entries, to); err != nil {
		return err
	}
	w.size.Store(size)
	w.session.free += entries - had
	w.mu.info.Creator = foot.creatorText()
	w.mu.info.Anomalies = append(without(w.mu.info.Anomalies, "vhd.geometry"), foot.geometryNote("footer")...)
	return nil
}

func (w *writer) growTableLocked(foot footer, entries, to int64) error {
	if from := int64(w.head.tableOffset); to != from {
		if err := copyRange(w.file, to, from, w.head.tableBytes()); err != nil {
			return err
		}
	}
	end := roundUp(to+4*entries, sectorSize)
	if err := fillTable(w.file, to+w.head.tableBytes(), end); err != nil {
		return err
	}
	raw := w.head.raw
	binary.BigEndian.PutUint64(raw[16:], uint64(to))
	binary.BigEndian.PutUint32(raw[28:], uint32(entries))
	h, err := headerOf(raw[:])
	if err != nil {
		return err
	}
	spare, err := w.placeLocked(headerSize, end)
	if err != nil {
		return err
	}
	if err := w.replaceHeaderLocked(h, foot, spare); err != nil {
		return err
	}
	w.table.Drop() // its last page was shorter
	return nil
}
