package vhdx

import (
	"fmt"

	"vhdfs/ops"
)

// Zero makes whole sectors read as zeros. Blocks that are covered whole give
// their space back with unmap, fixed disks aside; in a child they become zero
// blocks, never the parent's.
func (w *Writer) Zero(off, n int64, unmap bool) error {
	if err := w.checkRange(off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		skip, err := w.zerosAlready(off, end-off)
		if err != nil {
			return err
		}
		if off += skip; off == end {
			return nil
		}
		k := min(end-off, w.geometry.block-off%w.geometry.block)
		if err := w.zeroBlock(off, k, unmap); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// zerosAlready is how many of n bytes at off read as zeros by the tables alone:
// nothing has to be done for them, not even a session begun.
func (w *Writer) zerosAlready(off, n int64) (int64, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.poison != nil {
		return 0, w.poison
	}
	if err := w.checkRange(off, n); err != nil {
		return 0, err
	}
	x, err := w.lookup(off, n)
	if err != nil || x.Kind != ops.Zero {
		return 0, err
	}
	if x.Len == n || (off+x.Len)%w.geometry.block != 0 {
		return x.Len, nil
	}
	more, err := w.sameStates(off+x.Len, n-x.Len, ops.Zero)
	return x.Len + more, err
}

// zeroBlock zeroes n bytes at off, which lie in one block.
func (w *Writer) zeroBlock(off, n int64, unmap bool) error {
	if err := w.roomForChange(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.checkRange(off, n); err != nil {
		return err
	}
	if err := w.showLocked(); err != nil {
		return err
	}
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
	fixed := w.diskType() == ops.Fixed
	whole := n == g.used(b)
	switch {
	case !e.present() && w.kind(e) == ops.Zero:
		return nil
	case whole && !fixed && (unmap || !e.present()):
		return w.releaseLocked(i, e)
	case !e.present():
		return w.zeroPartLocked(b, i, e, in, n)
	}
	if err := w.zeroFile(span{e.offset() + in, e.offset() + in + n}, unmap && !fixed); err != nil {
		return fmt.Errorf("vhdx: zero %d bytes at %d: %w", n, off, err)
	}
	if e.state() == statePartial {
		return w.fillLocked(b, i, e, in, n)
	}
	return nil
}

// releaseLocked makes a block a zero block. Its space stays its own until the
// change is durable: after a crash the old entry may still name it.
func (w *Writer) releaseLocked(i int64, e entry) error {
	if err := w.setEntryLocked(i, newEntry(stateZero, 0)); err != nil {
		return err
	}
	if e.present() {
		w.session.released = append(w.session.released, span{e.offset(), e.offset() + w.geometry.block})
	}
	return nil
}

// zeroPartLocked gives a block of the parent's space in this file, with zeros in
// a part of it.
func (w *Writer) zeroPartLocked(b, i int64, e entry, in, n int64) error {
	t, err := w.takeLocked(w.geometry.block)
	if err != nil {
		return err
	}
	if err := w.enterLocked(b, i, e, t, in, n, false); err != nil {
		w.dropLocked(t)
		return err
	}
	return nil
}
