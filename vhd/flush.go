package vhd

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"vhdfs/ops"
)

const (
	// maxPendingEntries and maxPendingBits bound what waits for a flush: then
	// one happens by itself.
	maxPendingEntries = 64 << 10
	maxPendingBits    = 4 << 20 // bytes
)

// Flush makes everything durable; see [ops.Writer]. It is two epochs: data,
// bitmaps of new blocks and zeros over old footers; then the entries and bits
// that make them visible. A crash between leaves every sector as it was before
// it was written, or new where its block and bit were there already.
//
// Reads and writes go on during the syncs: what they add waits for the next
// flush.
func (w *writer) Flush() error {
	w.flushes.Lock()
	defer w.flushes.Unlock()
	return w.flushHeld()
}

// flushHeld is Flush for who holds off others.
func (w *writer) flushHeld() error {
	if due, err := w.startFlush(); err != nil || !due {
		return err
	}
	if err := w.file.Sync("vhd.data"); err != nil {
		return w.poison(err)
	}
	stored, err := w.store()
	if err != nil {
		return w.poison(err)
	}
	if stored {
		if err := w.file.Sync("vhd.table"); err != nil {
			return w.poison(err)
		}
	}
	return nil
}

// startFlush takes what waits now; false when nothing was written.
func (w *writer) startFlush() (due bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session.poisoned {
		return false, errPoisoned
	}
	if !w.changed.Swap(false) {
		return false, nil
	}
	if err := w.shortenLocked(); err != nil {
		w.changed.Store(true)
		return false, err
	}
	w.mu.leave, w.mu.wait = w.mu.wait, newPending()
	return true, nil
}

// store writes the entries and bits whose data are durable.
func (w *writer) store() (stored bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	stored = len(w.mu.leave.bat)+len(w.mu.leave.bits) > 0
	if err := errors.Join(w.storeEntriesLocked(), w.storeBitsLocked()); err != nil {
		return stored, err
	}
	w.mu.leave = pending{}
	return stored, nil
}

func (w *writer) poison(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session.poisoned = true
	return err
}

// fullLocked tells whether so much waits that a flush is due without anybody
// asking.
func (w *writer) fullLocked() bool {
	return len(w.mu.wait.bat) >= maxPendingEntries || int64(len(w.mu.wait.bits))*w.mapBytes >= maxPendingBits
}

// storeEntriesLocked writes the waiting table entries, page by page, from the
// first to the last that changed.
func (w *writer) storeEntriesLocked() error {
	const perPage = tablePage / 4
	list := slices.Sorted(maps.Keys(w.mu.leave.bat))
	for len(list) > 0 {
		i := list[0] / perPage
		old, err := w.tablePageLocked(i)
		if err != nil {
			return err
		}
		page := slices.Clone(old)
		first, last := list[0]%perPage, int64(0)
		for len(list) > 0 && list[0]/perPage == i {
			last = list[0] % perPage
			binary.BigEndian.PutUint32(page[4*last:], w.mu.leave.bat[list[0]])
			list = list[1:]
		}
		pos := int64(w.head.tableOffset) + i*tablePage + 4*first
		if _, err := w.file.WriteAt(page[4*first:4*last+4], pos); err != nil {
			return err
		}
		w.table.Put(i, page)
	}
	return nil
}

// storeBitsLocked writes the waiting bitmaps.
func (w *writer) storeBitsLocked() error {
	for _, b := range slices.Sorted(maps.Keys(w.mu.leave.bits)) {
		at, _, err := w.blockLocked(b)
		if err != nil {
			return err
		}
		m := w.mu.leave.bits[b]
		if _, err := w.file.WriteAt(m, at); err != nil {
			return err
		}
		w.maps.Put(b, m)
	}
	return nil
}

// Close flushes, gives back the room that was made ahead, and closes the file.
// An image that was not written is left as it is.
func (w *writer) Close() error {
	return errors.Join(w.end(), w.Disk.Close())
}

// end moves the footer back behind the last block: the footer there, a sync, and
// only then the cut. Before the cut the footer at the end of the file serves.
func (w *writer) end() error {
	if err := w.Flush(); err != nil {
		if errors.Is(err, ops.ErrPoisoned) {
			return nil // whoever wrote was told
		}
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.cutLocked()
	return err
}

// cutLocked ends the file in a footer behind the last block and behind the session's
// floor. It waits for the flush that gives space back. A crash leaves the length as
// it was, with the footer there, or the new one.
func (w *writer) cutLocked() (cut bool, err error) {
	s := &w.session
	to := w.footerAt(max(s.next, s.floor-footerSize))
	if !s.scanned || to >= s.tail {
		return false, nil
	}
	if _, err := w.file.WriteAt(w.foot.raw[:], to); err != nil {
		s.stale = max(s.stale, to+footerSize)
		return false, err
	}
	if err := w.syncLocked("vhd.trim"); err != nil {
		return false, err
	}
	s.stale = max(s.stale, to+footerSize)
	if err := w.file.Truncate(to+footerSize, "vhd.trim"); err != nil {
		return false, err
	}
	s.tail, w.lay.end, s.stale = to, to, to+footerSize
	return true, nil
}

var _ ops.Writer = (*writer)(nil)
