package vhdx

import (
	"errors"
	"fmt"
	"slices"

	"vhdfs/ops"
)

// zeroFile makes a part of the file read as zeros. With punch its space goes
// back to the host where the host can do that.
func (w *Writer) zeroFile(s span, punch bool) error {
	defer w.unsynced.Store(true) // after the change: a sync that ran before it does not cover it
	if punch {
		err := w.f.Punch(s.off, s.len())
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return ops.WriteZeros(w.f, s.off, s.len())
}

// growLocked makes the file size bytes long; what is added reads as zeros.
func (w *Writer) growLocked(size int64) error {
	if err := w.f.Truncate(size, "vhdx.grow"); err != nil {
		return fmt.Errorf("vhdx: grow to %#x: %w", size, err)
	}
	w.unsynced.Store(true)
	w.fileSize = size
	return nil
}

// takeLocked finds n bytes, whole mebibytes, that belong to nobody and read as
// zeros: space that blocks gave back and whose release is durable, else new space
// at the end of the file. Nothing names it until a BAT entry does: a crash leaks
// it at most.
func (w *Writer) takeLocked(n int64) (span, error) {
	s := w.session
	at, next := s.space.find(s.search, n/mib)
	s.search = next
	if at < 0 {
		at = s.space.end() / mib
	}
	if at*mib+n > maxFile {
		return span{}, ops.Errorf(ops.ErrPastEnd, ops.StatusAllocFailed, "vhdx: a file of more than %#x bytes", maxFile)
	}
	// The last mebibyte of a file may be there in part.
	if size := at*mib + n; size > w.fileSize {
		if err := w.extendLocked(size); err != nil {
			return span{}, err
		}
	}
	t := span{at * mib, at*mib + n}
	if err := w.cleanLocked(t); err != nil {
		return span{}, err
	}
	s.space.claim(t)
	return t, nil
}

// extendLocked makes the file size bytes long or longer: in steps, so that its
// size is seldom on its way.
func (w *Writer) extendLocked(size int64) error {
	size = min(max(size, roundUp(w.fileSize, mib)+growStep), maxFile)
	if err := w.growLocked(size); err != nil {
		return err
	}
	w.session.space.grow(size)
	w.session.stale.grow(size)
	return nil
}

// cleanLocked makes free space read as zeros, as far as it may hold old bytes.
func (w *Writer) cleanLocked(t span) error {
	s := w.session
	for i := t.off / mib; i < t.end/mib; i++ {
		if !s.stale.taken(i) {
			continue
		}
		end := i + 1
		for end < t.end/mib && s.stale.taken(end) {
			end++
		}
		old := span{i * mib, min(end*mib, w.fileSize)}
		if err := w.zeroFile(old, true); err != nil {
			return fmt.Errorf("vhdx: clear free space at %#x: %w", old.off, err)
		}
		s.stale.release(span{i * mib, end * mib})
		i = end - 1
	}
	return nil
}

// dropLocked gives space back that no BAT entry ever named.
func (w *Writer) dropLocked(t span) {
	s := w.session
	s.space.release(t)
	s.stale.claim(t)
	s.search = min(s.search, t.off/mib)
}

// editLocked is a page of the file for change: it is dirty from now on.
func (w *Writer) editLocked(page int64) ([]byte, error) {
	b, ok := w.table.dirty[page]
	if !ok {
		old, err := w.table.page(page)
		if err != nil {
			return nil, err
		}
		b = slices.Clone(old)
		w.table.dirty[page] = b
		w.session.dirty[page] = &dirtyPage{}
	}
	p := w.session.dirty[page]
	p.version, p.logged = p.version+1, false
	return b, nil
}

// setEntryLocked changes entry i of the BAT in memory, and in the eyes of whoever
// checks it.
func (w *Writer) setEntryLocked(i int64, e entry) error {
	at := w.regions.bat.off + i*entryBytes
	b, err := w.editLocked(at / pageSize)
	if err != nil {
		return err
	}
	old := entry(le.Uint64(b[at%pageSize:]))
	le.PutUint64(b[at%pageSize:], uint64(e))
	for _, c := range w.checks {
		c.changedLocked(i, old, e)
	}
	return nil
}

// bitmapLocked is where the sector bitmap of block b's chunk lies. A chunk
// without one gets one, all zeros.
func (w *Writer) bitmapLocked(b int64) (int64, error) {
	g := w.geometry
	i := g.bitmapIndex(b / g.ratio)
	e, err := w.entryAt(i)
	if err != nil {
		return 0, err
	}
	if e.present() {
		return e.offset(), g.checkBitmap(i, e, w.reserved)
	}
	t, err := w.takeLocked(bitmapBlock)
	if err != nil {
		return 0, err
	}
	if err := w.setEntryLocked(i, newEntry(stateFull, t.off)); err != nil {
		w.dropLocked(t)
		return 0, err
	}
	return t.off, nil
}

// editBitsLocked calls f with every piece of the bitmap pages that hold n bits
// from bit `first` on. f answers whether the piece has to change; only then its
// page becomes dirty, and edit is called with it.
func (w *Writer) editBitsLocked(bitmap, first, n int64, needs func(page []byte, first, n int64) bool, edit func(page []byte, first, n int64)) error {
	const pageBits = pageSize * 8
	for n > 0 {
		page, bit := bitmap/pageSize+first/pageBits, first%pageBits
		k := min(n, pageBits-bit)
		b, err := w.table.page(page)
		if err != nil {
			return err
		}
		if needs(b, bit, k) {
			if b, err = w.editLocked(page); err != nil {
				return err
			}
			edit(b, bit, k)
		}
		first, n = first+k, n-k
	}
	return nil
}

// setBitsLocked says that bytes [in, in+n) of block b are in this file.
func (w *Writer) setBitsLocked(bitmap, b, in, n int64) error {
	g := w.geometry
	first, _ := g.bitmapSlice(b)
	return w.editBitsLocked(bitmap, first+in/g.sector, n/g.sector, func(p []byte, first, n int64) bool {
		set, run := bitRun(p, first, n)
		return !set || run < n
	}, setBits)
}

// clearBitsLocked says that nothing of block b is in this file: bits of an
// earlier life of the block may stand there.
func (w *Writer) clearBitsLocked(bitmap, b int64) error {
	first, n := w.geometry.bitmapSlice(b)
	return w.editBitsLocked(bitmap, first, n, func(p []byte, first, n int64) bool {
		set, run := bitRun(p, first, n)
		return set || run < n
	}, func(p []byte, first, n int64) { clear(p[first/8 : (first+n)/8]) })
}
