package ops_test

import (
	"bytes"
	"context"
	"errors"

	"vhdfs/ops"
)

// What fake images can do about their size. A fakev image has the rules of a VHD:
// it does not shrink, and a child keeps its size.

const fakeMost = 1 << 20

func (w *fakeWriter) CanResize(size int64) error {
	switch {
	case w.Magic == "fakev" && w.Parent != nil:
		return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "fake: a child keeps its size")
	case w.Magic == "fakev" && size < w.Size():
		return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "fake: does not shrink")
	case size > fakeMost:
		return ops.Errorf(ops.ErrUsage, ops.StatusSizeInvalid, "fake: %d bytes, at most %d", size, fakeMost)
	}
	return nil
}

// Resize writes the file anew: what tests of package ops ask of a format is not
// how it survives a cut.
func (w *fakeWriter) Resize(ctx context.Context, size, below int64) error {
	if err := errors.Join(w.CanResize(size), ctx.Err()); err != nil || size == w.Size() {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	im := w.fakeImage
	old := im.Size
	im.Size, im.ID, im.blocks = size, guid(99), map[int64]byte{}
	b := im.bytes()
	sec := int64(im.Sector)
	sectors := (size + sec - 1) / sec
	for s := range sectors {
		kind := ops.Absent
		if s*sec < old {
			k, err := w.state(s)
			if err != nil {
				return err
			}
			kind = k
			if _, err := w.f.ReadAt(b[fakeData+sectors+s*sec:][:sec], w.at(s)); err != nil {
				return err
			}
		} else if s*sec < below {
			kind = ops.Zero
		}
		b[fakeData+s] = byte(kind)
	}
	if _, err := w.f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := w.f.Truncate(int64(len(b)), "fake.resize"); err != nil {
		return err
	}
	if err := w.f.Sync("fake.resize"); err != nil {
		return err
	}
	w.fakeImage, w.sectors = im, sectors
	return nil
}

// Compact drops sectors of zeros. Its file keeps its length: After says what it
// would be.
func (w *fakeWriter) Compact(ctx context.Context, o ops.CompactOptions) (ops.CompactResult, error) {
	st, err := w.f.Stat()
	if err != nil {
		return ops.CompactResult{}, err
	}
	sec := int64(w.Sector)
	r := ops.CompactResult{Before: st.Size, After: st.Size}
	for s := range w.sectors {
		if o.Progress != nil {
			o.Progress(s, w.sectors)
		}
		if err := ctx.Err(); err != nil {
			return r, err
		}
		kind, err := w.state(s)
		if err != nil {
			return r, err
		}
		b := make([]byte, sec)
		if _, err := w.f.ReadAt(b, w.at(s)); err != nil {
			return r, err
		}
		if kind != ops.Data {
			continue
		}
		if o.Trim && bytes.Equal(b[sec/2:], make([]byte, sec/2)) {
			r.Trimmed += sec / 2
		}
		free := o.Free != nil && o.Free(s*sec, sec)
		if !o.Scan || !free && !bytes.Equal(b, make([]byte, sec)) {
			continue
		}
		if err := w.drop(s, free, o, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (w *fakeWriter) drop(s int64, free bool, o ops.CompactOptions, r *ops.CompactResult) error {
	sec := int64(w.Sector)
	kind := ops.Absent
	if o.Below != nil {
		zeros, err := o.Below(s*sec, sec)
		if err != nil {
			return err
		}
		if !zeros {
			kind = ops.Zero
		}
	}
	r.Dropped++
	if o.Move {
		r.Moved, r.After = r.Moved+1, r.After-sec
	}
	if o.Dry {
		return nil
	}
	if free {
		if err := w.change("fake.free", func(im *fakeImage) { im.ID = guid(98) }); err != nil {
			return err
		}
	}
	return w.mark(s*sec, sec, kind)
}
