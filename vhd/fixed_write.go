package vhd

import (
	"errors"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// fixedWriter is a fixed image opened for writing. Sectors are overwritten in
// place; nothing else of the file ever changes.
type fixedWriter struct {
	*fixed
	found    slots       // the footer as it was when the file was opened
	changed  atomic.Bool // something was written since the last flush
	poisoned atomic.Bool
	flushes  sync.Mutex // held by the one that syncs; comes before mu
	mu       struct {
		sync.Mutex
		begun bool // found was compared with the file
	}
}

// begin lets a write go on, the first one only if nobody else wrote the file.
func (w *fixedWriter) begin() error {
	if w.poisoned.Load() {
		return errPoisoned
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.begun {
		return nil
	}
	if err := w.found.unchanged(w.file); err != nil {
		return err
	}
	w.mu.begun = true
	return nil
}

func (w *fixedWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := checkSectors(off, int64(len(p)), w.size); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.begin(); err != nil {
		return 0, err
	}
	n, err := w.file.WriteAt(p, off)
	w.changed.Store(true)
	return n / sectorSize * sectorSize, err
}

// Zero writes zeros, with unmap too: a fixed disk keeps its space.
func (w *fixedWriter) Zero(off, n int64, _ bool) error {
	if err := checkSectors(off, n, w.size); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if err := w.begin(); err != nil {
		return err
	}
	err := zeroStored(w.file, off, n)
	w.changed.Store(true)
	return err
}

func (w *fixedWriter) Flush() error {
	w.flushes.Lock() // one that finds nothing to do must not pass one that is under way
	defer w.flushes.Unlock()
	if w.poisoned.Load() {
		return errPoisoned
	}
	if !w.changed.Swap(false) {
		return nil
	}
	err := w.file.Sync("vhd.fixed")
	if err != nil {
		w.poisoned.Store(true)
	}
	return err
}

// Close flushes and closes the file.
func (w *fixedWriter) Close() error {
	var err error
	if !w.poisoned.Load() {
		err = w.Flush()
	}
	return errors.Join(err, w.fixed.Close())
}

var _ ops.Writer = (*fixedWriter)(nil)
