package vhdx

import "math/bits"

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

// end is where the last taken mebibyte ends, in bytes.
func (m *spaceMap) end() int64 {
	for w := int64(len(m.words)) - 1; w >= 0; w-- {
		if m.words[w] != 0 {
			return (w*64 + int64(bits.Len64(m.words[w]))) * mib
		}
	}
	return 0
}
