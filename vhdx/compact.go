package vhdx

import (
	"context"
	"errors"
	"fmt"

	"vhdfs/ops"
)

// moveStep is how many bytes of blocks move between two flushes: only a flush
// makes the places free that they left.
const moveStep = 64 * mib

// Compact gives space back to the host, in this order:
//
//	the DataWriteGuid, if a block is free          no child takes zeros for its bytes
//	blocks of zeros become zero blocks; flush      their space is free
//	zeros within blocks become holes of the file   they read as before
//	bitmaps that no block needs are given up
//	blocks move to the lowest free space           the old place counts
//	flush: copies durable, then the entries        the new place counts, the old one
//	                                               is free
//	bitmaps move, the log is begun anew, the       see moveBitmaps, restartLog
//	file cut
//
// A guest's write waits for the change of one block at most, never for a copy but
// where it writes the same block again and again. A fixed disk is left as it is.
// Memory: three bits for each mebibyte of the file, and a mebibyte.
func (w *Writer) Compact(ctx context.Context, o ops.CompactOptions) (ops.CompactResult, error) {
	w.mu.RLock()
	size, poison, dirty := w.fileSize, w.poison, w.overlay != nil
	w.mu.RUnlock()
	c := &compaction{w: w, o: o, r: ops.CompactResult{Before: size, After: size}, b: make([]byte, copyChunk)}
	if poison != nil || w.diskType() == ops.Fixed {
		return c.r, poison
	}
	if dirty && !o.Dry {
		if err := w.begin(); err != nil {
			return c.r, err
		}
	}
	if err := c.survey(); err != nil {
		return c.r, err
	}
	if c.all = c.blocks; o.Move && !o.Dry {
		c.all *= 2
	}
	err := c.sweep(ctx)
	if o.Dry {
		if err == nil && o.Move {
			c.plan()
		}
		return c.r, err
	}
	if err == nil && o.Move {
		err = c.move(ctx)
	}
	if ctx.Err() != nil {
		err = errors.Join(err, w.Flush()) // what was done so far stays done
	}
	w.mu.RLock()
	c.r.After = w.fileSize
	w.mu.RUnlock()
	if err == nil && c.r.After == c.r.Before {
		err = w.sync("vhdx.cut") // nothing was cut: whoever left it that long may not have synced
	}
	if err == nil {
		c.step(c.all - c.done)
	}
	return c.r, err
}

// compaction is one run of Compact.
type compaction struct {
	w         *Writer
	o         ops.CompactOptions
	r         ops.CompactResult
	b         []byte    // for reading and copying
	blocks    int64     // payload blocks with space
	done, all int64     // blocks
	space     *spaceMap // what belongs to somebody, as far as it is known here
	payload   *spaceMap // where payload blocks start
	bitmaps   *spaceMap // where bitmap blocks are
	partial   int       // blocks of this chunk that need its bitmap, as far as the sweep came
}

// step tells of progress.
func (c *compaction) step(n int64) {
	c.done = min(c.done+n, c.all)
	if c.o.Progress != nil {
		c.o.Progress(c.done*c.w.geometry.block, c.all*c.w.geometry.block)
	}
}

// survey reads where everything is. Guests may change that at any time: it decides
// what is worth while, and never what is free.
func (c *compaction) survey() error {
	w := c.w
	w.mu.Lock()
	s, err := w.session, error(nil)
	if s == nil {
		s, err = w.surveyLocked(lookout{})
	}
	if err != nil {
		w.mu.Unlock()
		return err
	}
	c.space = s.space.clone()
	w.mu.Unlock()
	c.payload, c.bitmaps = &spaceMap{}, &spaceMap{}
	c.payload.grow(c.space.units * mib)
	c.bitmaps.grow(c.space.units * mib)
	c.blocks = 0
	return w.eachBlock(func(i int64, e entry) error {
		switch at := (span{e.offset(), e.offset() + mib}); {
		case !w.geometry.isBitmap(i):
			c.payload.claim(at)
			c.blocks++
		case w.geometry.hasParent:
			c.bitmaps.claim(at)
		}
		return nil
	})
}

// eachBlock calls f, without Disk.mu, with the entries that name space, in order.
func (w *Writer) eachBlock(f func(i int64, e entry) error) error {
	for i := int64(0); ; {
		w.mu.RLock()
		at, e, err := w.nextBlockLocked(i)
		w.mu.RUnlock()
		if err != nil || at == i && e == 0 {
			return err
		}
		if i = at; e == 0 {
			continue
		}
		if err := f(i, e); err != nil {
			return err
		}
		i++
	}
}

// nextBlockLocked is the first entry from index i on that names space, or no
// entry and where to go on: at i itself at the end.
func (w *Writer) nextBlockLocked(i int64) (at int64, e entry, err error) {
	g := w.geometry
	if i >= g.entries {
		return i, 0, nil
	}
	if n := w.holeEntries(i, g.entries); n > 0 {
		return i + n, 0, nil
	}
	at = min(i+editSlice, g.entries)
	err = w.scanBAT(i, at, nil, func(i int64, x entry) bool {
		if x.offset() == 0 || !g.inUse(i) || g.isBitmap(i) && !x.present() {
			return true
		}
		at, e = i, x
		return false
	})
	return at, e, err
}

