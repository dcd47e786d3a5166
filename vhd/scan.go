package vhd

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"vhdfs/ops"
)

// scanWindow is the number of entries that one pass over the table sorts: 8 MiB
// of them. A full disk of 2040 GiB takes three passes.
const scanWindow = 512 << 10

// tableScan is what one pass over the whole block table found.
type tableScan struct {
	allocated int64 // entries in use
	end       int64 // where the last block or structure ends
	gaps      int64 // bytes between structures and blocks that nothing uses
}

// scanLocked reads the whole table, streaming, and calls bad for every entry
// that cannot be and for every two that overlap, until bad returns an error. It
// goes over the file in windows so that a table of any size is sorted in bounded
// memory; blocks that do not overlap bound what a window holds.
func (d *Disk) scanLocked(ctx context.Context, bad func(b int64, err error) error) (tableScan, error) {
	s := tableScan{end: d.structuresEnd()}
	last := entryAt{at: -1}
	window := scanWindow * d.stride()
	for lo := int64(0); ; lo += window {
		found, more, err := d.windowLocked(ctx, lo, lo+window, bad)
		if err != nil {
			return s, err
		}
		slices.SortFunc(found, func(a, b entryAt) int { return cmp.Compare(a.at, b.at) })
		for _, e := range found {
			if last.at >= 0 && e.at < last.at+d.stride() {
				err := ops.Corruptf(ops.StatusBATCorrupt, "vhd: bat entry %d: block at %#x overlaps block %d at %#x", e.b, e.at, last.b, last.at)
				if err := bad(e.b, err); err != nil {
					return s, err
				}
			}
			s.gaps += max(e.at-s.end, 0)
			s.end = max(s.end, e.at+d.stride())
			last = e
		}
		s.allocated += int64(len(found))
		if !more {
			return s, nil
		}
	}
}

type entryAt struct{ b, at int64 }

// windowLocked collects the entries of good blocks that start in [lo, hi); more
// says that others start later. Bad ones are reported in the first window.
func (d *Disk) windowLocked(ctx context.Context, lo, hi int64, bad func(int64, error) error) (found []entryAt, more bool, err error) {
	page := make([]byte, tablePage)
	for b := int64(0); b < int64(d.head.entries); b++ {
		if b%(tablePage/4) == 0 {
			if err := ctx.Err(); err != nil {
				return nil, false, err
			}
			n := min(tablePage, d.head.tableBytes()-b*4)
			if err := readFull(d.file, page[:n], int64(d.head.tableOffset)+b*4, "block table"); err != nil {
				return nil, false, err
			}
		}
		s := binary.BigEndian.Uint32(page[b*4%tablePage:])
		if p, ok := d.pendingEntryLocked(b); ok {
			s = p
		}
		if s == unused {
			continue
		}
		at := int64(s) * sectorSize
		if at >= hi {
			more = true
		}
		if err := d.checkWhole(b, at); err != nil {
			if lo > 0 {
				continue
			}
			if err := bad(b, err); err != nil {
				return nil, false, err
			}
			continue
		}
		if at < lo || at >= hi {
			continue
		}
		if found = append(found, entryAt{b, at}); len(found) > scanWindow+1 {
			return nil, false, ops.Corruptf(ops.StatusBATCorrupt, "vhd: block table: over %d blocks between %#x and %#x overlap", scanWindow, lo, hi)
		}
	}
	return found, more, nil
}

// checkWhole is [Disk.checkEntry], and the data have to be in the file too.
func (d *Disk) checkWhole(b, at int64) error {
	if err := d.checkEntry(b, at); err != nil {
		return err
	}
	if at+d.stride() > d.lay.end {
		return ops.Corruptf(ops.StatusBATCorrupt, "vhd: bat entry %d: block at %#x ends past end of file %#x", b, at, d.lay.end)
	}
	return nil
}

// structuresEnd is where header, table, locators and batmap end.
func (d *Disk) structuresEnd() int64 {
	var end int64
	for _, s := range d.lay.spans {
		end = max(end, s.end())
	}
	for _, l := range d.head.locators {
		if l.code != 0 && l.validate(d.lay) == nil {
			end = max(end, min(int64(l.offset)+l.capacity(), d.lay.end))
		}
	}
	return roundUp(end, sectorSize)
}
