package vhd

import (
	"context"
	"errors"

	"vhdfs/ops"
)

// CanResize implements [ops.Resizer]: a fixed disk may grow.
func (w *fixedWriter) CanResize(size int64) error {
	return checkResize(ops.Fixed, w.Size(), size)
}

// Resize makes the disk larger; see [ops.Resizer]. There is one footer, so there
// have to be two for a while. The order:
//
//	the footer as it is at the new end; sync; space up to it
//	zeros over the old footer, and whatever stands behind the disk; sync
//	the footer with the new size; sync
//
// Before the last write a crash leaves the old size, with room between the disk
// and its footer; in the first step also a file that is long already and has no
// footer but the old one, which is found because nothing is stored behind it.
func (w *fixedWriter) Resize(_ context.Context, size, _ int64) error {
	if err := w.CanResize(size); err != nil {
		return err
	}
	switch {
	case w.poisoned.Load(): // which size it has nobody knows
		return errPoisoned
	case size == w.Size():
		return nil
	}
	if err := w.begin(); err != nil {
		return err
	}
	if size > w.tail {
		if err := w.moveFooter(size); err != nil {
			return err
		}
	}
	had := w.Size()
	if err := zeroStored(w.file, had, size-had); err != nil {
		return err
	}
	if err := w.sync("vhd.fixed.zero"); err != nil {
		return err
	}
	foot := w.foot.resized(size)
	if _, err := w.file.WriteAt(foot.raw[:], w.tail); err != nil {
		w.poisoned.Store(true) // nobody knows which footer is there
		return err
	}
	if err := w.sync("vhd.fixed.size"); err != nil {
		return err
	}
	w.foot = foot
	w.size.Store(size)
	w.describe(&foot)
	return nil
}

// moveFooter makes the file end in its footer at byte to, with space reserved
// where the host can.
func (w *fixedWriter) moveFooter(to int64) error {
	_, err := w.file.WriteAt(w.foot.raw[:], to)
	if err == nil {
		if err := w.sync("vhd.fixed.footer"); err != nil {
			return err
		}
		err = w.file.Allocate(w.tail, to-w.tail)
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return errors.Join(err, w.file.Truncate(w.tail+footerSize, "vhd.undo"))
	}
	w.tail = to
	return nil
}

// sync poisons when it fails. It holds off flushes, which would not hear of it.
func (w *fixedWriter) sync(label string) error {
	w.flushes.Lock()
	defer w.flushes.Unlock()
	err := w.file.Sync(label)
	if err != nil {
		w.poisoned.Store(true)
	}
	return err
}
