package vhdx

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"vhdfs/ops"
)

// Flush makes every change that completed before durable. In this order:
//
//	sync                     payload, file size, and pages of earlier flushes in place
//	log entries, sync        the changed pages of BAT and sector bitmaps
//	pages in place           not synced: the log has them until the next flush
//
// A crash before the second sync leaves the tables of the flush before, with
// blocks that were new leaked; after it, the log is replayed. Reads and writes go
// on meanwhile; what they change belongs to the next flush.
func (w *Writer) Flush() error {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	return w.flush()
}

// flush is Flush for whoever holds flushing.
func (w *Writer) flush() error {
	batch, released, size, err := w.snapshot()
	if err != nil || size == 0 {
		return err
	}
	if err := w.place(); err != nil {
		w.giveBack(released)
		return err // nothing more goes into the log before what is there is in place
	}
	if w.unsynced.Swap(false) {
		if err := w.sync("vhdx.payload"); err != nil {
			return err
		}
	}
	if err = w.haveLog(size); err == nil && len(batch) == 0 {
		w.giveBack(released)
		return nil
	}
	if err == nil {
		w.session.log.retire()
		err = w.logPages(batch, size)
	}
	if err != nil {
		w.giveBack(released)
		return err
	}
	w.recycle(released)
	// The log has what could not be put in place; the next flush tries again.
	_ = w.place()
	return nil
}

// snapshot copies the pages that are not in the log yet, in the order in which
// they must get there, with the space that they release. Size 0: no session.
func (w *Writer) snapshot() (batch []pageCopy, released []span, size int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poison != nil || w.session == nil {
		return nil, nil, 0, w.poison
	}
	for page, p := range w.session.dirty {
		if !p.logged {
			batch = append(batch, pageCopy{page: page, version: p.version, b: slices.Clone(w.table.dirty[page])})
		}
	}
	// A payload entry relies on its sector bitmap's entry, which stands after it
	// in the BAT, and both on the bitmap: whatever entry of the log is the last to
	// survive, nothing in the tables relies on what is not there.
	slices.SortFunc(batch, func(a, b pageCopy) int {
		inBAT := func(l pageCopy) bool { return w.regions.bat.contains(l.page * pageSize) }
		if x, y := inBAT(a), inBAT(b); x != y {
			if y {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.page, a.page)
	})
	released, w.session.released = w.session.released, nil
	return batch, released, w.fileSize, nil
}

// sync makes the file durable or poisons the layer. Disk.mu is not held: reads
// and writes go on.
func (w *Writer) sync(label string) error {
	err := w.f.Sync(label)
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failLocked(fmt.Errorf("vhdx: %s: %w", label, err))
}

// logPages writes pages to the log, as many entries as it takes, and makes them
// durable. Where the ring has no room, what is logged is put in place and made
// durable there first. size is the size of the file, which is durable.
func (w *Writer) logPages(batch []pageCopy, size int64) error {
	l := w.session.log
	first := 0 // page of the first entry that is not durable
	for i := 0; i < len(batch); {
		n := min(len(batch)-i, int(maxEntryPages))
		if !l.room(n) {
			if i > first {
				if err := w.commit(batch[first:i]); err != nil {
					return err
				}
			}
			if err := w.emptyRing(size); err != nil {
				return err
			}
			first = i
		}
		if err := l.append(batch[i:i+n], size); err != nil {
			return err
		}
		i += n
	}
	return w.commit(batch[first:])
}

// commit makes the entries that hold pages durable: from then on the pages may be
// put in place.
func (w *Writer) commit(pages []pageCopy) error {
	if err := w.sync("vhdx.log.entry"); err != nil {
		return err
	}
	w.session.log.durable()
	w.session.pending = append(w.session.pending, pages...)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range pages {
		if d := w.session.dirty[p.page]; d != nil && d.version == p.version {
			d.logged = true
		}
	}
	return nil
}

// emptyRing makes every entry of the ring needless, in two steps, each durable
// before the next:
//
//	pages in place      the log is still replayed, to the same effect
//	an empty entry      names itself as the oldest; all before it may be overwritten
func (w *Writer) emptyRing(size int64) error {
	if err := w.place(); err != nil {
		return err
	}
	if w.unsynced.Swap(false) {
		if err := w.sync("vhdx.log.room"); err != nil {
			return err
		}
	}
	l := w.session.log
	l.retire()
	if err := l.append(nil, size); err != nil {
		return err
	}
	if err := w.sync("vhdx.log.turn"); err != nil {
		return err
	}
	l.durable()
	return nil
}

// place writes the pages that are durable in the log where they belong. A page
// that did not change since is clean then. On an error the rest stays pending.
func (w *Writer) place() error {
	for len(w.session.pending) > 0 {
		p := w.session.pending[0]
		w.unsynced.Store(true)
		if w.session.moving != nil {
			w.session.moving.mark(p.page * pageSize)
		}
		if _, err := w.f.WriteAt(p.b, p.page*pageSize); err != nil {
			return fmt.Errorf("vhdx: write table page at %#x: %w", p.page*pageSize, err)
		}
		w.session.pending = w.session.pending[1:]
		w.clean(p)
	}
	return nil
}

func (w *Writer) clean(p pageCopy) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.session.dirty[p.page]; d != nil && d.version == p.version {
		delete(w.session.dirty, p.page)
		delete(w.table.dirty, p.page)
		w.table.cache.Put(p.page, p.b)
	}
}

// recycle makes space free whose release is durable. The host gets it back where
// it can; elsewhere it stays full of old bytes, and whoever takes it clears it.
func (w *Writer) recycle(released []span) {
	punched := make([]bool, len(released))
	for i, t := range released {
		punched[i] = w.f.Punch(t.off, t.len()) == nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, t := range released {
		w.unsynced.Store(true)
		w.session.space.release(t)
		w.session.search = min(w.session.search, t.off/mib)
		if punched[i] {
			w.session.stale.release(t)
		} else {
			w.session.stale.claim(t)
		}
	}
}

// giveBack keeps released space for the next flush: its release did not get
// into the log.
func (w *Writer) giveBack(released []span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session.released = append(w.session.released, released...)
}

// Close ends the session, if there was one, and closes the file:
//
//	flush, pages in place, sync         the log is not needed any more
//	header with LogGuid zero, sync      the file is whole
//	the other header too, sync          or the next session's header write could
//	                                    be on its way together with this one
//	spare space cut off                 a crash may leave it: free space
//
// When any of that fails the log stays as it is and is replayed by the next one
// who opens the file; the error says what was not made durable.
func (w *Writer) Close() error {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	return errors.Join(w.end(), w.Disk.Close())
}

func (w *Writer) end() error {
	if err := w.flush(); err != nil {
		return err
	}
	w.mu.Lock()
	s := w.session
	w.mu.Unlock()
	if s == nil {
		return nil
	}
	if err := w.place(); err != nil {
		return err
	}
	if w.unsynced.Swap(false) {
		if err := w.sync("vhdx.close.tables"); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session = nil
	h := w.headers.current
	h.log = ops.GUID{}
	for _, label := range []string{"vhdx.close.header", "vhdx.close.second"} {
		if err := w.putHeaderLocked(h, label); err != nil {
			return err
		}
	}
	for _, t := range s.retired {
		s.space.release(t) // no log is there any more that could write to it
	}
	if end := s.space.end(); end < w.fileSize {
		if err := w.f.Truncate(end, "vhdx.close.spare"); err != nil {
			return fmt.Errorf("vhdx: cut spare space at %#x: %w", end, err)
		}
		w.fileSize = end
	}
	return nil
}
