package vhd

import (
	"context"
	"errors"
	"syscall"

	"vhdfs/ops"
)

const (
	// blockAlignment is where the data of new blocks start, as since Windows 8.
	blockAlignment = 4096
	// maxAhead bounds the room that one growth makes: 64 MiB cost two syncs for
	// 32 blocks, and are cut off again at the end.
	maxAhead = 64 << 20
)

// beginLocked starts the write session: the first change of a file that was
// opened for writing. The copy at 0 becomes what it should be, durably; then a
// missing end footer is written. A crash between leaves a good copy at 0.
func (w *writer) beginLocked() error {
	s := &w.session
	if s.poisoned {
		return errPoisoned
	}
	if err := s.refuse(); err != nil {
		return err
	}
	if s.begun {
		return nil
	}
	if !s.compared {
		if err := w.found.unchanged(w.file); err != nil {
			return err
		}
		s.compared = true
	}
	if s.mendHead {
		if _, err := w.file.WriteAt(w.foot.raw[:], 0); err != nil {
			return err
		}
		if err := w.syncLocked("vhd.copy"); err != nil {
			return err
		}
		s.mendHead = false
	}
	if s.rewrite {
		if err := w.rewriteTailLocked(); err != nil {
			return err
		}
	}
	s.floor = w.found.size
	if s.tail < 0 {
		if err := w.scanOnceLocked(); err != nil {
			return err
		}
		if err := w.moveFooterLocked(max(s.next, s.floor)); err != nil {
			return err
		}
	}
	w.forgiveLocked()
	s.begun = true
	return nil
}

// rewriteTailLocked writes the footer over the one at the end.
func (w *writer) rewriteTailLocked() error {
	at := w.found.tail.off
	if _, err := w.file.WriteAt(w.foot.raw[:], at); err != nil {
		return err
	}
	if err := w.syncLocked("vhd.repair"); err != nil {
		return err
	}
	w.session.tail, w.session.rewrite, w.lay.end = at, false, at
	return nil
}

// forgiveLocked drops the anomalies that beginning has mended.
func (w *writer) forgiveLocked() {
	w.mu.info.Anomalies = without(w.mu.info.Anomalies, footerNames...)
}

func (w *writer) syncLocked(label string) error {
	err := w.file.Sync(label)
	if err != nil {
		w.session.poisoned = true
	}
	return err
}

// failOn ends a scan at the first bad entry.
func failOn(_ int64, err error) error { return err }

// scanOnceLocked goes over the table before space is given out for the first
// time: nothing may be placed in a file whose blocks overlap or are not there.
func (w *writer) scanOnceLocked() error {
	s := &w.session
	if s.scanned {
		return nil
	}
	res, err := w.scanLocked(context.Background(), scanVisit{bad: failOn})
	if err != nil {
		return err
	}
	s.next, s.free, s.stale = res.end, int64(w.head.entries)-res.allocated, w.found.size
	if w.mu.info.Aligned {
		s.next = roundUp(s.next, blockAlignment) // Windows keeps the tables in units of their own
	}
	s.scanned = true
	return nil
}

// footerAt is where the footer stands in a file whose contents end at end: in the
// last sector of an aligned unit, or, in a file that is not aligned, right behind,
// where QEMU and older Windows look for the end of the last block.
func (w *writer) footerAt(end int64) int64 {
	if w.mu.info.Aligned {
		return roundUp(end+footerSize, blockAlignment) - footerSize
	}
	return roundUp(end, sectorSize)
}

