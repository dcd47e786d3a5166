package vhd

import (
	"cmp"
	"context"
	"encoding/binary"
	"math"
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

// scanVisit is told what a scan meets. An error ends the scan.
type scanVisit struct {
	// bad takes each entry that cannot be, and each block that overlaps another.
	bad func(b int64, err error) error
	// real, if not nil, tells whether two blocks are still where they seem to overlap.
	real func(a, b entryAt) bool
	// gap, if not nil, takes the space that nothing uses before the last block or
	// structure, in the order of the file.
	gap func(g gap) error
	// block, if not nil, takes each good block, in the order of the file.
	block func(b, at int64) error
	// gone are blocks that are taken for unused.
	gone blockSet
}

// blockSet is a set of blocks, a bit for each of the table: 8 MiB at most.
type blockSet []uint64

func (s blockSet) has(b int64) bool { return s != nil && s[b/64]&(1<<(b%64)) != 0 }
func (s blockSet) add(b int64)      { s[b/64] |= 1 << (b % 64) }

// gap is a range of the file that nothing uses.
type gap struct {
	off, end int64
	tables   bool // it follows a structure, not a block
}

// scan is a pass over the file in its order.
type scan struct {
	tableScan
	visit  scanVisit
	spans  []span  // structures that were not met yet
	last   entryAt // the block before
	tables bool    // a structure ends at end
}

// scanLocked reads the whole table, streaming. It goes over the file in windows so
// that a table of any size is sorted in bounded memory; blocks that do not overlap
// bound what a window holds.
func (d *Disk) scanLocked(ctx context.Context, visit scanVisit) (tableScan, error) {
	s := scan{visit: visit, spans: d.structures(), last: entryAt{at: -1}}
	for w := d.firstWindow(); ; w = w.next() {
		if err := d.collectLocked(ctx, &w, 0, int64(d.head.entries), visit); err != nil {
			return s.tableScan, err
		}
		if err := s.passWindow(&w, d.stride()); err != nil {
			return s.tableScan, err
		}
		if !w.more {
			return s.tableScan, s.passStructures(math.MaxInt64)
		}
	}
}

// passWindow meets the blocks of a window.
func (s *scan) passWindow(w *window, stride int64) error {
	slices.SortFunc(w.found, func(a, b entryAt) int { return cmp.Compare(a.at, b.at) })
	for _, e := range w.found {
		if s.last.at >= 0 && e.at < s.last.at+stride && (s.visit.real == nil || s.visit.real(e, s.last)) {
			err := ops.Corruptf(ops.StatusBATCorrupt, "vhd: bat entry %d: block at %#x overlaps block %d at %#x", e.b, e.at, s.last.b, s.last.at)
			if err := s.visit.bad(e.b, err); err != nil {
				return err
			}
		}
		if err := s.passBlock(e, e.at+stride); err != nil {
			return err
		}
		s.last = e
	}
	s.allocated += int64(len(w.found))
	return nil
}

func (s *scan) passBlock(e entryAt, end int64) error {
	if err := s.passStructures(e.at); err != nil {
		return err
	}
	if err := s.pass(e.at, end, false); err != nil || s.visit.block == nil {
		return err
	}
	return s.visit.block(e.b, e.at)
}

// passStructures meets the structures that start before off.
func (s *scan) passStructures(off int64) error {
	for len(s.spans) > 0 && s.spans[0].off < off {
		if err := s.pass(s.spans[0].off, s.spans[0].end(), true); err != nil {
			return err
		}
		s.spans = s.spans[1:]
	}
	return nil
}

func (s *scan) pass(off, end int64, structure bool) error {
	if off > s.end {
		s.gaps += off - s.end
		if s.visit.gap != nil {
			if err := s.visit.gap(gap{s.end, off, s.tables}); err != nil {
				return err
			}
		}
	}
	if end > s.end {
		s.end, s.tables = end, structure
	}
	return nil
}

type entryAt struct{ b, at int64 }

// window is a part of the file, with the good blocks that start there.
type window struct {
	lo, hi int64
	found  []entryAt
	more   bool // others start later
}

func (d *Disk) firstWindow() window { return window{hi: scanWindow * d.stride()} }

func (w window) next() window {
	return window{lo: w.hi, hi: 2*w.hi - w.lo}
}

// collectLocked puts into w those of blocks [from, to) that start there; from is the
// first of a page. Bad ones are reported in the first window.
func (d *Disk) collectLocked(ctx context.Context, w *window, from, to int64, visit scanVisit) error {
	page := make([]byte, tablePage)
	for b := from; b < to; b++ {
		if b%(tablePage/4) == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(tablePage, d.head.tableBytes()-b*4)
			if err := readFull(d.file, page[:n], int64(d.head.tableOffset)+b*4, "block table"); err != nil {
				return err
			}
		}
		s := binary.BigEndian.Uint32(page[b*4%tablePage:])
		if p, ok := d.pendingEntryLocked(b); ok {
			s = p
		}
		if s == unused || visit.gone.has(b) {
			continue
		}
		at := int64(s) * sectorSize
		if at >= w.hi {
			w.more = true
		}
		if err := d.checkWhole(b, at); err != nil {
			if w.lo > 0 {
				continue
			}
			if err := visit.bad(b, err); err != nil {
				return err
			}
			continue
		}
		if at < w.lo || at >= w.hi {
			continue
		}
		if w.found = append(w.found, entryAt{b, at}); len(w.found) > scanWindow+1 {
			return ops.Corruptf(ops.StatusBATCorrupt, "vhd: block table: over %d blocks between %#x and %#x overlap", scanWindow, w.lo, w.hi)
		}
	}
	return nil
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

// structures are the sectors of footer copy, header, table, locators and batmap, in
// the order of the file.
func (d *Disk) structures() []span {
	list := slices.Clone(d.lay.spans)
	for _, l := range d.head.locators {
		if l.code != 0 && l.validate(d.lay) == nil {
			list = append(list, span{int64(l.offset), min(l.capacity(), d.lay.end-int64(l.offset)), "parent locator"})
		}
	}
	for i, s := range list {
		off := s.off / sectorSize * sectorSize
		list[i].off, list[i].len = off, roundUp(s.end(), sectorSize)-off
	}
	slices.SortFunc(list, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	return list
}
