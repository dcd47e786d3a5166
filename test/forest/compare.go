package forest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

const (
	// piece is how much of a disk is read at a time: it fits a processor's cache,
	// and its borders lie everywhere within blocks.
	piece = 252<<10 + 512
	// probe is how much of each piece is read of an image that nobody changed.
	probe = 4096
)

// reading is an image that was read and was right: the files of its chain, as they
// were, and the bytes that it was to have.
type reading struct {
	name  string
	files [deepest + 1]uint64 // revisions
	data  *byte
	n     int
	age   int // of the data
}

// known is what need not be read again as long as nobody changes any of it.
type known struct {
	right map[reading]bool
	ages  map[*byte]int // how often a guest changed the bytes in place
	looks int64
}

func newKnown() known { return known{map[reading]bool{}, map[*byte]int{}, 0} }

// reading is what a look at a disk of the model would show; false for an image that
// the model does not have, or that a guest has open.
func (f *Forest) reading(h *sim.Host, name string, want []byte) (r reading, ok bool) {
	d := f.disk(name)
	if d == nil || d == f.user || len(want) == 0 {
		return r, false
	}
	r = reading{name: name, data: &want[0], n: len(want), age: f.known.ages[&want[0]]}
	for i := range r.files {
		var err error
		if r.files[i], err = h.Revision(folder + d.name); err != nil {
			return r, false
		}
		if d = d.parent; d == nil {
			return r, true
		}
	}
	return r, false
}

// disk is that of a name, nil where there is none.
func (f *Forest) disk(name string) *disk {
	for _, d := range f.disks {
		if d.name == name {
			return d
		}
	}
	return nil
}

// compare reads the disk of an image of a host, through its chain, and asks that it
// is one of some: all of it, or a part of each piece where it was right as the first
// of them and no file of its chain was changed since, or where all is read through
// the guest's handle.
func (f *Forest) compare(lib *ops.Library, h *sim.Host, name string, allowed ...[]byte) error {
	o, err := lib.Open(lib.Top(name), ops.Read)
	if err != nil {
		return &shut{err}
	}
	defer func() { _ = o.Close() }() // of a reader
	r, ok := f.reading(h, name, allowed[0])
	if ok && f.known.right[r] || f.user != nil && h == f.host && &allowed[0][0] == &f.user.data[0] {
		f.known.looks++
		return compareOpen(o, f.known.looks*probe%(piece-probe), probe, allowed[0])
	}
	return compareOpen(o, 0, piece, allowed...)
}

// shut is the error of an image that does not open.
type shut struct{ error }

func (s *shut) Unwrap() error { return s.error }

// buffers are for reading pieces.
var buffers = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}

// compareOpen reads n bytes of each piece of a disk, from byte from of the piece on.
func compareOpen(h *ops.Handle, from, n int64, allowed ...[]byte) error {
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
	for off := from; off < h.Size(); off += piece {
		b := (*p)[:min(n, h.Size()-off)]
		for i := 0; i < len(b); i += 512 {
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

// reads asks that images of a host read as a view says.
func (f *Forest) reads(lib *ops.Library, h *sim.Host, view map[string][]byte) error {
	for name, want := range view {
		if err := f.compare(lib, h, name, want); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// look reads all images, through the guest that stays as well.
func (f *Forest) look() error {
	view := f.view()
	if f.user != nil {
		if err := compareOpen(f.writer, 0, piece, f.user.data); err != nil {
			return fmt.Errorf("the open disk: %w", err)
		}
		if f.former != "" { // its own name is taken as long as the guest stays
			delete(view, f.user.name)
			view[f.former] = f.user.data
		}
	}
	if err := f.reads(f.lib, f.host, view); err != nil {
		return err
	}
	for name, want := range view {
		if r, ok := f.reading(f.host, name, want); ok {
			f.known.right[r] = true
		}
	}
	return nil
}
