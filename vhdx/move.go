package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
)

const (
	// moveTries is how often a block is copied while a guest changes it; after that
	// the guest waits.
	moveTries = 3
	// bitmapsAtOnce is how many sector bitmaps move under one hold of Disk.mu.
	bitmapsAtOnce = 8
)

// plan lets blocks, highest first, take the lowest space that holds them, on
// paper. It answers from where on payload blocks and bitmaps move.
func (c *compaction) plan() (payload, bitmaps int64) {
	payload, n := c.space.fold(c.payload, c.w.geometry.block/mib)
	bitmaps, k := c.space.fold(c.bitmaps, 1)
	if c.o.Dry {
		c.r.Moved += n + k
		c.r.After = min(c.r.After, c.space.end())
	}
	return payload * mib, bitmaps * mib
}

// move moves blocks and cuts the file.
func (c *compaction) move(ctx context.Context) error {
	if err := c.freeRetired(); err != nil {
		return err
	}
	if err := c.survey(); err != nil { // after what was dropped
		return err
	}
	payload, bitmaps := c.plan()
	since := int64(0)
	err := c.w.eachBlock(func(i int64, e entry) error {
		if c.w.geometry.isBitmap(i) {
			return nil
		}
		defer c.step(1)
		if err := ctx.Err(); err != nil || e.offset() < payload || !e.present() {
			return err
		}
		if err := c.moveBlock(ctx, i, e); err != nil {
			return fmt.Errorf("vhdx: move block %d: %w", c.w.geometry.payloadOf(i), err)
		}
		if since += c.w.geometry.block; since < moveStep {
			return nil
		}
		since = 0
		return c.w.Flush()
	})
	if err == nil {
		err = c.moveBitmaps(ctx, bitmaps)
	}
	if err != nil {
		return err
	}
	return c.cut()
}

// freeRetired gives up the places of bitmaps that nobody needed.
func (c *compaction) freeRetired() error {
	w := c.w
	w.mu.RLock()
	none := w.session == nil || len(w.session.retired) == 0
	w.mu.RUnlock()
	if none {
		return nil
	}
	w.flushing.Lock()
	defer w.flushing.Unlock()
	return w.restartLog(false)
}

// cut makes everything durable and gives the end of the file back, if there is
// anything to do.
func (c *compaction) cut() error {
	w := c.w
	w.mu.RLock()
	idle := w.session == nil && c.space.end() >= w.fileSize
	w.mu.RUnlock()
	if idle {
		return nil
	}
	if err := w.begin(); err != nil {
		return err
	}
	w.flushing.Lock()
	defer w.flushing.Unlock()
	return w.restartLog(true)
}

// lowerLocked is free space of n bytes, reading as zeros, that ends before limit.
// No bytes: there is none.
func (w *Writer) lowerLocked(n, limit int64) (span, error) {
	s := w.session
	at, _ := s.space.find(s.search, n/mib)
	if at < 0 || at*mib+n > limit {
		return span{}, nil
	}
	t := span{at * mib, at*mib + n}
	if err := w.cleanLocked(t); err != nil {
		return span{}, err
	}
	s.space.claim(t)
	return t, nil
}

// moveBlock moves a payload block to lower space if there is some.
func (c *compaction) moveBlock(ctx context.Context, i int64, e entry) error {
	w := c.w
	if err := w.begin(); err != nil {
		return err
	}
	if err := w.roomForChange(); err != nil {
		return err
	}
	w.watchBlock(w.geometry.payloadOf(i))
	defer w.watchBlock(noBlock)
	w.mu.Lock()
	t, err := w.lowerLocked(w.geometry.block, e.offset())
	w.mu.Unlock()
	if err != nil || t.len() == 0 {
		return err
	}
	for try := 1; ; try++ {
		copied := c.copySpan(ctx, e.offset(), t)
		if done, err := c.land(ctx, i, e, t, try == moveTries, copied); done || err != nil {
			return err
		}
	}
}

