package vhdx

import "math/bits"

// spaceMap says which mebibytes of a file belong to something: 8 MiB of memory
// for the largest file.
type spaceMap struct {
	words []uint64
	units int64 // mebibytes covered
}

func newSpaceMap(fileSize int64) *spaceMap {
	units := ceilDiv(min(fileSize, maxFile), mib)
	return &spaceMap{words: make([]uint64, ceilDiv(units, 64)), units: units}
}

// grow makes room for a file of fileSize bytes.
func (m *spaceMap) grow(fileSize int64) {
	m.units = max(m.units, ceilDiv(fileSize, mib))
	for int64(len(m.words)) < ceilDiv(m.units, 64) {
		m.words = append(m.words, 0)
	}
}

// claim takes a span of whole mebibytes, as far as it lies in the file, and
// tells whether any of it was taken already.
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

// free is the number of mebibytes that belong to nothing.
func (m *spaceMap) free() int64 {
	var used int64
	for _, w := range m.words {
		used += int64(bits.OnesCount64(w))
	}
	return m.units - used
}
