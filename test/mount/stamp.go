package mount

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"vhdfs/test/fixture"
)

const (
	sector = 512
	// Writers load a disk at once. Each writes sectors that no other writes, in
	// blocks that the others write too.
	Writers = 4
	// stripe is the unit of ownership in the first half of a disk, in bytes. It
	// straddles the borders of blocks.
	stripe = 64 << 10
)

// stamp says what a sector holds: seq<<4 | zero<<3 | writer+1. 0 is a sector
// that was never written. A writer's numbers grow with every write.
type stamp uint64

const (
	punched stamp = 8 // the sector was made zeros
	parents       = Writers
)

func newStamp(writer int, seq uint64) stamp { return stamp(seq<<4) | stamp(writer+1) }

func (s stamp) writer() int { return int(s&7) - 1 }
func (s stamp) seq() uint64 { return uint64(s >> 4) }

func (s stamp) String() string {
	switch {
	case s == 0:
		return "never written"
	case s.writer() == parents:
		return "the parent's"
	case s&punched != 0:
		return fmt.Sprintf("zeros of writer %d, %d", s.writer(), s.seq())
	}
	return fmt.Sprintf("writer %d, %d", s.writer(), s.seq())
}

// fill makes the content of a sector: stamp, sector number, and noise that both
// decide, so that no part of it occurs anywhere else.
func (s stamp) fill(b []byte, sector int64) {
	if s == 0 || s&punched != 0 {
		clear(b)
		return
	}
	binary.LittleEndian.PutUint64(b, uint64(s))
	binary.LittleEndian.PutUint64(b[8:], uint64(sector))
	x := uint64(s)*0x9e3779b97f4a7c15 ^ uint64(sector)*0xbf58476d1ce4e5b9 | 1
	for i := 16; i < len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
}

// is tells whether b is the content of a sector.
func (s stamp) is(b []byte, sector int64) bool {
	var want [512]byte
	s.fill(want[:], sector)
	return bytes.Equal(b, want[:])
}

// begins tells whether the first bytes are those of a sector.
func (s stamp) begins(b []byte, sector int64) bool {
	var want [512]byte
	s.fill(want[:], sector)
	return bytes.Equal(b[:32], want[:32])
}

// explain says what b is, if it is nothing that the sector may hold.
func explain(b []byte, at int64) string {
	s := stamp(binary.LittleEndian.Uint64(b))
	from := int64(binary.LittleEndian.Uint64(b[8:]))
	switch {
	case bytes.Count(b, []byte{0}) == len(b):
		return "zeros"
	case s.is(b, from) && from != at:
		return fmt.Sprintf("sector %d's: %v", from, s)
	case s.is(b, from):
		return s.String()
	case s.begins(b, at):
		return fmt.Sprintf("torn: begins as %v", s)
	}
	return fmt.Sprintf("foreign bytes %x…", b[:16])
}

// pieceOf is the length of what each writer owns of the second half, in bytes.
func pieceOf(size int64) int64 { return size / 2 / Writers / sector * sector }

// pick chooses where a writer writes next: a range in what it owns.
func pick(rng *rand.Rand, size int64, writer int, most int64) (off, n int64) {
	lo, hi := size/2+int64(writer)*pieceOf(size), size/2+int64(writer+1)*pieceOf(size)
	if rng.IntN(3) > 0 {
		rounds := size / 2 / (stripe * Writers)
		lo = (rng.Int64N(rounds)*Writers+int64(writer))*stripe - stripe/2
		lo, hi = max(lo, 0), min(lo+stripe, size/2)
	}
	lo, hi = (lo+sector-1)/sector, hi/sector
	n = min(1+rng.Int64N(most/sector), hi-lo)
	return (lo + rng.Int64N(hi-lo-n+1)) * sector, n * sector
}

// Base is what the disk of a kind shows at first: stamped pieces between holes.
func Base(size int64) []fixture.Write {
	const piece = 96 << 10
	var list []fixture.Write
	for off := int64(piece); off+piece <= size; off += 5 * piece {
		b := make([]byte, piece)
		for at := int64(0); at < piece; at += sector {
			newStamp(parents, 1).fill(b[at:at+sector], (off+at)/sector)
		}
		list = append(list, fixture.Write{Off: off, Data: b})
	}
	return list
}
