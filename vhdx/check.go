package vhdx

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"vhdfs/ops"
)

// checkEvery is how many BAT entries are looked at between two looks at the
// context, and by a check under one hold of Disk.mu.
const checkEvery = 1 << 16

// checker streams the anomalies of one disk's BAT: first of blocks that have
// content, then of space that others kept, then who shares space with whom.
type checker struct {
	d *Disk

	// Guarded by Disk.mu.
	space   *spaceMap
	seen    int64 // BAT index below which blocks with content are in space
	kept    int64 // below which space that others kept is, too
	named   int64 // below which nobody else has what is in shared
	keeps   bool  // some block without content names space
	present int64 // payload blocks with content
	shared  []sharing
	more    int64         // blocks that share space and found no room in shared
	odd     int64         // the like of blocks that only kept theirs
	told    []ops.Anomaly // to be reported after this hold
}

// sharing is space that something else has, too: nobody knows yet what.
type sharing struct {
	i  int64 // BAT index
	at span
}

func (x sharing) compare(off int64) int { return cmp.Compare(x.at.off, off) }

// Check reports what is wrong in the BAT and with the space of the file, beyond
// what opening found. It holds Disk.mu for a slice of the BAT at a time, and
// follows what guests change meanwhile. report is called without a lock. Of blocks
// that share space a thousand are named, with whom they share it, the others counted.
// Memory: a bit for each mebibyte of the file, and a thousand anomalies.
func (d *Disk) Check(ctx context.Context, report func(ops.Anomaly)) error {
	c := &checker{d: d}
	d.mu.Lock()
	c.space = newSpaceMap(d.fileSize)
	c.space.claim(span{0, mib})
	for _, s := range d.reserved {
		c.space.claim(s)
	}
	d.checks = append(d.checks, c)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.checks = slices.DeleteFunc(d.checks, func(o *checker) bool { return o == c })
	}()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		told, done, err := c.slice()
		for _, a := range told {
			report(a)
		}
		if err != nil || done {
			return err
		}
	}
}

// CheckTable is all of [Disk.Check], which reads no content.
func (d *Disk) CheckTable(ctx context.Context, report func(ops.Anomaly)) error {
	return d.Check(ctx, report)
}

// slice does a part of what is left to do.
func (c *checker) slice() (told []ops.Anomaly, done bool, err error) {
	c.d.mu.RLock()
	defer c.d.mu.RUnlock()
	switch end := c.d.geometry.entries; {
	case c.seen < end:
		err = c.scan(&c.seen, c.entry)
	case c.keeps && c.kept < end:
		err = c.scan(&c.kept, c.keep)
	case len(c.shared) > 0 && c.named < end:
		err = c.scan(&c.named, c.name)
	default: // nobody has what is left in shared any more
		done = true
		c.sum()
	}
	told, c.told = c.told, nil
	return told, done, err
}

// scan lets look see the entries from *at on, as many as one hold is good for.
func (c *checker) scan(at *int64, look func(i int64, e entry)) error {
	end := c.d.geometry.entries
	if n := c.d.holeEntries(*at, end); n > 0 {
		*at += n
		return nil
	}
	return c.d.scanPages(*at, min(*at+checkEvery, end), 0, nil, func(i int64, e entry) bool {
		if *at = i + 1; e != 0 {
			look(i, e)
		}
		return len(c.told) < ops.MaxFindings
	})
}

func (c *checker) found(name string, s ops.Severity, i int64, format string, args ...any) {
	c.told = append(c.told, ops.Anomaly{
		Name: name, Severity: s, Where: fmt.Sprintf("bat entry %d", i), Text: fmt.Sprintf(format, args...),
	})
}

// entry looks at what an entry says of itself, and takes the space of its content.
func (c *checker) entry(i int64, e entry) {
	g := c.d.geometry
	if g.isBitmap(i) {
		c.bitmap(i, e)
		return
	}
	if e.present() {
		c.present++
	}
	if err := g.checkPayload(i, e, c.d.reserved); err != nil {
		c.found("vhdx.bat.invalid", ops.Broken, i, "%v", err)
		return
	}
	b := g.payloadOf(i)
	if e.state() == statePartial {
		n := g.bitmapIndex(b / g.ratio)
		m, err := c.d.entryAt(n)
		if err == nil {
			err = g.checkBitmap(n, m, c.d.reserved)
		}
		if err != nil {
			c.found("vhdx.bat.bitmap", ops.Broken, i, "%v", err)
		}
	}
	switch {
	case e.present():
		c.place(i, e, g.used(b))
	case e.offset() == 0:
	case e.state() == stateNotPresent || e.state() == stateZero:
		c.found("vhdx.bat.offset", ops.Warning, i, "offset %#x in state %d; Windows refuses such an entry", e.offset(), e.state())
	default:
		c.keeps = true
	}
}

func (c *checker) bitmap(i int64, e entry) {
	g := c.d.geometry
	if !g.hasParent {
		if e.state() == stateFull {
			c.found("vhdx.bat.bitmap-unused", ops.Note, i, "a sector bitmap in a disk without parent")
		}
		return
	}
	if err := g.checkBitmap(i, e, c.d.reserved); err != nil {
		c.found("vhdx.bat.bitmap", ops.Broken, i, "%v", err)
		return
	}
	c.place(i, e, bitmapBlock)
}

