package mount

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mostWrite is the longest write of a load, in bytes, and mostPunch the longest
// hole: one that holds whole blocks.
const (
	mostWrite = stripe
	mostPunch = 4 * mib
)

// Load is [Writers] programs that write to one disk until it fails under them.
type Load struct {
	journal *Journal
	writers sync.WaitGroup
	stop    atomic.Bool
	failed  atomic.Pointer[error] // the first failure
}

// Load starts the writers on a disk. Three write through the page cache, the
// last with O_DIRECT. seed decides what they do.
func (j *Journal) Load(raw string, seed uint64) (*Load, error) {
	l := &Load{journal: j}
	j.kept.closed = false
	for w := range Writers {
		flags := os.O_RDWR
		if w == Writers-1 {
			flags |= unix.O_DIRECT
		}
		f, err := os.OpenFile(raw, flags, 0)
		if err != nil {
			return nil, errors.Join(err, l.Stop())
		}
		l.writers.Add(1)
		go func() {
			defer l.writers.Done()
			err := l.run(f, w, rand.New(rand.NewPCG(seed, uint64(w))))
			if err != nil {
				err = fmt.Errorf("writer %d: %w", w, err)
				l.failed.CompareAndSwap(nil, &err)
			}
			_ = f.Close() // the disk may have gone
		}()
	}
	return l, nil
}

// Err is the first failure of a writer, nil while all goes well.
func (l *Load) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Stop ends the writers and gives their first failure. It returns only when all
// have ended, so that what was asked for is known; one that hangs is an error.
func (l *Load) Stop() error {
	l.stop.Store(true)
	ended := make(chan struct{})
	go func() {
		l.writers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return l.Err()
	case <-time.After(time.Minute):
		return errors.New("a writer hangs in a system call")
	}
}

// run is one writer: of 32 steps two are flushes and one punches a hole.
func (l *Load) run(f *os.File, w int, rng *rand.Rand) error {
	j := l.journal
	buf := aligned(mostWrite)
	for !l.stop.Load() {
		var err error
		switch rng.IntN(32) {
		case 0:
			err = j.flush(func() error { return unix.Fsync(int(f.Fd())) })
		case 1:
			err = j.flush(func() error { return unix.Fdatasync(int(f.Fd())) })
		case 2:
			err = j.punch(f, w, rng)
		default:
			err = j.write(f, w, rng, buf)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *Journal) flush(sync func() error) error {
	c := j.covered()
	if err := sync(); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	j.acknowledge(c)
	return nil
}

func (j *Journal) write(f *os.File, w int, rng *rand.Rand, buf []byte) error {
	off, n := pick(rng, j.size, w, mostWrite)
	j.seqs[w]++
	s := newStamp(w, j.seqs[w])
	j.ask(off, n, s)
	for at := int64(0); at < n; at += sector {
		s.fill(buf[at:at+sector], (off+at)/sector)
	}
	if _, err := f.WriteAt(buf[:n], off); err != nil {
		return err
	}
	j.done[w].Store(s.seq())
	j.Counts.Writes.Add(1)
	return nil
}

func (j *Journal) punch(f *os.File, w int, rng *rand.Rand) error {
	off, n := pick(rng, j.size, w, mostPunch)
	j.seqs[w]++
	s := newStamp(w, j.seqs[w]) | punched
	j.ask(off, n, s)
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil {
		return fmt.Errorf("punch %d at %d: %w", n, off, err)
	}
	j.done[w].Store(s.seq())
	j.Counts.Punches.Add(1)
	return nil
}

// aligned is memory that O_DIRECT takes.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (page - 1)
	return b[skip : skip+n : skip+n]
}
