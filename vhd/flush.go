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

// Flush makes everything durable; see [ops.Writer].
func (w *writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flushLocked()
}

// flushLocked is two epochs: data, bitmaps of new blocks and zeros over old
// footers; then what makes them visible. A crash between leaves every sector as
// it was before it was written, or, where its block and bit were there already,
// new.
func (w *writer) flushLocked() error {
	if w.session.poisoned {
		return errPoisoned
	}
	if !w.changed.Load() {
		return nil
	}
	if err := w.syncLocked("vhd.data"); err != nil {
		return err
	}
	if len(w.mu.bat) > 0 || len(w.mu.bits) > 0 {
		if err := errors.Join(w.storeEntriesLocked(), w.storeBitsLocked()); err != nil {
			w.session.poisoned = true
			return err
		}
		if err := w.syncLocked("vhd.table"); err != nil {
			return err
		}
		w.mu.bat, w.mu.bits = map[int64]uint32{}, map[int64][]byte{}
	}
	w.changed.Store(false)
	return nil
}

// boundLocked flushes when too much waits in memory.
func (w *writer) boundLocked() error {
	if len(w.mu.bat) < maxPendingEntries && int64(len(w.mu.bits))*w.mapBytes < maxPendingBits {
		return nil
	}
	return w.flushLocked()
}

// storeEntriesLocked writes the waiting table entries, page by page, from the
// first to the last that changed.
func (w *writer) storeEntriesLocked() error {
	const perPage = tablePage / 4
	list := slices.Sorted(maps.Keys(w.mu.bat))
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
			binary.BigEndian.PutUint32(page[4*last:], w.mu.bat[list[0]])
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
	for _, b := range slices.Sorted(maps.Keys(w.mu.bits)) {
		at, _, err := w.blockLocked(b)
		if err != nil {
			return err
		}
		m := w.mu.bits[b]
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
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.session
	if !s.begun || s.poisoned {
		return nil
	}
	if err := w.flushLocked(); err != nil {
		return err
	}
	to := w.footerAt(max(s.next, s.floor-footerSize))
	if !s.scanned || to >= s.tail {
		return nil
	}
	if _, err := w.file.WriteAt(w.foot.raw[:], to); err != nil {
		return err
	}
	if err := w.syncLocked("vhd.trim"); err != nil {
		return err
	}
	return w.file.Truncate(to+footerSize, "vhd.trim")
}

var _ ops.Writer = (*writer)(nil)
