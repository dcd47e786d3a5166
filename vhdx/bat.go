package vhdx

import "vhdfs/ops"

// Payload block states ([MS-VHDX] 2.5.1.1). 4 and 5 are reserved; 5 meant
// unmapped in a draft and is refused like every other value here.
const (
	stateNotPresent = 0
	stateUndefined  = 1
	stateZero       = 2
	stateUnmapped   = 3
	stateFull       = 6
	statePartial    = 7
)

const (
	entryBytes    = 8
	entriesInPage = pageSize / entryBytes
	stateMask     = 7
	reservedMask  = uint64(0xffff8) // bits 3 to 19
	bitmapBlock   = mib             // a sector bitmap block has 2^23 bits
	bitmapBits    = int64(1) << 23
	maxBAT        = 513 * mib // 64 TiB in blocks of 1 MiB, a bitmap entry for each 4 GiB
)

// entry is one entry of the BAT ([MS-VHDX] 2.5.1).
type entry uint64

func newEntry(state uint8, off int64) entry { return entry(off) | entry(state) }

func (e entry) state() uint8 { return uint8(e & stateMask) }

// offset is where the block lies; at most maxFile, so that sums do not overflow.
func (e entry) offset() int64 { return int64(min(uint64(e)&^uint64(mib-1), uint64(maxFile))) }

// present tells whether the entry's state says that the block has content.
func (e entry) present() bool { return e.state() >= stateFull }

// geometry is how a disk is cut into blocks, and its BAT into entries. The entry
// of a chunk's sector bitmap follows the chunk's payload entries in every type of
// disk ([MS-VHDX] 2.5).
type geometry struct {
	size      int64 // of the virtual disk
	block     int64 // bytes of a payload block
	sector    int64 // logical
	ratio     int64 // payload blocks in a chunk
	blocks    int64
	entries   int64 // of the BAT
	hasParent bool
}

// sized is the geometry of the same disk with another size.
func (g geometry) sized(size int64) geometry {
	g.size, g.blocks = size, ceilDiv(size, g.block)
	if g.hasParent {
		g.entries = g.chunks() * (g.ratio + 1)
	} else {
		g.entries = g.blocks + (g.blocks-1)/g.ratio
	}
	return g
}

// batLength is how long the BAT region of a new disk, or of one that has outgrown
// its own, is to be: room to grow by a quarter, but no more than the largest disk
// needs, since some readers refuse that; whole mebibytes.
func (g geometry) batLength() int64 {
	need := g.entries * entryBytes
	return max(roundUp(need, mib), min(roundUp(need+need/4, mib), maxBAT))
}

// beyond is the first BAT index behind the last payload block. In a differencing
// disk entries of the last chunk follow, its bitmap's last.
func (g geometry) beyond() int64 { return g.payloadIndex(g.blocks-1) + 1 }

// inUse tells whether the entry at BAT index i says anything about the disk.
func (g geometry) inUse(i int64) bool {
	return i < g.beyond() || g.hasParent && g.isBitmap(i) && i < g.entries
}

func newGeometry(m metadata) geometry {
	g := geometry{size: int64(m.size), block: int64(m.blockSize), sector: int64(m.logical), hasParent: m.hasParent}
	g.ratio = bitmapBits * g.sector / g.block
	return g.sized(g.size)
}

// chunks is the number of chunks, and so of sector bitmap blocks.
func (g geometry) chunks() int64 { return ceilDiv(g.blocks, g.ratio) }

// payloadIndex is where the entry of payload block b stands.
func (g geometry) payloadIndex(b int64) int64 { return b + b/g.ratio }

// bitmapIndex is where the entry of chunk c's sector bitmap stands.
func (g geometry) bitmapIndex(c int64) int64 { return (c+1)*g.ratio + c }

// isBitmap tells whether BAT index i belongs to a sector bitmap.
func (g geometry) isBitmap(i int64) bool { return i%(g.ratio+1) == g.ratio }

// payloadOf is the payload block of BAT index i, the next one where that is a
// bitmap's.
func (g geometry) payloadOf(i int64) int64 { return i - i/(g.ratio+1) }

// used is how many bytes of block b are below the virtual size.
func (g geometry) used(b int64) int64 { return min(g.block, g.size-b*g.block) }

// bitmapSlice is the place of block b in its chunk's bitmap: first bit and
// number of bits.
func (g geometry) bitmapSlice(b int64) (first, bits int64) {
	bits = g.block / g.sector
	return b % g.ratio * bits, bits
}

// checkPayload judges the entry at BAT index i of a payload block. reserved are
// the parts of the file that no block may touch.
func (g geometry) checkPayload(i int64, e entry, reserved []span) error {
	if uint64(e)&reservedMask != 0 {
		return corruptf(ops.StatusBATCorrupt, "bat entry %d: reserved bits set in %#x", i, uint64(e))
	}
	switch s := e.state(); s {
	case stateNotPresent, stateUndefined, stateZero, stateUnmapped:
		return nil
	case statePartial:
		if !g.hasParent {
			return corruptf(ops.StatusBATCorrupt, "bat entry %d: partially present in a disk without parent", i)
		}
	case stateFull:
	default:
		return corruptf(ops.StatusBATCorrupt, "bat entry %d: state %d is reserved", i, s)
	}
	return checkPlace(i, e, g.block, reserved)
}

// content is the space of what entry i says has content, where that can be; other
// entries have none.
func (g geometry) content(i int64, e entry, reserved []span) (span, bool) {
	n := g.block
	var err error
	switch {
	case !e.present(), g.isBitmap(i) && !g.hasParent:
		return span{}, false
	case g.isBitmap(i):
		n, err = bitmapBlock, g.checkBitmap(i, e, reserved)
	default:
		err = g.checkPayload(i, e, reserved)
	}
	return span{e.offset(), e.offset() + n}, err == nil
}

// keeps is the space that a block without content kept, in states 1 and 3.
func (g geometry) keeps(i int64, e entry) (span, bool) {
	ok := e.offset() != 0 && (e.state() == stateUndefined || e.state() == stateUnmapped)
	return span{e.offset(), e.offset() + g.block}, ok && !g.isBitmap(i) && uint64(e)&reservedMask == 0
}

// checkBitmap judges the entry at BAT index i of a sector bitmap block that is
// needed.
func (g geometry) checkBitmap(i int64, e entry, reserved []span) error {
	if uint64(e)&reservedMask != 0 || e.state() != stateFull {
		return corruptf(ops.StatusBitmapMismatch, "bat entry %d: %#x is not a present sector bitmap", i, uint64(e))
	}
	return checkPlace(i, e, bitmapBlock, reserved)
}

// checkPlace tells whether a block of n bytes may lie where e says, the end of
// the file aside.
func checkPlace(i int64, e entry, n int64, reserved []span) error {
	s := span{e.offset(), e.offset() + n}
	if s.off < mib {
		return corruptf(ops.StatusBATCorrupt, "bat entry %d: offset %#x is inside the header section", i, s.off)
	}
	if s.end > maxFile {
		return corruptf(ops.StatusBATCorrupt, "bat entry %d: offset %#x is past what a file can hold", i, uint64(e)&^uint64(mib-1))
	}
	for _, r := range reserved {
		if s.overlaps(r) {
			return corruptf(ops.StatusBATCorrupt, "bat entry %d: block at %#x overlaps the log or region at %#x", i, s.off, r.off)
		}
	}
	return nil
}