// place takes the space of a block of which used bytes are needed.
func (c *checker) place(i int64, e entry, used int64) {
	s, _ := c.d.geometry.content(i, e, c.d.reserved)
	if s.off+used > c.d.fileSize {
		c.found("vhdx.bat.past-end", ops.Broken, i, "offset %#x and %#x bytes past end of file %#x", s.off, used, c.d.fileSize)
	}
	if c.space.claim(s) {
		c.share(i, s, &c.more)
	}
}

// keep takes space that a block without content kept, in states 1 and 3, unless
// somebody has it.
func (c *checker) keep(i int64, e entry) {
	s, ok := c.d.geometry.keeps(i, e)
	if !ok {
		return
	}
	if s.off < mib || slices.ContainsFunc(c.d.reserved, s.overlaps) {
		c.found("vhdx.bat.overlap", ops.Warning, i, "space kept at %#x is that of the headers, the log or a region, too", s.off)
		return
	}
	if c.space.claim(s) {
		c.share(i, s, &c.odd)
	}
}

// share notes space that two have, in order, or only counts it in more where there are
// as many as a check lists.
func (c *checker) share(i int64, s span, more *int64) {
	if len(c.shared) == ops.MaxFindings {
		*more++
		return
	}
	at, _ := slices.BinarySearchFunc(c.shared, s.off, sharing.compare)
	c.shared, c.named = slices.Insert(c.shared, at, sharing{i, s}), 0
}

// name reports the space that a block shares with those in shared.
func (c *checker) name(i int64, e entry) {
	g := c.d.geometry
	s, ok := g.content(i, e, c.d.reserved)
	if !ok {
		s, ok = g.keeps(i, e)
	}
	if !ok {
		return
	}
	first, _ := slices.BinarySearchFunc(c.shared, s.off-max(g.block, bitmapBlock), sharing.compare)
	for k := first; k < len(c.shared) && c.shared[k].at.off < s.end; {
		x := c.shared[k]
		if x.i == i || !x.at.overlaps(s) {
			k++
			continue
		}
		c.shared = slices.Delete(c.shared, k, k+1)
		now, err := c.d.entryAt(x.i)
		if err != nil {
			c.found("vhdx.bat.overlap", ops.Broken, x.i, "space at %#x is that of bat entry %d, too: %v", x.at.off, i, err)
			continue
		}
		if t, ok := g.content(x.i, now, c.d.reserved); ok && t.overlaps(s) {
			c.found("vhdx.bat.overlap", ops.Broken, x.i, "block at %#x overlaps that of bat entry %d at %#x", t.off, i, s.off)
		} else if t, ok := g.keeps(x.i, now); ok && t.overlaps(s) {
			c.found("vhdx.bat.overlap", ops.Warning, x.i, "space kept at %#x is that of bat entry %d at %#x, too", t.off, i, s.off)
		}
	}
}

// changedLocked follows a change of an entry. What a block kept stays taken: if it
// was another's too, that one has it still.
func (c *checker) changedLocked(i int64, old, e entry) {
	g := c.d.geometry
	if i >= c.seen {
		return
	}
	c.space.grow(c.d.fileSize)
	was, had := g.content(i, old, c.d.reserved)
	if had {
		c.space.release(was)
	}
	now, has := g.content(i, e, c.d.reserved)
	if k, kept := g.keeps(i, old); has && c.space.claim(now) && !(kept && i < c.kept && k == now) {
		c.share(i, now, &c.more)
	}
	_, keeps := g.keeps(i, e)
	c.keeps = c.keeps || keeps
	switch {
	case g.isBitmap(i):
	case has && !had:
		c.present++
	case had && !has:
		c.present--
	}
}

// sum reports what only all entries together tell.
func (c *checker) sum() {
	d := c.d
	for _, x := range []struct {
		n    int64
		s    ops.Severity
		text string
	}{{c.more, ops.Broken, "%d more blocks overlap something else"}, {c.odd, ops.Warning, "%d more blocks kept space that is something else's, too"}} {
		if x.n > 0 {
			c.told = append(c.told, ops.Anomaly{Name: "vhdx.bat.overlap", Severity: x.s, Where: "bat", Text: fmt.Sprintf(x.text, x.n)})
		}
	}
	if n := d.geometry.blocks - c.present; d.diskType() == ops.Fixed && n > 0 {
		c.told = append(c.told, ops.Anomaly{
			Name: "vhdx.fixed.missing", Severity: ops.Warning, Where: "bat",
			Text: fmt.Sprintf("%d blocks of a fixed disk have no space in the file", n),
		})
	}
	c.space.grow(d.fileSize)
	if n := c.space.free() - (c.space.units - ceilDiv(d.fileSize, mib)); n > 0 {
		c.told = append(c.told, ops.Anomaly{
			Name: "vhdx.space.leaked", Severity: ops.Note, Where: "file",
			Text: fmt.Sprintf("%d MiB belong to no block and no structure", n),
		})
	}
}
