package set_test

import (
	"bytes"
	"fmt"
	"sync"

	"vhdfs/ops"
)

const pieceSize = 64 << 10

type piece [pieceSize]byte

var zeroPiece = new(piece)

// image is what a disk should read as, in pieces that all states of it share: none is
// ever changed.
type image struct {
	size   int64
	pieces []*piece
}

// resized is the image with another size; what is new is zeros.
func (m image) resized(size int64) image {
	next := image{size, make([]*piece, (size+pieceSize-1)/pieceSize)}
	for i := copy(next.pieces, m.pieces); i < len(next.pieces); i++ {
		next.pieces[i] = zeroPiece
	}
	if rest := size % pieceSize; rest > 0 && size < m.size {
		clear(next.own(size / pieceSize)[rest:])
	}
	return next
}

// with is the image with b at off.
func (m image) with(off int64, b []byte) image {
	next := image{m.size, append([]*piece(nil), m.pieces...)}
	for len(b) > 0 {
		n := copy(next.own(off / pieceSize)[off%pieceSize:], b)
		b, off = b[n:], off+int64(n)
	}
	return next
}

// own makes piece i one that may be changed.
func (m image) own(i int64) *piece {
	p := *m.pieces[i]
	m.pieces[i] = &p
	return &p
}

// differs is where bytes at off, within the image, differ from it first; -1 nowhere.
func (m image) differs(got []byte, off int64) int64 {
	for at := int64(0); at < int64(len(got)); {
		is := m.pieces[(off+at)/pieceSize][(off+at)%pieceSize:]
		n := min(int64(len(is)), int64(len(got))-at)
		if !bytes.Equal(got[at:at+n], is[:n]) {
			i := at
			for got[i] == is[i-at] {
				i++
			}
			return off + i
		}
		at += n
	}
	return -1
}

// at is the byte at off.
func (m image) at(off int64) byte { return m.pieces[off/pieceSize][off%pieceSize] }

// pieces are what disks are read in, without a copy of each.
var pieces = sync.Pool{New: func() any { return new([4 * pieceSize]byte) }}

// reads compares a disk with what it must read as, its size too.
func reads(h *ops.Handle, want image) error {
	if h.Size() != want.size {
		return fmt.Errorf("%d bytes, want %d", h.Size(), want.size)
	}
	buf := pieces.Get().(*[4 * pieceSize]byte)
	defer pieces.Put(buf)
	for at := int64(0); at < want.size; {
		got := buf[:min(int64(len(buf)), want.size-at)]
		for i := int64(0); i < int64(len(got)); i += 512 {
			got[i] = ^want.at(at + i) // what is not read differs
		}
		if n, err := h.ReadAt(got, at); n < len(got) {
			return err
		}
		if i := want.differs(got, at); i >= 0 {
			return fmt.Errorf("differs at %#x", i)
		}
		at += int64(len(got))
	}
	return nil
}
