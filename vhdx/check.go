package vhdx

import (
	"context"
	"fmt"

	"vhdfs/ops"
)

// checkEvery is how many BAT entries are looked at between two looks at the
// context.
const checkEvery = 1 << 16

// checker streams the anomalies of one disk's BAT.
type checker struct {
	d       *Disk
	space   *spaceMap
	report  func(ops.Anomaly)
	missing int64 // blocks of a fixed disk without space
}

// Check reports what is wrong in the BAT and with the space of the file, beyond
// what opening found. Writes wait for it; reads do not. It holds a bit for each
// mebibyte of the file and nothing else.
func (d *Disk) Check(ctx context.Context, report func(ops.Anomaly)) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	c := &checker{d: d, space: newSpaceMap(d.fileSize), report: report}
	c.space.claim(span{0, mib})
	for _, s := range d.reserved {
		c.space.claim(s)
	}
	fixed := d.diskType() == ops.Fixed
	holes := func(_, n int64) bool {
		c.missing += n
		return ctx.Err() == nil
	}
	err := d.scanBAT(0, d.geometry.entries, holes, func(i int64, e entry) bool {
		if e != 0 {
			c.entry(i, e)
		}
		if !e.present() && !d.geometry.isBitmap(i) {
			c.missing++
		}
		return i%checkEvery != 0 || ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if fixed && c.missing > 0 {
		report(ops.Anomaly{
			Name: "vhdx.fixed.missing", Severity: ops.Warning, Where: "bat",
			Text: fmt.Sprintf("%d blocks of a fixed disk have no space in the file", c.missing),
		})
	}
	if n := c.space.free(); n > 0 {
		report(ops.Anomaly{
			Name: "vhdx.space.leaked", Severity: ops.Note, Where: "file",
			Text: fmt.Sprintf("%d MiB belong to no block and no structure", n),
		})
	}
	return nil
}

// CheckTable is all of [Disk.Check], which reads no content.
func (d *Disk) CheckTable(ctx context.Context, report func(ops.Anomaly)) error {
	return d.Check(ctx, report)
}

func (c *checker) found(name string, s ops.Severity, i int64, format string, args ...any) {
	c.report(ops.Anomaly{
		Name: name, Severity: s, Where: fmt.Sprintf("bat entry %d", i), Text: fmt.Sprintf(format, args...),
	})
}

func (c *checker) entry(i int64, e entry) {
	g := c.d.geometry
	if g.isBitmap(i) {
		c.bitmap(i, e)
		return
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
	if !e.present() {
		c.anchor(i, e)
		return
	}
	c.place(i, span{e.offset(), e.offset() + g.block}, g.used(b))
}

// anchor looks at a block without content: it may keep space that nobody else
// has, in states 1 and 3.
func (c *checker) anchor(i int64, e entry) {
	if e.offset() == 0 {
		return
	}
	if e.state() == stateNotPresent || e.state() == stateZero {
		c.found("vhdx.bat.offset", ops.Warning, i, "offset %#x in state %d; Windows refuses such an entry", e.offset(), e.state())
		return
	}
	if c.space.claim(span{e.offset(), e.offset() + c.d.geometry.block}) {
		c.found("vhdx.bat.overlap", ops.Warning, i, "space kept at %#x belongs to something else too", e.offset())
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
	c.place(i, span{e.offset(), e.offset() + bitmapBlock}, bitmapBlock)
}

// place claims the space of a block of which used bytes are needed.
func (c *checker) place(i int64, s span, used int64) {
	if s.off+used > c.d.fileSize {
		c.found("vhdx.bat.past-end", ops.Broken, i, "offset %#x and %#x bytes past end of file %#x", s.off, used, c.d.fileSize)
	}
	if c.space.claim(s) {
		c.found("vhdx.bat.overlap", ops.Broken, i, "block at %#x overlaps something else", s.off)
	}
}
