package vhd

import (
	"encoding/binary"
	"fmt"

	"vhdfs/ops"
)

const (
	unused = 0xffffffff // BAT entry of a block that is not allocated

	// tablePage is the unit in which the BAT is cached: 1024 entries.
	tablePage = 4096
)

// pending is what waits in memory for a flush. Both maps are nil in a disk that
// is not written.
type pending struct {
	bat  map[int64]uint32 // table entries by block
	bits map[int64][]byte // bitmaps with bits that are not in the file, by block
}

func newPending() pending {
	return pending{bat: map[int64]uint32{}, bits: map[int64][]byte{}}
}

// pendingEntryLocked is a table entry that is not in the file yet.
func (d *Disk) pendingEntryLocked(b int64) (uint32, bool) {
	s, ok := d.mu.wait.bat[b]
	if !ok {
		s, ok = d.mu.leave.bat[b]
	}
	return s, ok
}

// enterLocked has the next flush make s table entry b.
func (d *Disk) enterLocked(b int64, s uint32) {
	d.mu.wait.bat[b] = s
	d.mu.moves++
}

// entryLocked is BAT entry b: the sector of the block's bitmap, or unused.
func (d *Disk) entryLocked(b int64) (uint32, error) {
	if s, ok := d.pendingEntryLocked(b); ok {
		return s, nil
	}
	page, err := d.tablePageLocked(b * 4 / tablePage)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(page[b*4%tablePage:]), nil
}

// maxUnusedRun bounds the work of one request over an empty table.
const maxUnusedRun = 1 << 20

// unusedRunLocked is the number of blocks from b, below end, that are not
// allocated, or fewer when there are very many.
func (d *Disk) unusedRunLocked(b, end int64) (int64, error) {
	const perPage = tablePage / 4
	start := b
	for end = min(end, b+maxUnusedRun); b < end; {
		page, err := d.tablePageLocked(b / perPage)
		if err != nil {
			return 0, err
		}
		for last := min(end, (b/perPage+1)*perPage); b < last; b++ {
			s := binary.BigEndian.Uint32(page[b%perPage*4:])
			if len(d.mu.wait.bat)+len(d.mu.leave.bat) > 0 {
				if p, ok := d.pendingEntryLocked(b); ok {
					s = p
				}
			}
			if s != unused {
				return b - start, nil
			}
		}
	}
	return b - start, nil
}

func (d *Disk) tablePageLocked(i int64) ([]byte, error) {
	return d.table.Get(i, func(p []byte) error {
		n := min(tablePage, d.head.tableBytes()-i*tablePage)
		return readFull(d.file, p[:n], int64(d.head.tableOffset)+i*tablePage, fmt.Sprintf("block table page %d", i))
	})
}

// blockLocked is the byte offset of block b's bitmap; false when the block is
// not allocated. An entry that cannot be is an error of this block alone.
func (d *Disk) blockLocked(b int64) (at int64, ok bool, err error) {
	s, err := d.entryLocked(b)
	if err != nil || s == unused {
		return 0, false, err
	}
	at = int64(s) * sectorSize
	return at, true, d.checkEntry(b, at)
}

// checkEntry says why a block's bitmap cannot be at at. A block may end past the
// end of a cut-off file: then only reads of the missing bytes fail.
func (d *Disk) checkEntry(b, at int64) error {
	if s, bad := d.lay.overlaps(at, d.stride()); bad {
		return ops.Corruptf(ops.StatusBATCorrupt, "vhd: bat entry %d: block at %#x overlaps the %s at %#x", b, at, s.what, s.off)
	}
	if at+d.mapBytes > d.lay.end {
		return ops.Corruptf(ops.StatusBATCorrupt, "vhd: bat entry %d: offset %#x past end of file %#x", b, at, d.lay.end)
	}
	return nil
}

// stride is the length of a block in the file: bitmap and data.
func (d *Disk) stride() int64 { return d.mapBytes + d.blockSize }
