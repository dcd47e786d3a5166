package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
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

// View is every sector that is not blank, as it was read.
type View map[int64]value

var buffers = sync.Pool{New: func() any { return make([]byte, 256<<10) }}

// Read reads the whole disk: extents say what there is, runs what it holds.
func (s *Subject) Read(l ops.Layer) (View, error) {
	v := View{}
	buf := buffers.Get().([]byte)
	defer buffers.Put(buf)
	for off := int64(0); off < l.Size(); {
		e, err := l.Extent(off, l.Size()-off)
		if err != nil {
			return nil, err
		}
		if e.Kind == ops.Data || e.Kind == ops.Zero && s.Differencing {
			err = s.readRuns(l, off, e.Len, buf, v)
		}
		if err != nil {
			return nil, err
		}
		if e.Len <= 0 {
			return nil, fmt.Errorf("extent at %d is empty", off)
		}
		off += e.Len
	}
	return v, nil
}

func (s *Subject) readRuns(l ops.Layer, off, n int64, buf []byte, v View) error {
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
			if s.Differencing {
				v[(off+int64(at))/sector] = value{data: append([]byte(nil), b...)}
			} else if !(value{}).is(b) {
				v[(off+int64(at))/sector] = value{data: append([]byte(nil), b...)}
			}
		}
		off += int64(k)
	}
	return nil
}

// Within asks that every sector is as the history allows.
func (v View) Within(h *History) error {
	for i, got := range v {
		if err := h.allows(i, false, got.data); err != nil {
			return err
		}
	}
	for i := range h.sectors {
		if _, ok := v[i]; !ok {
			if err := h.allows(i, h.blank.absent, zeros[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// same asks that two views are equal.
func (v View) same(w View) error {
	for i, got := range v {
		want, ok := w[i]
		if !ok && got.is(zeros[:]) && !got.absent {
			continue // stored zeros may become a hole
		}
		if !ok || !want.is(got.data) {
			return fmt.Errorf("sector %d changed: %x…, was %x…", i, got.data[:16], want.data[:min(16, len(want.data))])
		}
	}
	for i, want := range w {
		if _, ok := v[i]; !ok && !want.is(zeros[:]) {
			return fmt.Errorf("sector %d is gone, was %x…", i, want.data[:16])
		}
	}
	return nil
}

// exactly is the history that allows this view alone.
func (v View) exactly(differencing bool) *History {
	h := NewHistory(differencing)
	for i, got := range v {
		h.sectors[i] = []value{got}
	}
	return h
}

// Verify opens the image of a host that lost power: read-only, where it must
// read as the history allows without a byte written; then for writing, where a
// first write repairs it and must change nothing else; then once more. Its check
// must find nothing broken (C1-C4). It gives back what it read.
func (s *Subject) Verify(h *sim.Host, allowed *History) (view View, err error) {
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
		err = after.same(view)
	}
	if err != nil {
		return nil, fmt.Errorf("after the first write: %w", err)
	}
	return view, nil
}

// look opens read-only, reads everything, and checks.
func (s *Subject) look(h *sim.Host, check bool) (View, error) {
	l, err := s.Open(h, ops.Read)
	if err != nil {
		return nil, err
	}
	v, err := s.Read(l)
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
func (s *Subject) Repair(h *sim.Host, view View) error {
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
func rewritable(view View, unit int64) (off int64, data []byte) {
	lowest := int64(-1)
	for i := range view {
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
		v, ok := view[(off+at)/sector]
		if !ok && at == 0 {
			continue
		}
		copy(data[at:], v.data)
	}
	return off, data
}
