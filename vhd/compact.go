package vhd

import (
	"context"
	"errors"

	"vhdfs/ops"
)

var (
	_ ops.Compacter = (*writer)(nil)
	_ ops.Compacter = (*fixedWriter)(nil)
)

// moveBatch is how many bytes of blocks move before they are made durable.
const moveBatch = 64 << 20

// compaction is one run of [ops.Compacter].
type compaction struct {
	w       *writer
	o       ops.CompactOptions
	res     ops.CompactResult
	gone    blockSet // what a dry run would drop
	noPunch bool     // the host cannot give space back
	maxGaps int      // that one pass over the table collects

	done, all int64 // for Progress
}

// Compact has nothing to do: a fixed disk keeps its space.
func (w *fixedWriter) Compact(context.Context, ops.CompactOptions) (ops.CompactResult, error) {
	st, err := w.file.Stat()
	return ops.CompactResult{Before: st.Size, After: st.Size}, err
}

// Compact gives space back; see [ops.Compacter]. The order:
//
//	blocks of zeros: entries unused; flush       until then they are the blocks' places
//	header and paths below the blocks            as in replaceHeaderLocked
//	the last blocks to free places; flush        as in moveBlockLocked
//	footer behind the last block; sync; cut; sync
//
// A crash leaves each block where it was or where it went, or gone, and at worst
// space that nothing uses. What a guest writes meanwhile goes where its block is by
// then.
func (w *writer) Compact(ctx context.Context, o ops.CompactOptions) (ops.CompactResult, error) {
	st, err := w.file.Stat()
	if err != nil {
		return ops.CompactResult{}, err
	}
	c := &compaction{w: w, o: o, maxGaps: maxGaps}
	c.res.Before, c.res.After = st.Size, st.Size
	if o.Dry {
		err := c.plan(ctx)
		return c.res, err
	}
	err = c.run(ctx)
	if st, serr := w.file.Stat(); serr == nil {
		c.res.After = st.Size
	} else {
		err = errors.Join(err, serr)
	}
	return c.res, err
}

// run compacts. When ctx ends, what was done by then is made durable, and the file
// is cut as far as that goes.
func (c *compaction) run(ctx context.Context) error {
	if err := c.start(); err != nil {
		return err
	}
	err := c.look(ctx)
	if err == nil {
		err = c.w.Flush()
	}
	if c.o.Move && err == nil {
		err = c.move(ctx)
	}
	if err != nil && (ctx.Err() == nil || !errors.Is(err, ctx.Err())) {
		return errors.Join(err, c.flushAfter())
	}
	if c.o.Move {
		if cerr := c.cut(); cerr != nil {
			return errors.Join(err, cerr)
		}
	}
	if c.o.Trim && err == nil {
		err = c.trimGaps(ctx)
	}
	return errors.Join(err, c.flushAfter())
}

// flushAfter makes durable what was done, unless the disk is poisoned, which
// somebody was told.
func (c *compaction) flushAfter() error {
	if err := c.w.Flush(); err != nil && !errors.Is(err, ops.ErrPoisoned) {
		return err
	}
	return nil
}

// start begins the session and counts the blocks.
func (c *compaction) start() error {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.beginLocked(); err != nil {
		return err
	}
	if err := w.scanOnceLocked(); err != nil {
		return err
	}
	c.count(int64(w.head.entries) - w.session.free)
	return nil
}

// count sets how much there is to do: each block is passed once by each phase.
func (c *compaction) count(blocks int64) {
	if c.o.Scan || c.o.Trim {
		c.all += blocks * c.w.stride()
	}
	if c.o.Move {
		c.all += blocks * c.w.stride()
	}
}

// passed tells Progress of one more block. No lock is held.
func (c *compaction) passed() {
	c.done += c.w.stride()
	c.all = max(c.all, c.done) // guests add blocks
	if c.o.Progress != nil {
		c.o.Progress(c.done, c.all)
	}
}

// allocated calls visit for each block that is allocated, without a lock, until ctx
// ends.
func (c *compaction) allocated(ctx context.Context, visit func(b int64) error) error {
	w := c.w
	for b := int64(0); ; b++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.mu.RLock()
		n, err := w.unusedRunLocked(b, int64(w.head.entries))
		end := b+n >= int64(w.head.entries)
		w.mu.RUnlock()
		if err != nil || end {
			return err
		}
		if b += n; n == maxUnusedRun {
			b-- // more of them may follow
			continue
		}
		if err := visit(b); err != nil {
			return err
		}
	}
}

// cut moves the footer behind the last block and cuts the file there. The copy of
// the footer further back serves until the file has its new length.
func (c *compaction) cut() error {
	w := c.w
	w.flushes.Lock()
	defer w.flushes.Unlock()
	if err := w.settle(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session.poisoned {
		return errPoisoned
	}
	w.session.floor = 0
	if cut, err := w.cutLocked(); err != nil || !cut {
		return err
	}
	return w.syncLocked("vhd.cut")
}
