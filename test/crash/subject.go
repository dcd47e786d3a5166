package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// Subject is an image that a workload changes.
type Subject struct {
	Format       *ops.Format
	Path         string // host path
	Differencing bool   // absent sectors are told from zeros
	// Also is one more thing that must hold in each state, of the image as it is
	// found; nil: nothing.
	Also func(h *sim.Host, l ops.Layer, v *View) error
}

// Open opens the image alone, without its parents.
func (s *Subject) Open(h *sim.Host, a ops.Access) (ops.Layer, error) {
	f, err := h.Dir(path.Dir(s.Path)).Open(path.Base(s.Path), a)
	if err != nil {
		return nil, err
	}
	return s.Format.Open(f, ops.OpenOptions{
		Write: a&ops.Write != 0,
		Ext:   strings.ToLower(path.Ext(s.Path)),
		Cache: ops.NewCache(ops.DefaultCacheBudget),
	})
}

// View is a whole disk as it was read.
type View struct {
	data   map[int64][]byte // sectors that are not zeros
	stored [][2]int64       // of a differencing disk: runs of sectors that are not absent, in order
}

var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// Read reads the whole disk: extents say what there is, runs what it holds, but
// where data stand in a hole of the host file they are taken for the zeros that
// they are.
func (s *Subject) Read(h *sim.Host, l ops.Layer) (*View, error) {
	f, err := h.Dir(path.Dir(s.Path)).Open(path.Base(s.Path), ops.Read)
	if err != nil {
		return nil, err
	}
	v, err := s.read(f, l)
	return v, errors.Join(err, f.Close())
}

func (s *Subject) read(f ops.File, l ops.Layer) (*View, error) {
	v := &View{data: map[int64][]byte{}}
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	for off := int64(0); off < l.Size(); {
		e, err := l.Extent(off, l.Size()-off)
		if err != nil {
			return nil, err
		}
		if e.Len <= 0 {
			return nil, fmt.Errorf("extent at %d is empty", off)
		}
		if e.Kind == ops.Data {
			if err := readStored(f, l, off, e, buf[:], v); err != nil {
				return nil, err
			}
		}
		if s.Differencing && e.Kind != ops.Absent {
			v.stored = append(v.stored, [2]int64{off / sector, (off + e.Len) / sector})
		}
		off += e.Len
	}
	return v, nil
}

