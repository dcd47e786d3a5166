package folder

import (
	"errors"
	"io"

	"vhdfs/ops"
)

const (
	// Piece is how much is read at once.
	Piece = 64 << 10
	// SmallDisk is the largest disk that is read whole.
	SmallDisk = 16 << 20
	// samples bounds the runs of a larger disk that are read, and the bytes at
	// either end of it.
	samples     = 64
	sampledEnds = 1 << 20
)

// Sight is everything that an image showed.
type Sight struct {
	Found *ops.Found // nil: not even that
	Chain []ops.Link
	Err   error // of Inspect, the image itself or opening it with its parents
	Size  int64
	Data  []byte // of a small disk, pieces that failed are zeros; nil otherwise
	Bad   []Bad  // pieces that could not be read
}

// Bad is a piece of a disk that could not be read.
type Bad struct {
	Off int64
	Err error
}

// See inspects an image, follows its chain and opens it; content is for [Sight.Read].
func See(l *ops.Library, name string) (*Sight, *ops.Handle) {
	s := &Sight{}
	if s.Found, s.Err = l.Inspect(l.Top(name)); s.Err != nil {
		return s, nil
	}
	s.Chain, s.Err = l.ChainOf(l.Top(name))
	if s.Err == nil {
		s.Err = s.Chain[len(s.Chain)-1].Err
	}
	h, err := l.Open(l.Top(name), ops.Read)
	switch {
	case err != nil && s.Err == nil:
		s.Err = err
	case err == nil && s.Err != nil:
		s.Err = errors.Join(errors.New("it opened, although its chain is broken"), s.Err, h.Close())
		return s, nil
	}
	return s, h
}

// Read reads what can be reached and closes the handle.
func (s *Sight) Read(h *ops.Handle) error {
	s.Size = h.Size()
	if s.Size <= SmallDisk {
		s.Data = make([]byte, s.Size)
		for off := int64(0); off < s.Size; off += Piece {
			s.piece(h, s.Data[off:min(off+Piece, s.Size)], off)
		}
	} else {
		s.sample(h)
	}
	return errors.Join(odd(h), h.Close())
}

// piece reads all of p or notes why not.
func (s *Sight) piece(h *ops.Handle, p []byte, off int64) {
	n, err := h.ReadAt(p, off)
	if err == io.EOF && n == len(p) {
		err = nil
	}
	if err == nil && n < len(p) {
		err = io.ErrNoProgress
	}
	if err != nil {
		clear(p)
		s.Bad = append(s.Bad, Bad{off, err})
	}
}

// sample reads both ends of a large disk and the first bytes of its runs.
func (s *Sight) sample(h *ops.Handle) {
	buf := make([]byte, Piece)
	for off := int64(0); off < sampledEnds; off += Piece {
		s.piece(h, buf, off)
		s.piece(h, buf, s.Size-sampledEnds+off)
	}
	at := int64(0)
	for i := 0; i < samples && at < s.Size; i++ {
		e, err := h.Extent(at, s.Size-at)
		if err != nil || e.Len <= 0 {
			s.Bad = append(s.Bad, Bad{at, errors.Join(err, errNoExtent)})
			return
		}
		s.piece(h, buf[:min(int64(len(buf)), s.Size-at)], at)
		at += e.Len
	}
}

var errNoExtent = errors.New("no extent")

// odd asks for offsets that no disk has. Wrong answers are errors; a panic ends
// the test.
func odd(h *ops.Handle) error {
	p := make([]byte, 512)
	for _, off := range []int64{h.Size(), h.Size() + 1, 1<<63 - 1} {
		if n, err := h.ReadAt(p, off); n != 0 || err != io.EOF {
			return errors.Join(errors.New("read past the end"), err)
		}
	}
	for _, off := range []int64{-1, -1 << 63} {
		if n, err := h.ReadAt(p, off); n != 0 || err == nil {
			return errors.New("read before the start")
		}
		if _, err := h.Extent(off, 1); err == nil {
			return errors.New("extent before the start")
		}
	}
	return nil
}
