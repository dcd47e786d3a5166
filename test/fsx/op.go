package fsx

import (
	"fmt"
	"math/rand/v2"
)

// kind is a way to use a disk.
type kind string

const (
	read       kind = "read"       // pread(2) through the page cache
	readVector kind = "preadv"     // preadv(2) into three pieces
	readDirect kind = "readdirect" // O_DIRECT
	mapRead    kind = "mapread"    // through a shared mapping
	write      kind = "write"      // pwrite(2) through the page cache
	writeMove  kind = "seekwrite"  // lseek(2) and write(2)
	direct     kind = "direct"     // pwrite(2) with O_DIRECT
	mapWrite   kind = "mapwrite"   // through a shared mapping
	punch      kind = "punch"      // fallocate(2), FALLOC_FL_PUNCH_HOLE
	zero       kind = "zero"       // fallocate(2), FALLOC_FL_ZERO_RANGE
	fsync      kind = "fsync"
	fdatasync  kind = "fdatasync"
	seek       kind = "seek"    // every run of data and holes from here on
	drop       kind = "drop"    // the page cache forgets the disk
	reopen     kind = "reopen"  // close and open
	remount    kind = "remount" // unmount and mount
)

// weights say how often a kind comes in a list.
var weights = []struct {
	kind   kind
	weight int
}{
	{read, 16}, {readVector, 4}, {readDirect, 8}, {mapRead, 8},
	{write, 22}, {writeMove, 4}, {direct, 12}, {mapWrite, 10},
	{punch, 6}, {zero, 4}, {fsync, 2}, {fdatasync, 2}, {seek, 1}, {drop, 1}, {reopen, 1},
}

// remountEvery is how many operations come between two remounts.
const remountEvery = 2000

// op is one step. It says all, so that any part of a list can be run.
type op struct {
	kind   kind
	off, n int64
	seed   uint64 // of the bytes that a write stores
}

func (o op) String() string {
	switch o.kind {
	case fsync, fdatasync, drop, reopen, remount:
		return string(o.kind)
	case write, writeMove, direct, mapWrite:
		return fmt.Sprintf("%s %#x+%#x %#x", o.kind, o.off, o.n, o.seed)
	}
	return fmt.Sprintf("%s %#x+%#x", o.kind, o.off, o.n)
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// list makes n operations on a disk of size bytes.
func list(seed uint64, n int, size int64) []op {
	rng := rand.New(rand.NewPCG(seed, 0))
	ops := make([]op, n)
	for i := range ops {
		ops[i] = one(rng, size)
		if i%remountEvery == remountEvery-1 {
			ops[i] = op{kind: remount}
		}
	}
	return ops
}

func one(rng *rand.Rand, size int64) op {
	sum := 0
	for _, w := range weights {
		sum += w.weight
	}
	o := op{seed: rng.Uint64()}
	for p, i := rng.IntN(sum), 0; ; i++ {
		if p -= weights[i].weight; p < 0 {
			o.kind = weights[i].kind
			break
		}
	}
	o.place(rng, size)
	return o
}

// place chooses a range: half of them near the border of a block, of any
// alignment except for O_DIRECT, which asks for sectors. Some holes hold blocks.
func (o *op) place(rng *rand.Rand, size int64) {
	align := []int64{1, 512, 4096}[rng.IntN(3)]
	if o.kind == direct || o.kind == readDirect {
		align = max(align, 512)
	}
	most := int64([]int{512, 8 * kib, 64 * kib, 256 * kib}[rng.IntN(4)])
	if (o.kind == punch || o.kind == zero) && rng.IntN(3) == 0 {
		most = 4 * mib
	}
	o.off = rng.Int64N(size)
	if rng.IntN(2) == 0 {
		const block = 512 * kib
		o.off = max(0, o.off/block*block+rng.Int64N(16*kib)-8*kib)
	}
	o.off = o.off / align * align
	o.n = max(align, min(rng.Int64N(most)+1, size-o.off)/align*align)
}
