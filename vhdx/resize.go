package vhdx

import (
	"context"
	"errors"
	"fmt"

	"vhdfs/ops"
)

const (
	// editSlice is how many BAT entries are looked at, or set, under one hold of
	// Disk.mu.
	editSlice = 4096
	// allocateStep is how much of a fixed disk gets its space under one hold.
	allocateStep = 64 * mib
)

// CanResize says why a disk cannot be size bytes long: a multiple of its logical
// sector up to 64 TiB ([MS-VHDX] 2.6.2.2).
func (w *Writer) CanResize(size int64) error {
	w.mu.RLock()
	m := w.metadata
	w.mu.RUnlock()
	m.size = uint64(max(size, 0))
	if status, why := m.problem(); why != "" {
		return ops.Errorf(ops.ErrUsage, status, "vhdx: %s", why)
	}
	return nil
}

// Resize makes the disk size bytes long. To grow, in this order:
//
//	room in the BAT region                    the old disk
//	entries past the end as they are to be,   the old disk: nobody looks there
//	the last block's rest zeros; flush
//	header with a new DataWriteGuid, sync     the old disk
//	one log entry with the size               the new disk
//
// To shrink:
//
//	header with a new DataWriteGuid, sync     the old disk
//	one log entry with the size               the new disk, blocks past its end leaked
//	entries past the end cleared; flush       their space is free
//	another log, the file cut                 see restartLog
//
// below is the size of the parent's disk: up to there what is added says that it
// is zeros, and further on the parent has nothing. ctx counts until the size is
// changed. After an error the size may have changed only if it is smaller now;
// asking again then gives back what is left.
func (w *Writer) Resize(ctx context.Context, size, below int64) error {
	if err := w.CanResize(size); err != nil {
		return err
	}
	w.mu.RLock()
	g, poison := w.geometry, w.poison
	left := w.session != nil && w.session.beyond > 0
	w.mu.RUnlock()
	switch {
	case poison != nil:
		return poison
	case size == g.size && !left:
		return nil
	}
	if err := w.begin(); err != nil {
		return err
	}
	if left {
		if err := w.clearBeyond(); err != nil {
			return err
		}
	}
	if size <= g.size {
		return w.shrink(size)
	}
	err := w.grow(ctx, g.sized(size), below)
	if err != nil {
		if undo := w.clearBeyond(); !errors.Is(undo, ops.ErrPoisoned) {
			err = errors.Join(err, undo)
		}
	}
	return err
}

// shrink makes the disk smaller, or gives back what is left past its end.
func (w *Writer) shrink(size int64) error {
	if size < w.Size() {
		w.mu.Lock()
		w.session.beyond = w.geometry.entries
		w.mu.Unlock()
		if err := w.putSize(size); err != nil {
			return err
		}
	}
	if err := w.clearBeyond(); err != nil {
		return err
	}
	w.flushing.Lock()
	defer w.flushing.Unlock()
	return w.restartLog(true)
}

// grow makes the disk larger. After an error it is what it was, and what was added
// past its end stands up to session.beyond.
func (w *Writer) grow(ctx context.Context, to geometry, below int64) error {
	if to.entries*entryBytes > w.batRoom() {
		if err := w.moveBAT(ctx, to.batLength()); err != nil {
			return err
		}
	}
	if err := w.clearStale(ctx, to); err != nil {
		return err
	}
	w.mu.Lock()
	w.session.beyond = to.entries
	err := w.zeroTailLocked(to, below)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if w.diskType() == ops.Fixed {
		err = w.addBlocks(ctx, to)
	} else {
		err = w.addZeros(ctx, to, min(below, to.size))
	}
	if err != nil {
		return err
	}
	if err := w.putSize(to.size); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session.beyond = 0
	return nil
}

func (w *Writer) batRoom() int64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.regions.bat.len()
}

