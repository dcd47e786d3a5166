package ops

import (
	"fmt"
	"io"
)

// Raw reads a file whose bytes are the disk: an ISO image, a floppy, the source
// of a conversion. Holes of the file are zeros. Its methods keep the contract
// of [Layer]; a file that has become shorter since is an error where the bytes
// are missing, never zeros.
type Raw struct {
	f    File
	size int64
}

// NewRaw is the first size bytes of f.
func NewRaw(f File, size int64) *Raw { return &Raw{f: f, size: size} }

// Size is the virtual size in bytes.
func (r *Raw) Size() int64 { return r.size }

// Close closes the file.
func (r *Raw) Close() error { return r.f.Close() }

// Extent is the run of data or hole at off, as the host's file system tells it.
func (r *Raw) Extent(off, max int64) (Extent, error) {
	if off < 0 || max < 1 {
		return Extent{}, Errorf(ErrUsage, 0, "extent of %d bytes at %d", max, off)
	}
	if off >= r.size {
		return Extent{}, io.EOF
	}
	max = min(max, r.size-off)
	data, hole, err := r.f.NextData(off)
	switch {
	case err == nil && data <= off:
		return Extent{Len: min(max, hole-off), Kind: Data, Pos: off}, nil
	case err == nil:
		max = min(max, data-off)
	case err != io.EOF:
		return Extent{}, fmt.Errorf("next data at %d: %w", off, err)
	}
	st, err := r.f.Stat()
	if err != nil {
		return Extent{}, err
	}
	if off+max > st.Size {
		return Extent{}, r.shrunk(off, max)
	}
	return Extent{Len: max, Kind: Zero, Pos: -1}, nil
}

// ReadRun reads the run at off.
func (r *Raw) ReadRun(p []byte, off int64) (int, Kind, error) {
	if len(p) == 0 && off >= 0 && off < r.size {
		return 0, Zero, nil
	}
	e, err := r.Extent(off, int64(len(p)))
	if err != nil {
		return 0, Zero, err
	}
	p = p[:e.Len]
	if e.Kind == Zero {
		clear(p)
		return len(p), Zero, nil
	}
	if n, err := r.f.ReadAt(p, off); n < len(p) {
		if err == io.EOF {
			err = r.shrunk(off, e.Len)
		}
		return 0, Zero, err
	}
	return len(p), Data, nil
}

func (r *Raw) shrunk(off, n int64) error {
	return fmt.Errorf("bytes %d-%d of the disk: the file of %d bytes has become shorter: %w", off, off+n-1, r.size, io.ErrUnexpectedEOF)
}
