package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vhdfs/ops"
)

const (
	headerSize   = 1024
	headerCookie = "cxsparse"

	// maxBlockSize: Microsoft tested 512 KiB and 2 MiB; anything over 256 MiB
	// is a damaged number.
	maxBlockSize = 256 << 20
	// maxEntries bounds the BAT to 256 MiB; 2040 GiB in blocks of 32 KiB.
	maxEntries = 64 << 20

	numLocators = 8
)

// header is the dynamic header (vhd specification, "Dynamic Disk Header
// Format"). There is no second copy of it.
type header struct {
	raw             [headerSize]byte
	tableOffset     uint64
	entries         uint32 // MaxTableEntries
	blockSize       uint32 // bytes of data in a block
	parentID        ops.GUID
	parentTimestamp uint32
	parentName      []byte // UTF-16BE, as stored
	locators        [numLocators]locator
}

// decodeHeader checks what the header alone can say.
func decodeHeader(b []byte) (header, error) {
	var h header
	copy(h.raw[:], b)
	be := binary.BigEndian
	if got := string(h.raw[:8]); got != headerCookie {
		return h, ops.Corruptf(ops.StatusSparseCorrupt, "vhd: dynamic header: cookie %q, want %q", got, headerCookie)
	}
	if got, want := be.Uint32(h.raw[headerSumAt:]), checksum(h.raw[:], headerSumAt); got != want {
		return h, ops.Corruptf(ops.StatusSparseChecksum, "vhd: dynamic header: checksum %#08x, want %#08x", got, want)
	}
	if v := be.Uint32(h.raw[24:]); v != 0x00010000 {
		return h, ops.Corruptf(ops.StatusSparseVersion, "vhd: dynamic header: version %#08x, want 0x00010000", v)
	}
	h.tableOffset = be.Uint64(h.raw[16:])
	h.entries = be.Uint32(h.raw[28:])
	h.blockSize = be.Uint32(h.raw[32:])
	copy(h.parentID[:], h.raw[40:56])
	h.parentTimestamp = be.Uint32(h.raw[56:])
	h.parentName = h.raw[64:576]
	for i := range h.locators {
		h.locators[i] = decodeLocator(h.raw[576+i*locatorSize:])
	}
	if n := h.blockSize; n < sectorSize || n > maxBlockSize || n&(n-1) != 0 {
		return h, ops.Corruptf(ops.StatusBlockSize, "vhd: dynamic header: block size %d is not a power of two from 512 to %d", n, maxBlockSize)
	}
	if h.entries == 0 || h.entries > maxEntries {
		return h, ops.Corruptf(ops.StatusSparseCorrupt, "vhd: dynamic header: %d table entries, want 1 to %d", h.entries, maxEntries)
	}
	return h, nil
}

// validate checks the header at byte at against the footer f and against end,
// where the file's structures have to end.
func (h *header) validate(f *footer, at, end int64) error {
	if int64(h.entries)*int64(h.blockSize) < int64(f.currentSize) {
		return ops.Corruptf(ops.StatusSparseCorrupt, "vhd: dynamic header: %d blocks of %d bytes do not hold a disk of %d", h.entries, h.blockSize, f.currentSize)
	}
	if h.tableOffset%sectorSize != 0 || h.tableOffset < footerSize {
		return ops.Corruptf(ops.StatusSparseCorrupt, "vhd: dynamic header: table offset %#x is not a sector behind the footer copy", h.tableOffset)
	}
	if h.tableOffset > uint64(end) || int64(h.tableOffset) > end-h.tableBytes() {
		return ops.Corruptf(ops.StatusBATCorrupt, "vhd: dynamic header: table of %d entries at %#x ends past %#x", h.entries, h.tableOffset, end)
	}
	if int64(h.tableOffset) < at+headerSize && at < int64(h.tableOffset)+h.tableBytes() {
		return ops.Corruptf(ops.StatusSparseCorrupt, "vhd: dynamic header: table at %#x overlaps the header at %#x", h.tableOffset, at)
	}
	return h.validateParent(f)
}

// validateParent checks that type and parent agree: a child names a parent, by an id
// or a path, other disks do not.
func (h *header) validateParent(f *footer) error {
	switch {
	case f.typ() == ops.Dynamic && !h.parentID.IsZero():
		return ops.Corruptf(ops.StatusFooterCorrupt, "vhd: type is dynamic, but the header names parent %s", h.parentID)
	case f.typ() == ops.Differencing && h.parentID.IsZero() && !h.namesParent():
		return ops.Corruptf(ops.StatusFooterCorrupt, "vhd: type is differencing, but the header names no parent")
	case f.typ() == ops.Differencing && f.creator == creatorTap && f.creatorVersion == 0x00000001:
		return ops.Errorf(errors.ErrUnsupported, ops.StatusVersionUnsupported, "vhd: made by blktap 0.1, whose bitmaps have another bit order")
	}
	return nil
}

// identifiesParent is the error of a child's header without the id of its parent.
func (h *header) identifiesParent() error {
	if h.parentID.IsZero() {
		return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhd: the parent has no id: a raw parent, as blktap has them, cannot be told from another file")
	}
	return nil
}

func (h *header) namesParent() bool {
	for _, l := range h.locators {
		if l.code != 0 {
			return true
		}
	}
	return h.parentName[0] != 0 || h.parentName[1] != 0
}

// tableBytes is the length of the BAT without padding.
func (h *header) tableBytes() int64 { return int64(h.entries) * 4 }

// bitmapBytes is the length of a block's sector bitmap.
func (h *header) bitmapBytes() int64 {
	return roundUp((int64(h.blockSize)/sectorSize+7)/8, sectorSize)
}

// readHeader reads and checks the dynamic header that f leads to.
func readHeader(file ops.File, f *footer, end int64) (header, error) {
	if f.dataOffset%sectorSize != 0 || f.dataOffset < footerSize || f.dataOffset > uint64(end) || int64(f.dataOffset) > end-headerSize {
		return header{}, ops.Corruptf(ops.StatusFooterCorrupt, "vhd: footer: dynamic header at %#x is not between the footers (end %#x)", f.dataOffset, end)
	}
	b := make([]byte, headerSize)
	if err := readFull(file, b, int64(f.dataOffset), "dynamic header"); err != nil {
		return header{}, err
	}
	h, err := decodeHeader(b)
	if err != nil {
		return h, err
	}
	return h, h.validate(f, int64(f.dataOffset), end)
}

// readFull reads all of p; less is io.ErrUnexpectedEOF, because every caller
// has checked the length of the file.
func readFull(file ops.File, p []byte, off int64, what string) error {
	n, err := file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return ops.Errorf(io.ErrUnexpectedEOF, 0, "vhd: %s: %d of %d bytes at %#x", what, n, len(p), off)
	}
	return fmt.Errorf("vhd: %s at %#x: %w", what, off, err)
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
