package vhdx

import (
	"context"

	"vhdfs/ops"
)

// clearStale clears the entries that a larger disk brings into use: an earlier,
// longer life of the disk may have left some there. Those behind the old table
// own nothing.
func (w *Writer) clearStale(ctx context.Context, to geometry) error {
	w.mu.RLock()
	g := w.geometry
	w.mu.RUnlock()
	if err := w.clearEntries(ctx, g.beyond(), to.entries, g.entries); err != nil {
		return err
	}
	// Durable before a block gets that entry's space: it may name it.
	return w.Flush()
}

// clearBeyond clears the entries past the end of the disk and gives back what they
// hold, as far as this session put them there or found them to belong to the disk.
func (w *Writer) clearBeyond() error {
	w.mu.RLock()
	g, end, poison := w.geometry, w.session.beyond, w.poison
	w.mu.RUnlock()
	if poison != nil || end == 0 {
		return poison
	}
	if err := w.clearEntries(context.Background(), g.beyond(), end, end); err != nil {
		return err
	}
	w.mu.Lock()
	w.session.beyond = 0
	w.mu.Unlock()
	return w.Flush()
}

// clearEntries clears the entries [from, to) that say nothing about the disk; the
// space of those before owned is given back.
func (w *Writer) clearEntries(ctx context.Context, from, to, owned int64) error {
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.roomForChange(); err != nil {
			return err
		}
		next, err := w.clearSlice(from, to, owned)
		if err != nil {
			return err
		}
		from = next
	}
	return nil
}

// clearSlice is clearEntries for some entries from index from on; it answers where
// to go on.
func (w *Writer) clearSlice(from, to, owned int64) (next int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.holeEntries(from, to); n > 0 {
		return from + n, nil
	}
	g := w.geometry
	next = min(to, from+editSlice)
	var stale []int64
	err = w.scanBAT(from, next, nil, func(i int64, e entry) bool {
		if e != 0 && !g.inUse(i) {
			stale = append(stale, i)
		}
		return true
	})
	for _, i := range stale {
		if err == nil {
			err = w.clearEntryLocked(i, i < owned)
		}
	}
	return next, err
}

// clearEntryLocked makes entry i, which says nothing about the disk, zero.
func (w *Writer) clearEntryLocked(i int64, owned bool) error {
	g := w.geometry
	e, err := w.entryAt(i)
	if err != nil {
		return err
	}
	if err := w.setEntryLocked(i, 0); err != nil || !owned {
		return err
	}
	s := w.session
	switch {
	case g.isBitmap(i):
		if g.hasParent && e.present() {
			w.retireLocked(span{e.offset(), e.offset() + bitmapBlock})
		}
	case e.present() || e.offset() != 0 && s.anchors:
		s.released = append(s.released, span{e.offset(), e.offset() + g.block})
	}
	return nil
}

// retireLocked gives up a part of the file that the log wrote to: what of it waits
// to be logged is not needed any more.
func (w *Writer) retireLocked(t span) {
	for page := range w.table.dirty {
		if t.contains(page * pageSize) {
			delete(w.table.dirty, page)
			delete(w.session.dirty, page)
		}
	}
	w.table.cache.Drop()
	w.session.retired = append(w.session.retired, t)
}

var _ ops.Resizer = (*Writer)(nil)
