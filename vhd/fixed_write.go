package vhd

import (
	"errors"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// fixedWriter is a fixed image opened for writing. Sectors are overwritten in
// place; nothing else of the file changes but by a resize.
type fixedWriter struct {
	*fixed
	unsettable
	mending        // what Repair has to do first
	found    slots // the footer as it was when the file was opened
	foot     footer
	tail     int64       // byte offset of the footer
	cut      bool        // what follows the footer has to go first
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
	if err := w.refuse(); err != nil {
		return err
	}
	if w.mu.begun {
		return nil
	}
	if err := w.found.unchanged(w.file); err != nil {
		return err
	}
	if w.cut {
		if err := w.cutLocked(); err != nil {
			return err
		}
	}
	w.mu.begun = true
	return nil
}

// cutLocked ends the file behind its footer. A crash leaves it as it was, or with
// some of what is written now, which changes nothing about how it is read.
func (w *fixedWriter) cutLocked() error {
	if err := w.file.Truncate(w.tail+footerSize, "vhd.fixed.cut"); err != nil {
		return err
	}
	w.cut = false
	w.describe(&w.foot)
	return nil
}

// describe makes Info say what f says.
func (w *fixedWriter) describe(f *footer) {
	c := choice{f: *f}
	c.noteFixed("footer", w.tail)
	w.info.Store(c.fixedInfo())
}

func (w *fixedWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := checkSectors(off, int64(len(p)), w.Size()); err != nil {
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
	if err := checkSectors(off, n, w.Size()); err != nil {
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
