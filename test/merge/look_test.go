package merge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"vhdfs/ops"
)

// disks are what [read] fills again, once they were given to free.
var disks sync.Pool

func free(b []byte) { disks.Put(&b) }

// read is the whole disk of an image, through its chain.
func read(lib *ops.Library, host string) ([]byte, error) {
	h, err := lib.Open(ref(lib, host), ops.Read)
	if err != nil {
		return nil, err
	}
	var b []byte
	if p, ok := disks.Get().(*[]byte); ok && int64(cap(*p)) >= h.Size() {
		b = (*p)[:h.Size()]
	} else {
		b = make([]byte, h.Size())
	}
	n, err := h.ReadAt(b, 0)
	if n == len(b) && err == io.EOF {
		err = nil
	}
	if n < len(b) && err == nil {
		err = io.ErrUnexpectedEOF
	}
	return b, errors.Join(err, h.Close())
}

// opens tells whether an image can be opened.
func opens(lib *ops.Library, host string) error {
	h, err := lib.Open(ref(lib, host), ops.Read)
	if err != nil {
		return err
	}
	return h.Close()
}

// piece is how much of a disk is compared at a time: it fits a processor's cache,
// and its borders lie everywhere within blocks.
const piece = 252<<10 + 512

// look reads the whole disk of an image: why it cannot be read, and what of it is
// not as any of some.
func look(lib *ops.Library, host string, allowed ...[]byte) (unread, wrong error) {
	h, err := lib.Open(ref(lib, host), ops.Read)
	if err != nil {
		return err, nil
	}
	defer func() { unread = errors.Join(unread, h.Close()) }()
	p, _ := pieces.Get().(*[]byte)
	if p == nil {
		p = new(make([]byte, piece))
	}
	defer pieces.Put(p)
	left := slices.DeleteFunc(slices.Clone(allowed), func(want []byte) bool { return int64(len(want)) != h.Size() })
	if len(left) == 0 {
		wrong = fmt.Errorf("%s: %d bytes, want %d", host, h.Size(), len(allowed[0]))
	}
	for off := int64(0); off < h.Size(); off += piece {
		b := (*p)[:min(piece, h.Size()-off)]
		n, err := h.ReadAt(b, off)
		if n < len(b) {
			return errors.Join(err, io.ErrUnexpectedEOF), nil
		}
		left = slices.DeleteFunc(left, func(want []byte) bool {
			err := same(b, want[off:off+int64(len(b))])
			if err != nil {
				wrong = fmt.Errorf("%s from byte %d: %w", host, off, err)
			}
			return err != nil
		})
	}
	if len(left) > 0 {
		wrong = nil
	}
	return nil, wrong
}

// pieces are what [look] reads into.
var pieces sync.Pool

// shows tells whether the whole disk of an image reads as want.
func shows(lib *ops.Library, host string, want []byte) error {
	unread, wrong := look(lib, host, want)
	if unread != nil {
		return fmt.Errorf("%s: %w", host, unread)
	}
	return wrong
}

func same(got, want []byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	for i := 0; i < len(got); i += 512 {
		end := min(i+512, len(got))
		if !bytes.Equal(got[i:end], want[i:end]) {
			return fmt.Errorf("sector %d reads as %x…, want %x…", i/512, got[i:i+8], want[i:i+8])
		}
	}
	return nil
}