// putSize changes the size, in the file and then for everybody.
func (w *Writer) putSize(size int64) error {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	w.mu.Lock()
	err := w.showLocked()
	at := w.regions.metadata.off + int64(w.items[itemDiskSize].offset)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if err := w.amend(func(a *amendment) error { return a.put(at, le.AppendUint64(nil, uint64(size))) }); err != nil {
		return fmt.Errorf("vhdx: virtual size: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.metadata.size = uint64(size)
	g := w.geometry.sized(size)
	w.geometry.size, w.geometry.blocks, w.geometry.entries = g.size, g.blocks, g.entries
	w.size.Store(size)
	return nil
}

// zeroTailLocked makes what the last block gets of a larger disk zeros: whatever
// stands behind the old end in its space, and whatever the parent holds there.
func (w *Writer) zeroTailLocked(to geometry, below int64) error {
	g := w.geometry
	b := g.blocks - 1
	in := g.used(b)
	n := to.used(b) - in
	i := g.payloadIndex(b)
	e, err := w.entryAt(i)
	if err == nil {
		err = g.checkPayload(i, e, w.reserved)
	}
	if err != nil || n == 0 {
		return err
	}
	switch {
	case e.present():
		tail := span{e.offset() + in, e.offset() + g.block}
		if err := w.zeroFile(tail, w.diskType() != ops.Fixed); err != nil {
			return fmt.Errorf("vhdx: zero the rest of the last block at %#x: %w", tail.off, err)
		}
		if e.state() != statePartial {
			return nil
		}
		bitmap, err := w.bitmapLocked(b)
		if err != nil {
			return err
		}
		return w.setBitsLocked(bitmap, b, in, n)
	case w.kind(e) == ops.Absent && below > g.size:
		return w.zeroPartLocked(b, i, e, in, n)
	}
	return nil
}

// addZeros makes the blocks past the end of a differencing disk zero blocks as far
// as its parent has bytes there.
func (w *Writer) addZeros(ctx context.Context, to geometry, below int64) error {
	if !to.hasParent {
		return nil
	}
	w.mu.RLock()
	b := w.geometry.blocks
	w.mu.RUnlock()
	for end := ceilDiv(below, to.block); b < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.roomForChange(); err != nil {
			return err
		}
		next := min(end, b+editSlice)
		if err := w.zeroEntries(to, b, next); err != nil {
			return err
		}
		b = next
	}
	return nil
}

// zeroEntries makes payload blocks [from, to), which have no entry, zero blocks.
func (w *Writer) zeroEntries(g geometry, from, to int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for b := from; b < to; b++ {
		if err := w.setEntryLocked(g.payloadIndex(b), newEntry(stateZero, 0)); err != nil {
			return err
		}
	}
	return nil
}

// addBlocks gives the blocks past the end of a fixed disk their space, really
// allocated on the host.
func (w *Writer) addBlocks(ctx context.Context, to geometry) error {
	w.mu.RLock()
	b := w.geometry.blocks
	w.mu.RUnlock()
	for b < to.blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.roomForChange(); err != nil {
			return err
		}
		n := min(to.blocks-b, max(1, allocateStep/to.block))
		if err := w.addRun(to, b, n); err != nil {
			return err
		}
		b += n
	}
	return nil
}

// addRun is addBlocks for n blocks from b on, which stand together.
func (w *Writer) addRun(g geometry, b, n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, err := w.takeLocked(n * g.block)
	if err != nil {
		return err
	}
	err = w.f.Allocate(t.off, t.len())
	if errors.Is(err, errors.ErrUnsupported) {
		err = w.zeroFile(t, false)
	}
	w.unsynced.Store(true)
	for ; err == nil && t.len() > 0; b++ {
		if err = w.setEntryLocked(g.payloadIndex(b), newEntry(stateFull, t.off)); err == nil {
			t.off += g.block
		}
	}
	if err != nil {
		w.dropLocked(t)
		return fmt.Errorf("vhdx: space for block %d: %w", b, err)
	}
	return nil
}
