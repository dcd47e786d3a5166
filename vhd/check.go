package vhd

import (
	"bytes"
	"context"
	"fmt"

	"vhdfs/ops"
)

// Check reports what opening does not look at: entries out of range, blocks that
// overlap, space that nothing uses, and data that other readers would not see;
// see [ops.Checker]. Writers wait while it runs over the table.
func (d *Disk) Check(ctx context.Context, report func(ops.Anomaly)) error {
	sound, err := d.checkTable(ctx, report)
	if err != nil || !sound || d.typ != ops.Dynamic {
		return err
	}
	for b := range blocksFor(d.Size(), d.blockSize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.checkHidden(b, report); err != nil {
			return err
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

// checkTable reports bad entries; sound says that the table was gone through to
// its end.
func (d *Disk) checkTable(ctx context.Context, report func(ops.Anomaly)) (sound bool, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	bad := 0
	s, err := d.scanLocked(ctx, scanVisit{bad: func(b int64, err error) error {
		if bad++; bad > maxBadEntries {
			return ops.Corruptf(ops.StatusBATCorrupt, "vhd: block table: over %d entries are bad, those from %d on were not looked at", maxBadEntries, b)
		}
		report(anomaly("vhd.bat", ops.Broken, fmt.Sprintf("bat entry %d", b), err))
		return nil
	}})
	switch {
	case isCorrupt(err):
		report(anomaly("vhd.bat", ops.Broken, "block table", err))
		return false, nil
	case err != nil:
		return false, err
	}
	// Alignment leaves less than 4 KiB before each block, and 8 before the footer; the
	// paths of another parent leave the room of two.
	if leak := s.gaps + max(d.lay.end-s.end, 0); bad == 0 && leak > blockAlignment*(s.allocated+4) {
		report(ops.Anomaly{Name: "vhd.leak", Severity: ops.Note, Where: "file", Text: fmt.Sprintf("vhd: %d bytes of the file belong to no block", leak)})
	}
	return true, nil
}

// checkHidden looks for data under bits of a dynamic disk's block that are
// clear: readers that honour the bitmap take zeros there.
func (d *Disk) checkHidden(b int64, report func(ops.Anomaly)) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	at, ok, err := d.blockLocked(b)
	if isCorrupt(err) || err == nil && (!ok || d.checkWhole(b, at) != nil) {
		return nil // reported with the table
	}
	if err != nil {
		return err
	}
	m, err := d.bitmapLocked(b, at)
	if err != nil {
		return err
	}
	sector, zero := make([]byte, sectorSize), make([]byte, sectorSize)
	last := d.blockSize / sectorSize
	for s := int64(0); s < last; s++ {
		if n, set := bitRun(m, s, last); set {
			s += n - 1
			continue
		}
		if err := readFull(d.file, sector, at+d.mapBytes+s*sectorSize, fmt.Sprintf("data of block %d", b)); err != nil {
			return err
		}
		if !bytes.Equal(sector, zero) {
			report(ops.Anomaly{
				Name: "vhd.bitmap.data", Severity: ops.Warning, Where: fmt.Sprintf("block %d", b),
				Text: fmt.Sprintf("vhd: block %d: data in sector %d under a clear bit: other readers take zeros", b, s),
			})
			return nil
		}
	}
	return nil
}
