package vhd

import (
	"context"
	"errors"

	"vhdfs/ops"
)

// maxGaps bounds the gaps that one pass over the table collects: 1 MiB of them.
const maxGaps = 64 << 10

// errEnough ends a scan that has found what it was for.
var errEnough = errors.New("enough")

// slots is where blocks fit into a gap: the place of the first and how many.
func (d *Disk) slots(g gap) (first, n int64) {
	first = g.off
	if d.mu.info.Aligned {
		if g.tables {
			first = roundUp(first, blockAlignment) // Windows keeps the tables in units of their own
		}
		first = roundUp(first+d.mapBytes, blockAlignment) - d.mapBytes
	}
	if room := g.end - first - d.stride(); room >= 0 {
		n = room/d.slotStep() + 1
	}
	return first, n
}

// slotStep is from one block to the next in the tightest layout.
func (d *Disk) slotStep() int64 {
	if d.mu.info.Aligned {
		return roundUp(d.stride(), blockAlignment)
	}
	return d.stride()
}

// movePlan says that the blocks from byte from on move to the free places before
// it, and where the last block or structure ends then.
type movePlan struct {
	blocks    int64
	from, end int64
}

// planLocked finds where the places before a block are enough for all blocks from
// that one on. n is the number of blocks, those that gone says are left out.
func (d *Disk) planLocked(ctx context.Context, n int64, gone blockSet) (movePlan, error) {
	var p movePlan
	var places, before, passed int64 // in all, before the last gap; blocks passed
	var last gap
	res, err := d.scanLocked(ctx, scanVisit{
		bad: failOn, gone: gone,
		gap: func(g gap) error {
			_, k := d.slots(g)
			before, last = places, g
			places += k
			return nil
		},
		block: func(_, at int64) error {
			if left := n - passed; places < left {
				passed++
				return nil
			}
			p = movePlan{blocks: n - passed, from: at, end: last.off}
			if last.end != at {
				p.end = at // no gap right before this block
			}
			if k := p.blocks - before; k > 0 {
				first, _ := d.slots(last)
				p.end = max(p.end, first+(k-1)*d.slotStep()+d.stride())
			}
			return errEnough
		},
	})
	if err == nil { // no block moves
		return movePlan{end: res.end}, nil
	}
	if !errors.Is(err, errEnough) {
		return p, err
	}
	for _, s := range d.structures() {
		p.end = max(p.end, s.end())
	}
	return p, nil
}

