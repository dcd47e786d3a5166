package vhd

import (
	"bytes"
	"context"
	"fmt"
	"math"

	"vhdfs/ops"
)

// Check reports what opening does not look at: entries out of range, blocks that
// overlap, space that nothing uses, and data that other readers would not see;
// see [ops.Checker]. Writers wait for a slice of the table at a time; report is called
// without a lock.
func (d *Disk) Check(ctx context.Context, report func(ops.Anomaly)) error {
	sound, err := d.checkTable(ctx, report)
	if err != nil || !sound || d.typ != ops.Dynamic {
		return err
	}
	for b := range blocksFor(d.Size(), d.blockSize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := d.hiddenSector(b)
		if err != nil {
			return err
		}
		if s >= 0 {
			report(ops.Anomaly{
				Name: "vhd.bitmap.data", Severity: ops.Warning, Where: fmt.Sprintf("block %d", b),
				Text: fmt.Sprintf("vhd: block %d: data in sector %d under a clear bit: other readers take zeros", b, s),
			})
		}
	}
	return nil
}

// CheckTable is the part of [Disk.Check] that reads no content.
func (d *Disk) CheckTable(ctx context.Context, report func(ops.Anomaly)) error {
	_, err := d.checkTable(ctx, report)
	return err
}

// maxBadEntries ends the report on a table that is no table: a file may hold 64
// Mi entries that lead nowhere.
const maxBadEntries = 10_000

// checkSlice is how many table entries a check looks at while writers wait.
const checkSlice = 64 << 10

// tableCheck is a scan of the table in slices.
type tableCheck struct {
	d      *Disk
	report func(ops.Anomaly)
	told   []ops.Anomaly // reported when nobody waits any more
	bad    int
	looked int64 // blocks whose entries were judged by themselves
}

// checkTable reports bad entries; sound says that the table was gone through to
// its end. What is said of two entries at once holds at one moment; what only all
// of them tell is said where none changed.
func (d *Disk) checkTable(ctx context.Context, report func(ops.Anomaly)) (sound bool, err error) {
	c := &tableCheck{d: d, report: report}
	before := d.tableState()
	s, err := c.scan(ctx)
	for _, a := range c.told {
		report(a)
	}
	switch {
	case isCorrupt(err):
		report(anomaly("vhd.bat", ops.Broken, "block table", err))
		return false, nil
	case err != nil:
		return false, err
	case c.bad > 0 || d.tableState() != before:
		return true, nil
	}
	// Alignment leaves less than 4 KiB before each block, and 8 before the footer; the
	// paths of another parent leave the room of two.
	if leak := s.gaps + max(before.end-s.end, 0); leak > blockAlignment*(s.allocated+4) {
		report(ops.Anomaly{Name: "vhd.leak", Severity: ops.Note, Where: "file", Text: fmt.Sprintf("vhd: %d bytes of the file belong to no block", leak)})
	}
	return true, nil
}

// tableState differs where blocks or structures have moved.
type tableState struct {
	moves uint64
	lay   *layout
	end   int64
}

func (d *Disk) tableState() tableState {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return tableState{d.mu.moves, d.lay, d.lay.end}
}

// scan is [Disk.scanLocked] while others go on.
func (c *tableCheck) scan(ctx context.Context) (tableScan, error) {
	c.d.mu.RLock()
	s := scan{visit: scanVisit{bad: c.found, real: c.real}, spans: c.d.structures(), last: entryAt{at: -1}}
	c.d.mu.RUnlock()
	for w := c.d.firstWindow(); ; w = w.next() {
		if err := c.collect(ctx, &w); err != nil {
			return s.tableScan, err
		}
		if err := s.passWindow(&w, c.d.stride()); err != nil {
			return s.tableScan, err
		}
		if !w.more {
			return s.tableScan, s.passStructures(math.MaxInt64)
		}
	}
}

// collect fills a window. Blocks that moved meanwhile may be there twice: where they
// overfill it, it begins anew.
func (c *tableCheck) collect(ctx context.Context, w *window) error {
	moves := c.d.tableState().moves
	for b, more := int64(0), true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		b, more, err = c.slice(w, b)
		for _, a := range c.told {
			c.report(a)
		}
		c.told = c.told[:0]
		if now := c.d.tableState().moves; isCorrupt(err) && len(w.found) > scanWindow && now != moves {
			b, more, err, moves = 0, true, nil, now
			w.found = w.found[:0]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// slice adds the blocks from b on to a window, as many as one hold is good for.
func (c *tableCheck) slice(w *window, b int64) (next int64, more bool, err error) {
	d := c.d
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := int64(d.head.entries)
	next = min(b+checkSlice, all)
	visit := scanVisit{bad: func(b int64, err error) error {
		if b < c.looked {
			return nil
		}
		return c.found(b, err)
	}}
	err = d.collectLocked(context.Background(), w, b, next, visit)
	c.looked = max(c.looked, next)
	return next, next < all, err
}

// found notes a bad entry, or an overlap.
func (c *tableCheck) found(b int64, err error) error {
	if c.bad++; c.bad > maxBadEntries {
		return ops.Corruptf(ops.StatusBATCorrupt, "vhd: block table: over %d entries are bad, those from %d on were not looked at", maxBadEntries, b)
	}
	c.told = append(c.told, anomaly("vhd.bat", ops.Broken, fmt.Sprintf("bat entry %d", b), err))
	return nil
}

// real tells whether two blocks are where they were seen.
func (c *tableCheck) real(x, y entryAt) bool {
	c.d.mu.RLock()
	defer c.d.mu.RUnlock()
	for _, e := range []entryAt{x, y} {
		if at, ok, err := c.d.blockLocked(e.b); err != nil || !ok || at != e.at {
			return false
		}
	}
	return true
}

// hiddenSector is the first sector of a dynamic disk's block with data under a bit
// that is clear, -1 for none: readers that honour the bitmap take zeros there.
func (d *Disk) hiddenSector(b int64) (int64, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	at, ok, err := d.blockLocked(b)
	if isCorrupt(err) || err == nil && (!ok || d.checkWhole(b, at) != nil) {
		return -1, nil // reported with the table
	}
	if err != nil {
		return -1, err
	}
	m, err := d.bitmapLocked(b, at)
	if err != nil {
		return -1, err
	}
	sector := make([]byte, sectorSize)
	last := d.blockSize / sectorSize
	for s := int64(0); s < last; s++ {
		if n, set := bitRun(m, s, last); set {
			s += n - 1
			continue
		}
		if err := readFull(d.file, sector, at+d.mapBytes+s*sectorSize, fmt.Sprintf("data of block %d", b)); err != nil {
			return -1, err
		}
		if !bytes.Equal(sector, ops.Zeros(sectorSize)) {
			return s, nil
		}
	}
	return -1, nil
}