// land lets a block that was copied to t count there, unless a guest changed it
// meanwhile: then it has to be copied again, and is, with last, before anybody can
// change it. The entry changes in memory: the next flush makes it durable, after
// the copy.
func (c *compaction) land(ctx context.Context, i int64, e entry, t span, last bool, copied error) (done bool, err error) {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	now, err := w.entryAt(i)
	err = errors.Join(copied, err)
	if err == nil && now == e && w.watch.touched.Swap(false) {
		err = w.zeroFile(t, true) // what was copied may be a hole now
		if err == nil && !last {
			return false, nil
		}
		if err == nil {
			err = c.copySpan(ctx, e.offset(), t)
		}
	}
	if err == nil && now == e {
		err = w.setEntryLocked(i, newEntry(e.state(), t.off))
	}
	if err != nil || now != e {
		w.dropLocked(t)
		return true, err
	}
	w.session.released = append(w.session.released, span{e.offset(), e.offset() + t.len()})
	c.r.Moved++
	return true, nil
}

// copySpan copies a part of the file to t, which reads as zeros, without its holes.
func (c *compaction) copySpan(ctx context.Context, from int64, t span) error {
	w := c.w
	defer w.unsynced.Store(true)
	for at, end := from, from+t.len(); at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, hole, err := w.f.NextData(at)
		switch {
		case err == io.EOF || err == nil && data >= end:
			return nil
		case err != nil:
			data, hole = at, end // only a short cut is lost
		}
		at = max(at, data)
		n := min(copyChunk, min(hole, end)-at)
		if err := readFull(w.f, c.b[:n], at, "block"); err != nil {
			return err
		}
		if _, err := w.f.WriteAt(c.b[:n], t.off+at-from); err != nil {
			return fmt.Errorf("copy to %#x: %w", t.off+at-from, err)
		}
		at += n
	}
	return nil
}

// moveBitmaps moves sector bitmaps that lie at from or behind it, some at once:
//
//	everything flushed and in place; copies     nothing names them
//	entries and waiting pages go over           in memory
//	the next flush                              copies durable, then the entries
//	another log                                 the old places are free
func (c *compaction) moveBitmaps(ctx context.Context, from int64) error {
	w := c.w
	var batch []int64
	err := w.eachBlock(func(i int64, e entry) error {
		if !w.geometry.isBitmap(i) || !w.geometry.hasParent || e.offset() < from {
			return ctx.Err()
		}
		if batch = append(batch, i); len(batch) < bitmapsAtOnce {
			return ctx.Err()
		}
		list := batch
		batch = nil
		return c.moveBatch(ctx, list)
	})
	if err == nil && len(batch) > 0 {
		err = c.moveBatch(ctx, batch)
	}
	return err
}

func (c *compaction) moveBatch(ctx context.Context, list []int64) error {
	w := c.w
	if err := w.begin(); err != nil {
		return err
	}
	w.flushing.Lock()
	defer w.flushing.Unlock()
	if _, err := w.settle(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range list {
		if err := c.moveBitmapLocked(ctx, i); err != nil {
			return fmt.Errorf("vhdx: move sector bitmap, bat entry %d: %w", i, err)
		}
	}
	return nil
}

// moveBitmapLocked moves a sector bitmap whose file holds all that was flushed.
func (c *compaction) moveBitmapLocked(ctx context.Context, i int64) error {
	w := c.w
	e, err := w.entryAt(i)
	if err != nil || !e.present() {
		return err
	}
	from := span{e.offset(), e.offset() + bitmapBlock}
	t, err := w.lowerLocked(bitmapBlock, from.off)
	if err != nil || t.len() == 0 {
		return err
	}
	err = c.copySpan(ctx, from.off, t)
	if err == nil {
		err = w.setEntryLocked(i, newEntry(stateFull, t.off))
	}
	if err != nil {
		w.dropLocked(t)
		return err
	}
	w.moveTableLocked(from, t)
	w.retireLocked(from)
	c.r.Moved++
	return nil
}