// moveFooterLocked makes the file end in a footer at or behind end. The order:
//
//	length, footer     the file may end in zeros: the copy at 0 serves
//	sync               only now may a guest's sectors stand before the footer
//	zeros over the old footer, which a new block would show
//
// When the first step fails the old length comes back at once, and durably with the
// next flush.
func (w *writer) moveFooterLocked(end int64) error {
	s := &w.session
	to := w.footerAt(end)
	s.overlong = true
	w.changed.Store(true)
	err := w.file.Truncate(to+footerSize, "vhd.footer")
	if err == nil {
		_, err = w.file.WriteAt(w.foot.raw[:], to)
	}
	if err != nil {
		return errors.Join(err, w.shortenLocked())
	}
	if err := w.syncLocked("vhd.footer"); err != nil {
		return err
	}
	old := s.tail
	s.tail, s.overlong, w.lay.end = to, false, to
	if old < s.stale {
		return nil // wiped when a block is placed there
	}
	if err := ops.WriteZeros(w.file, old, footerSize); err != nil {
		s.stale = old + footerSize
		return err
	}
	return nil
}

// shortenLocked takes back a growth that failed: the old footer ends the file again.
// Nothing is stored behind it.
func (w *writer) shortenLocked() error {
	s := &w.session
	if !s.overlong {
		return nil
	}
	length := w.found.size // of a file without a footer at the end
	if s.tail >= 0 {
		length = s.tail + footerSize
	}
	if err := w.file.Truncate(length, "vhd.undo"); err != nil {
		return err
	}
	s.overlong = false
	return nil
}

// growLocked makes room for a block that ends at need, and for more behind it.
func (w *writer) growLocked(need int64) error {
	s := &w.session
	stride := roundUp(w.stride(), blockAlignment)
	more := min(s.ahead, s.free, max(maxAhead/stride, 1)) - 1
	had := s.tail
	err := w.moveFooterLocked(need + max(more, 0)*stride)
	if errors.Is(err, syscall.EFBIG) && more > 0 && s.tail == had && !s.poisoned {
		err = w.moveFooterLocked(need)
	}
	s.ahead = min(2*s.ahead, maxAhead)
	return err
}

// allocateLocked gives block b space and stores n bytes of p at byte in of it,
// zeros when p is nil. The order:
//
//	footer behind the new block; sync    only with the first block of a growth
//	zeros where the space was used       old bytes must not show
//	bitmap, data
//	(flush:) sync; table entry; sync     then bits of a differencing disk
//
// Until the table entry is written a crash leaves space that nothing uses. When
// a step fails the block is not allocated, and all of it is done again next time.
func (w *writer) allocateLocked(b, in, n int64, p []byte) error {
	if err := w.scanOnceLocked(); err != nil {
		return err
	}
	s := &w.session
	at, err := w.nextPlaceLocked(b)
	if err != nil {
		return err
	}
	end := at + w.stride()
	w.changed.Store(true)
	bits, err := w.fillLocked(b, at, in, n, p)
	if err != nil {
		s.stale = max(s.stale, end)
		return err
	}
	w.enterLocked(b, uint32(at/sectorSize))
	if bits != nil {
		w.mu.wait.bits[b] = bits
	}
	s.next, s.free = end, s.free-1
	return nil
}

// fillLocked writes the block at at. It returns the bits that have to wait: all
// of a dynamic disk's are stored at once, since the data area holds zeros.
func (w *writer) fillLocked(b, at, in, n int64, p []byte) (wait []byte, err error) {
	if used := min(w.session.stale, at+w.stride()) - at; used > 0 {
		if err := wipe(w.file, at, used); err != nil {
			return nil, err
		}
	}
	bits := make([]byte, w.mapBytes)
	if w.typ == ops.Dynamic {
		setBits(bits, 0, 8*w.mapBytes)
	}
	if _, err := w.file.WriteAt(bits, at); err != nil {
		return nil, err
	}
	if p != nil {
		if _, err := w.file.WriteAt(p, at+w.mapBytes+in); err != nil {
			return nil, err
		}
	}
	if w.typ == ops.Dynamic {
		w.maps.Put(b, bits) // those of an earlier life of the block may be there
		return nil, nil
	}
	setBits(bits, in/sectorSize, (in+n)/sectorSize)
	return bits, nil
}

// wipe zeroes space that is used again.
func wipe(f ops.File, off, n int64) error {
	if n <= copyChunk {
		return ops.WriteZeros(f, off, n)
	}
	return punch(f, off, n)
}