// plan is a dry run.
func (c *compaction) plan(ctx context.Context) error {
	w := c.w
	w.mu.RLock()
	res, err := w.scanLocked(ctx, scanVisit{bad: failOn})
	w.mu.RUnlock()
	if err != nil {
		return err
	}
	c.count(res.allocated)
	c.gone = make(blockSet, (w.entries()+63)/64)
	if err := c.look(ctx); err != nil || !c.o.Move {
		return err
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	p, err := w.planLocked(ctx, res.allocated-c.res.Dropped, c.gone)
	if err != nil {
		return err
	}
	c.res.Moved = p.blocks
	if w.mu.info.Aligned {
		p.end = roundUp(p.end, blockAlignment)
	}
	c.res.After = min(c.res.Before, w.footerAt(p.end)+footerSize)
	return nil
}

// move moves the last blocks to free places until no more fit. Guests may add blocks
// behind them, which go in the next round.
func (c *compaction) move(ctx context.Context) error {
	if err := c.settleStructures(); err != nil {
		return err
	}
	for {
		p, err := c.nextPlan(ctx)
		if err != nil || p.blocks == 0 {
			return err
		}
		moved := c.res.Moved
		if err := c.moveAll(ctx, p.from); err != nil {
			return err
		}
		if err := c.w.Flush(); err != nil || moved == c.res.Moved {
			return err
		}
	}
}

func (c *compaction) nextPlan(ctx context.Context) (movePlan, error) {
	w := c.w
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.planLocked(ctx, int64(w.head.entries)-w.session.free, nil)
}

// moveAll moves the blocks from byte from on to the free places before it, lowest
// first: the table's order becomes that of the file.
func (c *compaction) moveAll(ctx context.Context, from int64) error {
	places := &places{c: c, end: from}
	var batch int64
	return c.allocated(ctx, func(b int64) error {
		moved, err := c.moveOne(ctx, b, places)
		if moved {
			c.res.Moved++
			batch += c.w.stride()
		}
		if err == nil && (batch >= moveBatch || c.full()) {
			batch, err = 0, c.w.Flush()
		}
		c.passed()
		return err
	})
}

func (c *compaction) moveOne(ctx context.Context, b int64, places *places) (bool, error) {
	w := c.w
	w.flushes.Lock()
	defer w.flushes.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session.poisoned {
		return false, errPoisoned
	}
	at, ok, err := w.blockLocked(b)
	if err != nil || !ok || at < places.end {
		return false, err
	}
	to, ok, err := places.nextLocked(ctx)
	if err != nil || !ok {
		return false, err
	}
	return true, w.moveBlockLocked(b, at, to)
}

// places gives out the free places before end, lowest first. Nothing but the
// compaction fills any, and it frees none until a flush has answered.
type places struct {
	c    *compaction
	end  int64
	from int64 // gaps before it were collected
	gaps []gap
	all  bool // there are no more
}

func (p *places) nextLocked(ctx context.Context) (at int64, ok bool, err error) {
	for {
		for len(p.gaps) > 0 {
			g := p.gaps[0]
			first, n := p.c.w.slots(g)
			if n > 0 {
				p.gaps[0] = gap{off: first + p.c.w.stride(), end: g.end}
				return first, true, nil
			}
			p.gaps = p.gaps[1:]
		}
		if p.all {
			return 0, false, nil
		}
		if err := p.collectLocked(ctx); err != nil {
			return 0, false, err
		}
	}
}

func (p *places) collectLocked(ctx context.Context) error {
	from := p.from
	_, err := p.c.w.scanLocked(ctx, scanVisit{bad: failOn, gap: func(g gap) error {
		switch {
		case g.off < from:
			return nil
		case g.off >= p.end || len(p.gaps) == p.c.maxGaps:
			return errEnough
		}
		g.end = min(g.end, p.end)
		p.gaps = append(p.gaps, g)
		p.from = g.end
		return nil
	}})
	p.all = len(p.gaps) < p.c.maxGaps
	if errors.Is(err, errEnough) {
		err = nil
	}
	return err
}

// settleStructures brings the header home, and parent paths that stand behind
// blocks to a gap before them: blocks can move below those, and the file be cut.
func (c *compaction) settleStructures() error {
	w := c.w
	w.flushes.Lock()
	defer w.flushes.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session.poisoned {
		return errPoisoned
	}
	if w.foot.dataOffset != newHeaderOffset {
		free, err := w.freeLocked(newHeaderOffset, headerSize)
		if err == nil && free {
			err = w.moveHeaderLocked(newHeaderOffset, w.head, w.foot)
		}
		if err != nil {
			return err
		}
	}
	return w.lowerPathsLocked()
}

// lowerPathsLocked moves the parent's paths, as they are, before the first block
// that they follow, if there is room.
func (w *writer) lowerPathsLocked() error {
	var n, highest int64
	for _, l := range w.head.locators {
		if l.code != 0 && l.validate(w.lay) == nil {
			n += roundUp(int64(l.length), sectorSize)
			highest = max(highest, int64(l.offset))
		}
	}
	first, err := w.firstBlockLocked()
	if err != nil || n == 0 || highest < first {
		return err
	}
	at, err := w.gapLocked(n+headerSize, 0)
	if err != nil || at < 0 || at+n+headerSize > highest {
		return err
	}
	raw := w.head.raw
	to := at
	for i, l := range w.head.locators {
		if l.code == 0 || l.validate(w.lay) != nil {
			continue
		}
		space := roundUp(int64(l.length), sectorSize)
		if err := copyPath(w.file, to, l); err != nil {
			return err
		}
		locator{l.code, uint32(space), l.length, uint64(to)}.encode(raw[576+i*locatorSize:])
		to += space
	}
	h, err := headerOf(raw[:])
	if err != nil {
		return err
	}
	return w.replaceHeaderLocked(h, w.foot, to)
}

// copyPath copies the data of a locator to byte to, padded to whole sectors.
func copyPath(f ops.File, to int64, l locator) error {
	b := make([]byte, roundUp(int64(l.length), sectorSize))
	if err := readFull(f, b[:l.length], int64(l.offset), "parent locator "+l.name()); err != nil {
		return err
	}
	_, err := f.WriteAt(b, to)
	return err
}

// firstBlockLocked is where the first block of the file is, its end without any.
func (w *writer) firstBlockLocked() (int64, error) {
	first := w.lay.end
	_, err := w.scanLocked(context.Background(), scanVisit{bad: failOn, block: func(_, at int64) error {
		first = at
		return errEnough
	}})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return first, err
}
