package vfd

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// Disk is an open floppy: a [ops.Layer], safe for concurrent use.
type Disk struct {
	*ops.Raw
	file      ops.File
	bpb       bpb // of the boot sector when it was opened
	formatted bool
}

var _ ops.Layer = (*Disk)(nil)

// Info is as the disk was when it was opened.
func (d *Disk) Info() ops.Info {
	return ops.Info{
		LogicalSector:  sectorSize,
		PhysicalSector: sectorSize,
		Label:          d.bpb.label,
		Anomalies:      d.anomalies(),
	}
}

// Writer is a floppy opened for writing: a [ops.Writer], safe for concurrent
// use. Writes go to their place in the file; there is no metadata. After a crash
// each sector holds what it held before or one of the writes since the last
// flush.
type Writer struct {
	*Disk
	dirty    atomic.Bool // something was written since the last sync began
	poisoned atomic.Bool // a sync failed; set with mu held

	// mu lets one sync run at a time: the host reports a failure once, so a
	// second sync beside a failing one would be told that all is well.
	mu sync.Mutex
}

var _ ops.Writer = (*Writer)(nil)

// check refuses what no write may start with.
func (w *Writer) check(off, n int64) error {
	switch {
	case w.poisoned.Load():
		return ops.Errorf(ops.ErrPoisoned, 0, "vfd: write of %d bytes at %d", n, off)
	case off < 0 || n < 0 || off%sectorSize != 0 || n%sectorSize != 0:
		return ops.Errorf(ops.ErrUsage, 0, "vfd: %d bytes at %d are no whole sectors of %d", n, off, sectorSize)
	case off > w.Size() || n > w.Size()-off:
		return ops.Errorf(ops.ErrPastEnd, 0, "vfd: %d bytes at %d of %d", n, off, w.Size())
	}
	return nil
}

// WriteAt stores p in place.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.check(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	w.dirty.Store(true)
	n, err := w.file.WriteAt(p, off)
	if err != nil {
		return n, fmt.Errorf("vfd: %d bytes at %d: %w", len(p), off, err)
	}
	return n, nil
}

// Zero punches a hole with unmap, where the host can, and writes zeros without.
func (w *Writer) Zero(off, n int64, unmap bool) error {
	if err := w.check(off, n); err != nil || n == 0 {
		return err
	}
	w.dirty.Store(true)
	if unmap {
		err := w.file.Punch(off, n)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("vfd: unmapping %d bytes at %d: %w", n, off, err)
		}
	}
	if err := ops.WriteZeros(w.file, off, n); err != nil {
		return fmt.Errorf("vfd: %d bytes of zeros at %d: %w", n, off, err)
	}
	return nil
}

// Flush syncs the file. Nothing is assumed about it after a sync has failed.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poisoned.Load() {
		return ops.Errorf(ops.ErrPoisoned, 0, "vfd: flush")
	}
	w.dirty.Store(false)
	if err := w.file.Sync("vfd.flush"); err != nil {
		w.poisoned.Store(true)
		return fmt.Errorf("vfd: flush: %w", err)
	}
	return nil
}

// Close flushes what was written since the last flush, and closes the file.
func (w *Writer) Close() error {
	var err error
	if w.dirty.Load() {
		err = w.Flush()
	}
	return errors.Join(err, w.file.Close())
}