// sweep drops blocks of zeros, punches zeros within others, and gives up bitmaps
// that are not needed.
func (c *compaction) sweep(ctx context.Context) error {
	err := c.w.eachBlock(func(i int64, e entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.w.geometry.isBitmap(i) {
			return c.bitmap(i, e)
		}
		if e.state() == statePartial {
			c.partial++
		}
		if err := c.block(ctx, i, e); err != nil {
			return fmt.Errorf("vhdx: compact block %d: %w", c.w.geometry.payloadOf(i), err)
		}
		c.step(1)
		return nil
	})
	if err != nil || c.o.Dry {
		return err
	}
	return c.w.Flush() // what was dropped is free only then
}

// block drops or trims one block. A guest that writes it meanwhile wins.
func (c *compaction) block(ctx context.Context, i int64, e entry) error {
	w := c.w
	b := w.geometry.payloadOf(i)
	if !e.present() { // kept space of a block that reads as zeros
		if c.o.Scan || c.o.Move {
			return c.drop(i, e, looked{zero: true})
		}
		return nil
	}
	if !c.o.Scan && !c.o.Trim {
		return nil
	}
	w.watchBlock(b)
	defer w.watchBlock(noBlock)
	l, err := c.look(ctx, b)
	switch {
	case err != nil:
		return err
	case (l.zero || l.free) && c.o.Scan:
		return c.drop(i, e, l)
	case c.o.Trim && len(l.zeros) > 0:
		return c.trim(i, e, l.zeros)
	}
	return nil
}

// drop makes a block that reads as zeros, or that nobody wants, one without space:
// absent where its parents are zeros, too. Whether it is wanted is asked again when
// no guest can reach it.
func (c *compaction) drop(i int64, e entry, l looked) error {
	w := c.w
	if c.o.Dry {
		if e.state() == statePartial {
			c.partial--
		}
		c.r.Dropped++
		c.space.release(span{e.offset(), e.offset() + w.geometry.block})
		c.payload.release(span{e.offset(), e.offset() + mib})
		return nil
	}
	if err := w.roomForChange(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.beginLocked(ops.GUID{}); err != nil {
		return err
	}
	if now, err := w.entryAt(i); err != nil || now != e || w.touchedLocked() {
		return err
	}
	if !e.present() && !w.session.anchors {
		return nil // what it kept may be another's
	}
	if l.free {
		if b := w.geometry.payloadOf(i); !c.o.Free(b*w.geometry.block, w.geometry.used(b)) {
			return nil
		}
		if err := w.showLocked(); err != nil {
			return err
		}
	}
	to := newEntry(stateZero, 0)
	if l.absent {
		to = newEntry(stateNotPresent, 0)
	}
	if err := w.setEntryLocked(i, to); err != nil {
		return err
	}
	w.session.released = append(w.session.released, span{e.offset(), e.offset() + w.geometry.block})
	c.r.Dropped++
	return nil
}

// trim gives back zeros that the host stores.
func (c *compaction) trim(i int64, e entry, zeros []span) error {
	w := c.w
	if c.o.Dry {
		for _, z := range zeros {
			c.r.Trimmed += z.len()
		}
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.beginLocked(ops.GUID{}); err != nil {
		return err
	}
	if now, err := w.entryAt(i); err != nil || now != e || w.touchedLocked() {
		return err
	}
	for _, z := range zeros {
		err := w.f.Punch(z.off, z.len())
		w.unsynced.Store(true)
		if errors.Is(err, errors.ErrUnsupported) {
			c.o.Trim = false
			return nil
		}
		if err != nil {
			return fmt.Errorf("trim %d bytes at %#x: %w", z.len(), z.off, err)
		}
		c.r.Trimmed += z.len()
	}
	return nil
}

// bitmap gives a sector bitmap up whose chunk has no block that needs it.
func (c *compaction) bitmap(i int64, e entry) error {
	w, g := c.w, c.w.geometry
	if !g.hasParent || !c.o.Scan && !c.o.Move {
		return nil
	}
	if !c.o.Dry {
		if err := w.roomForChange(); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	needed := c.o.Dry && c.partial > 0 // what a guest changes meanwhile is not planned
	c.partial = 0
	var err error
	if !c.o.Dry {
		err = w.scanBAT(i-g.ratio, i, nil, func(_ int64, x entry) bool {
			needed = x.state() == statePartial
			return !needed
		})
	}
	if now, nerr := w.entryAt(i); err != nil || nerr != nil || needed || now != e {
		return errors.Join(err, nerr)
	}
	at := span{e.offset(), e.offset() + bitmapBlock}
	if c.o.Dry {
		c.space.release(at)
		c.bitmaps.release(at)
		return nil
	}
	if err := w.beginLocked(ops.GUID{}); err != nil {
		return err
	}
	if err := w.setEntryLocked(i, 0); err != nil {
		return err
	}
	w.retireLocked(at)
	return nil
}

var _ ops.Compacter = (*Writer)(nil)
