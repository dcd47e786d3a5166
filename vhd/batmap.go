package vhd

import (
	"encoding/binary"
	"errors"

	"vhdfs/ops"
)

const (
	batmapCookie = "tdbatmap"
	batmapName   = "batmap" // of its span
)

// readBatmap finds the map that blktap keeps behind the block table: a bit for
// each block that is fully written. Its space is not free; its bits stay true
// because written sectors are never taken away from a block. An empty span means
// there is none.
func readBatmap(file ops.File, f *footer, h *header, end int64) (span, error) {
	at := roundUp(int64(h.tableOffset)+h.tableBytes(), sectorSize)
	if f.creator != creatorTap || at > end-sectorSize {
		return span{}, nil
	}
	b := make([]byte, sectorSize)
	if err := readFull(file, b, at, "batmap"); err != nil {
		return span{}, err
	}
	if string(b[:8]) != batmapCookie {
		return span{}, nil
	}
	if b[29] != 0 {
		return span{}, ops.Errorf(errors.ErrUnsupported, ops.StatusVersionUnsupported, "vhd: batmap at %#x: the disk is encrypted", at)
	}
	off := binary.BigEndian.Uint64(b[8:])
	size := int64(binary.BigEndian.Uint32(b[16:])) * sectorSize
	if off < uint64(at+sectorSize) || off > uint64(end) || int64(off) > end-size {
		return span{}, ops.Corruptf(ops.StatusSparseCorrupt, "vhd: batmap at %#x: %d bytes at %#x end past %#x", at, size, off, end)
	}
	return span{at, int64(off) + size - at, batmapName}, nil
}
