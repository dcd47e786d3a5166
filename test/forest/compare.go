package forest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"vhdfs/ops"
)

// piece is how much of a disk is read at a time: it fits a processor's cache, and its
// borders lie everywhere within blocks.
const piece = 252<<10 + 512

// compare reads the whole disk of an image, through its chain, and asks that it is
// one of some.
func compare(lib *ops.Library, name string, allowed ...[]byte) error {
	h, err := lib.Open(lib.Top(name), ops.Read)
	if err != nil {
		return &shut{err}
	}
	defer func() { _ = h.Close() }() // of a reader
	return compareOpen(h, allowed...)
}

// shut is the error of an image that does not open.
type shut struct{ error }

func (s *shut) Unwrap() error { return s.error }

// buffers are for reading pieces.
var buffers = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}

func compareOpen(h *ops.Handle, allowed ...[]byte) error {
	var left [][]byte
	for _, want := range allowed {
		if int64(len(want)) == h.Size() {
			left = append(left, want)
		}
	}
	if len(left) == 0 {
		return fmt.Errorf("%d bytes, want %d", h.Size(), len(allowed[0]))
	}
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	for off := int64(0); off < h.Size(); off += piece {
		b := (*p)[:min(piece, h.Size()-off)]
		for i := 0; i < len(b); i += 256 {
			b[i] = ^left[0][off+int64(i)] // what is not read differs
		}
		if _, err := h.ReadAt(b, off); err != nil && err != io.EOF {
			return err
		}
		var err error
		fits := left[:0]
		for _, want := range left {
			if one := same(b, want[off:off+int64(len(b))], off); one == nil {
				fits = append(fits, want)
			} else {
				err = errors.Join(err, one)
			}
		}
		if left = fits; len(left) == 0 {
			return err
		}
	}
	return nil
}

func same(got, want []byte, off int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range want {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d reads as %#x, want %#x", off+int64(i), got[i], want[i])
		}
	}
	return nil
}

// reads asks that images read as a view says.
func reads(lib *ops.Library, view map[string][]byte) error {
	for name, want := range view {
		if err := compare(lib, name, want); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
