package vhd

import (
	"errors"
	"io"
	"syscall"

	"vhdfs/ops"
)

// Blocks that move or go. The table entry waits for a flush like that of a new
// block, so data are durable in the new place before the entry leads there, and
// until that is durable the old place is still the block's for whoever opens the
// file after a crash: nothing may be put there before the flush has answered. All of
// it happens with flushes held off, lest one that is under way store bits in a
// place that is not in the table yet.

// nextPlaceLocked is where the next block goes behind everything: b, for messages.
// The file grows for it; the place is taken when the caller sets session.next.
func (w *writer) nextPlaceLocked(b int64) (at int64, err error) {
	s := &w.session
	at = roundUp(s.next+w.mapBytes, blockAlignment) - w.mapBytes
	end := at + w.stride()
	if at/sectorSize >= unused || b >= int64(w.head.entries) {
		return 0, ops.Errorf(syscall.EFBIG, ops.StatusAllocFailed, "vhd: block %d: sector %#x does not fit a table entry", b, at/sectorSize)
	}
	if end > s.tail {
		return at, w.growLocked(end)
	}
	return at, nil
}

// moveBlockLocked copies block b from byte at to byte to, where nothing is, and has
// the next flush enter it there. Bits that wait go with it.
func (w *writer) moveBlockLocked(b, at, to int64) error {
	if err := w.checkWhole(b, at); err != nil {
		return err
	}
	w.changed.Store(true)
	if err := copyRange(w.file, to, at, w.stride()); err != nil {
		w.session.stale = max(w.session.stale, to+w.stride())
		return err
	}
	w.enterLocked(b, uint32(to/sectorSize))
	return nil
}

// dropLocked takes block b out of the table with the next flush.
func (w *writer) dropLocked(b int64) error {
	if err := w.dropBatmapLocked(); err != nil {
		return err
	}
	w.changed.Store(true)
	w.enterLocked(b, unused)
	delete(w.mu.wait.bits, b)
	w.session.free++
	return nil
}

// dropBatmapLocked takes blktap's map of full blocks out of the file with the next
// flush, whose first sync is before anything happens that makes it untrue: its bits
// say that a block is full whatever becomes of the block.
func (w *writer) dropBatmapLocked() error {
	for i, s := range w.lay.spans {
		if s.what != batmapName {
			continue
		}
		w.changed.Store(true)
		if _, err := w.file.WriteAt(make([]byte, len(batmapCookie)), s.off); err != nil {
			return err
		}
		lay := *w.lay
		lay.spans = append(append([]span(nil), lay.spans[:i]...), lay.spans[i+1:]...)
		w.lay = &lay
		return nil
	}
	return nil
}

// settle flushes, which alone gives space back, and then finds out again where the
// last block or structure ends. Flushes are held off. A poisoned disk stays as it is.
func (w *writer) settle() error {
	if err := w.flushHeld(); err != nil {
		if errors.Is(err, ops.ErrPoisoned) {
			return nil // whoever asked was told
		}
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.session
	next, stale := s.next, s.stale
	s.scanned = false
	if err := w.scanOnceLocked(); err != nil {
		return err
	}
	s.stale = max(next, stale)
	return nil
}

// copyRange copies n bytes of f from byte from to byte to, holes as holes.
func copyRange(f ops.File, to, from, n int64) error {
	buf := make([]byte, min(n, copyChunk))
	for end := from + n; from < end; {
		data, hole, err := f.NextData(from)
		switch {
		case errors.Is(err, io.EOF):
			data = end
		case errors.Is(err, errors.ErrUnsupported):
			data, hole = from, end
		case err != nil:
			return err
		}
		if gap := min(data, end) - from; gap > 0 {
			if err := punch(f, to, gap); err != nil {
				return err
			}
			from, to = from+gap, to+gap
		}
		for hole = min(hole, end); from < hole; {
			k := min(hole-from, copyChunk)
			if err := readFull(f, buf[:k], from, "bytes to move"); err != nil {
				return err
			}
			if _, err := f.WriteAt(buf[:k], to); err != nil {
				return err
			}
			from, to = from+k, to+k
		}
	}
	return nil
}
