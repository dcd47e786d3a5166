package vhdx

import (
	"math/bits"
	"slices"
)

// spaceMap says which mebibytes of a file belong to something: 8 MiB of memory
// for the largest file.
type spaceMap struct {
	words []uint64
	units int64 // mebibytes covered
}

func newSpaceMap(fileSize int64) *spaceMap {
	m := &spaceMap{}
	m.grow(fileSize)
	return m
}

// grow makes the map cover a file of fileSize bytes, at most maxFile.
func (m *spaceMap) grow(fileSize int64) {
	m.units = max(m.units, ceilDiv(min(fileSize, maxFile), mib))
	if n := ceilDiv(m.units, 64); n > int64(len(m.words)) {
		m.words = append(m.words, make([]uint64, n-int64(len(m.words)))...)
	}
}

// claim takes a span of whole mebibytes, as far as it is covered, and tells
// whether any of it was taken already.
func (m *spaceMap) claim(s span) (overlap bool) {
	for i := s.off / mib; i < min(ceilDiv(s.end, mib), m.units); i++ {
		bit := uint64(1) << (i % 64)
		overlap = overlap || m.words[i/64]&bit != 0
		m.words[i/64] |= bit
	}
	return overlap
}

// release gives a span back.
func (m *spaceMap) release(s span) {
	for i := s.off / mib; i < min(ceilDiv(s.end, mib), m.units); i++ {
		m.words[i/64] &^= 1 << (i % 64)
	}
}

func (m *spaceMap) taken(i int64) bool { return m.words[i/64]&(1<<(i%64)) != 0 }

// free is the number of mebibytes that belong to nothing.
func (m *spaceMap) free() int64 {
	var used int64
	for _, w := range m.words {
		used += int64(bits.OnesCount64(w))
	}
	return m.units - used
}

// find is the first run of n free mebibytes at or after from; -1 when there is
// none. next is the first free one, from where a later search may begin.
func (m *spaceMap) find(from, n int64) (at, next int64) {
	next = -1
	run := int64(0)
	for i := from; i < m.units; {
		if i%64 == 0 && m.words[i/64] == ^uint64(0) {
			run, i = 0, i+64
			continue
		}
		if m.taken(i) {
			run, i = 0, i+1
			continue
		}
		if next < 0 {
			next = i
		}
		if run++; run == n {
			return i - n + 1, next
		}
		i++
	}
	if next < 0 {
		next = m.units
	}
	return -1, next
}

// freeRun is the first run of free mebibytes at or after from, empty at the end of
// the map, and where the next one may begin.
func (m *spaceMap) freeRun(from int64) (run span, next int64) {
	for from < m.units && m.taken(from) {
		if from%64 == 0 && m.words[from/64] == ^uint64(0) {
			from += 63
		}
		from++
	}
	from = min(from, m.units)
	next = from
	for next < m.units && !m.taken(next) {
		next++
	}
	return span{from * mib, next * mib}, next
}

func (m *spaceMap) clone() *spaceMap {
	return &spaceMap{words: slices.Clone(m.words), units: m.units}
}

// lastBelow is the highest taken mebibyte below i; -1 when there is none.
func (m *spaceMap) lastBelow(i int64) int64 {
	for i > 0 {
		w := m.words[(i-1)/64] << (63 - (i-1)%64)
		if w != 0 {
			return i - 1 - int64(bits.LeadingZeros64(w))
		}
		i = (i - 1) / 64 * 64
	}
	return -1
}

// fold moves pieces of n mebibytes, which start where starts says, highest first,
// to the lowest free space as long as that lies below. It answers from which
// mebibyte on pieces moved, and how many.
func (m *spaceMap) fold(starts *spaceMap, n int64) (from, moves int64) {
	from = m.units
	search := int64(0)
	for hi := starts.lastBelow(starts.units); hi >= 0; hi = starts.lastBelow(hi) {
		lo, next := m.find(search, n)
		if lo < 0 || lo+n > hi {
			break
		}
		m.claim(span{lo * mib, (lo + n) * mib})
		m.release(span{hi * mib, (hi + n) * mib})
		search, from = next, hi
		moves++
	}
	return from, moves
}

// end is where the last taken mebibyte ends, in bytes.
func (m *spaceMap) end() int64 {
	for w := int64(len(m.words)) - 1; w >= 0; w-- {
		if m.words[w] != 0 {
			return (w*64 + int64(bits.Len64(m.words[w]))) * mib
		}
	}
	return 0
}
