package vhdx

import (
	"context"
	"fmt"
	"io"

	"vhdfs/ops"
)

const (
	copyChunk = mib // bytes that are copied at once
	// fewPages is how many pages of a BAT are copied again while flushes wait.
	fewPages  = 256
	copyTurns = 8 // turns after which more than that are copied so
)

// markedPages are pages of a part of the file, 16 KiB of memory for the largest
// BAT.
type markedPages struct {
	of    span
	words []uint64
	n     int
}

func newMarkedPages(of span) *markedPages {
	return &markedPages{of: of, words: make([]uint64, ceilDiv(of.len()/pageSize, 64))}
}

// mark notes the page at off, if it is one of them.
func (m *markedPages) mark(off int64) {
	if !m.of.contains(off) {
		return
	}
	i := (off - m.of.off) / pageSize
	if m.words[i/64]&(1<<(i%64)) == 0 {
		m.words[i/64] |= 1 << (i % 64)
		m.n++
	}
}

// each calls f with the place of each page from the start of the part.
func (m *markedPages) each(f func(at int64) error) error {
	for i := range int64(len(m.words)) * 64 {
		if m.words[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		if err := f(i * pageSize); err != nil {
			return err
		}
	}
	return nil
}

// moveBAT gives the BAT a region of length bytes elsewhere, while guests go on:
//
//	the BAT copied to free space; sync    nothing names it
//	what changed meanwhile again; sync    flushes wait from here on
//	one log entry with both region tables the new region counts
//	another log                           the old region is free
//
// Entries past the end of the disk are not copied: they are zeros in the new one.
func (w *Writer) moveBAT(ctx context.Context, length int64) error {
	w.flushing.Lock()
	w.mu.Lock()
	old, used := w.regions.bat, roundUp(w.geometry.entries*entryBytes, pageSize)
	to, err := w.takeLocked(length)
	w.mu.Unlock()
	m := newMarkedPages(span{old.off, old.off + used})
	if err == nil {
		w.session.moving = m
	}
	w.flushing.Unlock()
	if err != nil {
		return fmt.Errorf("vhdx: room for a block table of %d bytes: %w", length, err)
	}
	err = w.copyBAT(ctx, m.of, to)
	for turn := 0; err == nil; turn++ {
		w.flushing.Lock()
		if m = w.session.moving; m.n <= fewPages || turn == copyTurns {
			return w.finishBAT(to)
		}
		w.session.moving = newMarkedPages(m.of)
		w.flushing.Unlock()
		err = m.each(func(at int64) error { return w.copyPage(m.of.off+at, to.off+at) })
	}
	w.flushing.Lock()
	defer w.flushing.Unlock()
	w.session.moving = nil
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dropLocked(to)
	return fmt.Errorf("vhdx: copy the block table: %w", err)
}

// finishBAT lets the BAT at to count, and gives back flushing, which its caller took.
func (w *Writer) finishBAT(to span) error {
	defer w.flushing.Unlock()
	defer func() { w.session.moving = nil }()
	size, err := w.settle()
	if m := w.session.moving; err == nil && m.n > 0 {
		err = m.each(func(at int64) error { return w.copyPage(m.of.off+at, to.off+at) })
		if err == nil {
			err = w.sync("vhdx.bat.copy")
		}
	}
	if err == nil {
		err = w.amendSettled(size, func(a *amendment) error { return w.putRegions(a, to) })
	}
	w.mu.Lock()
	if err != nil {
		// As much of the entry may be in the log as makes it count.
		w.session.retired = append(w.session.retired, to)
		w.mu.Unlock()
		return fmt.Errorf("vhdx: move the block table: %w", err)
	}
	old := w.regions.bat
	w.moveTableLocked(old, to)
	w.regions.bat = to
	w.reserveLocked()
	for _, c := range w.checks {
		c.space.grow(w.fileSize)
		c.space.release(old)
		c.space.claim(to)
	}
	w.mendedLocked(regionNames...)
	w.retireLocked(old)
	w.mu.Unlock()
	return w.restartLog(false)
}

// moveTableLocked lets the pages of a table that wait to be logged go to where the
// table is now.
func (w *Writer) moveTableLocked(from, to span) {
	var pages []int64
	for page := range w.table.dirty {
		if from.contains(page * pageSize) {
			pages = append(pages, page)
		}
	}
	for _, page := range pages {
		now := page + (to.off-from.off)/pageSize
		w.table.dirty[now], w.session.dirty[now] = w.table.dirty[page], w.session.dirty[page]
		delete(w.table.dirty, page)
		delete(w.session.dirty, page)
	}
}

// copyBAT copies a part of the file to where there are zeros, without its holes.
func (w *Writer) copyBAT(ctx context.Context, from, to span) error {
	b := make([]byte, copyChunk)
	for at := from.off; at < from.end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, hole, err := w.f.NextData(at)
		switch {
		case err == io.EOF || err == nil && data >= from.end:
			return nil
		case err != nil:
			data, hole = at, from.end // only a short cut is lost
		}
		at = max(at, data/pageSize*pageSize)
		b := b[:min(copyChunk, from.end-at, roundUp(hole, pageSize)-at)]
		if err := readFull(w.f, b, at, "block table"); err != nil {
			return err
		}
		_, err = w.f.WriteAt(b, to.off+at-from.off)
		w.unsynced.Store(true)
		if err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

func (w *Writer) copyPage(from, to int64) error {
	b := make([]byte, pageSize)
	if err := readFull(w.f, b, from, "block table"); err != nil {
		return err
	}
	_, err := w.f.WriteAt(b, to)
	w.unsynced.Store(true)
	return err
}

// putRegions puts both region tables with the BAT at to; a copy that was not to be
// believed is made anew with that.
func (w *Writer) putRegions(a *amendment, to span) error {
	b := make([]byte, regionTableSize)
	if err := readFull(w.f, b, regionOffset[w.regions.copy], "region table"); err != nil {
		return err
	}
	for i := range int(le.Uint32(b[8:])) {
		if e := b[16+regionEntry*i:]; ops.GUIDFromLE(e) == regionBAT {
			le.PutUint64(e[16:], uint64(to.off))
			le.PutUint32(e[24:], uint32(to.len()))
		}
	}
	le.PutUint32(b[4:], checksum(b))
	for _, off := range regionOffset {
		if err := a.put(off, b); err != nil {
			return err
		}
	}
	return nil
}
