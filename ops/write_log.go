package ops

import (
	"math/bits"
	"sync"
)

const (
	// writeLogBits bounds what a write log keeps: 1 MiB.
	writeLogBits = 8 << 20
	// writeLogGranule is the least unit in bytes that it tells apart.
	writeLogGranule = 64 << 10
)

// writeLog notes which parts of a disk are written from some moment on, for
// somebody who copies it meanwhile.
type writeLog struct {
	granule int64
	size    int64
	mu      struct {
		sync.Mutex
		set writeSet
	}
}

// writeSet is a set of granules.
type writeSet struct {
	bits  []uint64
	count int64
}

func newWriteLog(size int64) *writeLog {
	w := &writeLog{granule: writeLogGranule, size: size}
	for size/w.granule >= writeLogBits {
		w.granule *= 2
	}
	w.mu.set = w.empty()
	return w
}

func (w *writeLog) empty() writeSet {
	return writeSet{bits: make([]uint64, w.size/w.granule/64+1)}
}

// note is called after a write, whatever came of it, while nobody can hold the
// disk for himself.
func (w *writeLog) note(off, n int64) {
	if n <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := off / w.granule; i <= (off+n-1)/w.granule; i++ {
		w.mu.set.add(i)
	}
}

func (s *writeSet) add(i int64) {
	if s.bits[i/64]&(1<<(i%64)) == 0 {
		s.bits[i/64] |= 1 << (i % 64)
		s.count++
	}
}

// take gives what was noted since it was taken last.
func (w *writeLog) take() writeSet {
	none := w.empty()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.mu.set
	w.mu.set = none
	return s
}

// back notes again what was taken.
func (w *writeLog) back(s writeSet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, b := range s.bits {
		for ; b != 0; b &= b - 1 {
			w.mu.set.add(int64(k)*64 + int64(bits.TrailingZeros64(b)))
		}
	}
}

// bytes is how much a set covers, at most.
func (w *writeLog) bytes(s writeSet) int64 { return s.count * w.granule }

// each calls f with the runs of a set in order, at most limit bytes of them, and
// takes them out of it.
func (w *writeLog) each(s *writeSet, limit int64, f func(off, end int64) error) error {
	from, last := int64(-1), int64(-1)
	run := func() error {
		if from < 0 {
			return nil
		}
		return f(from*w.granule, min((last+1)*w.granule, w.size))
	}
	for k := range s.bits {
		for s.bits[k] != 0 && limit > 0 {
			i := int64(k)*64 + int64(bits.TrailingZeros64(s.bits[k]))
			s.bits[k] &= s.bits[k] - 1
			s.count--
			limit -= w.granule
			if i != last+1 || from < 0 {
				if err := run(); err != nil {
					return err
				}
				from = i
			}
			last = i
		}
	}
	return run()
}

// wroteLocked notes a change of the first layer.
func (l layers) wroteLocked(off, n int64) {
	if w := l[0].written.Load(); w != nil {
		w.note(off, n)
	}
}