// readStored reads an extent of data where its file is no hole. Blocks start, and
// holes end, at whole sectors of the file.
func readStored(f ops.File, l ops.Layer, off int64, e ops.Extent, buf []byte, v *View) error {
	for at, end := e.Pos, e.Pos+e.Len; at < end; {
		data, hole, err := f.NextData(at)
		if err == io.EOF || data >= end {
			return nil
		}
		if err != nil {
			return err
		}
		if at = min(hole, end); data < at {
			err = readRuns(l, off+data-e.Pos, at-data, buf, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readRuns(l ops.Layer, off, n int64, buf []byte, v *View) error {
	for end := off + n; off < end; {
		k, kind, err := l.ReadRun(buf[:min(int64(len(buf)), end-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if k <= 0 || kind == ops.Absent {
			return fmt.Errorf("run at %d of a stored extent: %d bytes of kind %d", off, k, kind)
		}
		for at := 0; at < k; at += sector {
			b := buf[at:min(at+sector, k)]
			if !isZero(b) {
				v.data[(off+int64(at))/sector] = append([]byte(nil), b...)
			}
		}
		off += int64(k)
	}
	return nil
}

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// absent tells whether a differencing disk leaves a sector to its parent.
func (v *View) absent(i int64) bool {
	_, found := slices.BinarySearchFunc(v.stored, i, func(r [2]int64, i int64) int {
		switch {
		case r[1] <= i:
			return -1
		case r[0] > i:
			return 1
		}
		return 0
	})
	return !found
}

// Within asks that every sector is as the history allows.
func (v *View) Within(h *History) error {
	for i, b := range v.data {
		if err := h.allows(i, false, b); err != nil {
			return err
		}
	}
	for i := range h.sectors {
		if v.data[i] == nil {
			if err := h.allows(i, h.blank.absent && v.absent(i), zeros[:]); err != nil {
				return err
			}
		}
	}
	for _, r := range v.stored {
		for i := r[0]; i < r[1]; i++ {
			if _, known := h.sectors[i]; !known {
				return h.allows(i, false, zeros[:])
			}
		}
	}
	return nil
}

// Same asks that two views of a disk are equal.
func (v *View) Same(w *View) error {
	for i, b := range v.data {
		if !bytes.Equal(b, w.data[i]) {
			return fmt.Errorf("sector %d changed: %x…, was %.16x…", i, b[:16], w.data[i])
		}
	}
	for i, b := range w.data {
		if v.data[i] == nil {
			return fmt.Errorf("sector %d is gone, was %x…", i, b[:16])
		}
	}
	for _, pair := range [][2]*View{{v, w}, {w, v}} {
		for _, r := range pair[0].stored {
			for i := r[0]; i < r[1]; i++ {
				if pair[1].absent(i) {
					return fmt.Errorf("sector %d: stored or absent, which has changed", i)
				}
			}
		}
	}
	return nil
}

// exactly is the history that allows this view alone.
func (v *View) exactly(differencing bool) *History {
	h := NewHistory(differencing)
	for _, r := range v.stored {
		for i := r[0]; i < r[1]; i++ {
			h.sectors[i] = []value{{}}
		}
	}
	for i, b := range v.data {
		h.sectors[i] = []value{{data: b}}
	}
	return h
}

// Verify opens the image of a host that lost power: read-only, where it must
// read as the history allows without a byte written; then for writing, where a
// first write repairs it and must change nothing else; then once more. Its check
// must find nothing broken (C1-C4). It gives back what it read.
func (s *Subject) Verify(h *sim.Host, allowed *History) (view *View, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	look := h.Clone()
	look.Freeze()
	view, err = s.look(look, false)
	if err != nil {
		return nil, fmt.Errorf("read-only: %w", err)
	}
	if n := look.Refused(); n > 0 {
		return nil, fmt.Errorf("read-only open wanted to change %d things", n)
	}
	if err := view.Within(allowed); err != nil {
		return nil, fmt.Errorf("read-only: %w", err)
	}
	if err := s.Repair(h, view); err != nil {
		return nil, fmt.Errorf("first write: %w", err)
	}
	after, err := s.look(h, true)
	if err == nil {
		err = after.Same(view)
	}
	if err != nil {
		return nil, fmt.Errorf("after the first write: %w", err)
	}
	return view, nil
}

// look opens read-only, reads everything, and checks.
func (s *Subject) look(h *sim.Host, check bool) (*View, error) {
	l, err := s.Open(h, ops.Read)
	if err != nil {
		return nil, err
	}
	v, err := s.Read(h, l)
	if s.Also != nil && err == nil {
		err = s.Also(h, l, v)
	}
	if c, ok := l.(ops.Checker); ok && err == nil && check {
		err = s.check(c)
	}
	return v, errors.Join(err, l.Close())
}

func (s *Subject) check(c ops.Checker) error {
	var broken error
	err := c.Check(context.Background(), func(a ops.Anomaly) {
		if a.Severity == ops.Broken {
			broken = errors.Join(broken, fmt.Errorf("check: %s: %s", a.Name, a.Text))
		}
	})
	return errors.Join(err, broken)
}

// Repair opens for writing and writes one sector with what it holds already,
// which replays a log and mends what the first write mends.
func (s *Subject) Repair(h *sim.Host, view *View) error {
	l, err := s.Open(h, ops.Write)
	if err != nil {
		return err
	}
	w, ok := l.(ops.Writer)
	if !ok {
		return errors.Join(fmt.Errorf("%T is no ops.Writer", l), l.Close())
	}
	unit := max(int64(l.Info().LogicalSector), sector)
	off, data := rewritable(view, unit)
	switch {
	case data != nil:
		_, err = w.WriteAt(data, off)
	case !s.Differencing:
		err = w.Zero(0, unit, false)
	}
	if err == nil {
		err = w.Flush()
	}
	return errors.Join(err, l.Close())
}

// rewritable is a whole logical sector that holds something, and its bytes; nil
// when there is none.
func rewritable(view *View, unit int64) (off int64, data []byte) {
	lowest := int64(-1)
	for i := range view.data {
		if lowest < 0 || i < lowest {
			lowest = i
		}
	}
	if lowest < 0 {
		return 0, nil
	}
	off = lowest * sector / unit * unit
	data = make([]byte, unit)
	for at := int64(0); at < unit; at += sector {
		copy(data[at:], view.data[(off+at)/sector])
	}
	return off, data
}
