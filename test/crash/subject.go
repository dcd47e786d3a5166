package crash

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

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
	// Damaged says that the image may have to be repaired before it is written.
	Damaged bool
	// Lasting are names of anomalies that no first write mends.
	Lasting []string
	// Summed is [Recording.Summed].
	Summed func(sim.Event) bool
}

// Open opens the image alone, without its parents.
func (s *Subject) Open(h *sim.Host, a ops.Access) (ops.Layer, error) { return s.open(h, a, false) }

// open opens the image; quiet: for a session that leaves its LinkID alone until
// the guest writes.
func (s *Subject) open(h *sim.Host, a ops.Access, quiet bool) (ops.Layer, error) {
	f, err := h.Dir(path.Dir(s.Path)).Open(path.Base(s.Path), a)
	if err != nil {
		return nil, err
	}
	return s.Format.Open(f, ops.OpenOptions{
		Write:  a&ops.Write != 0,
		Quiet:  quiet,
		Repair: s.Damaged && a&ops.Write != 0,
		Ext:    strings.ToLower(path.Ext(s.Path)),
		Cache:  ops.NewCache(ops.DefaultCacheBudget),
	})
}

// Verify opens the image of a host that lost power: read-only, where it must
// read as the history allows without a byte written; then for writing, where a
// first write repairs it and must change nothing else; then once more. Its check
// must find nothing broken (C1-C4), and after a clean close nothing is left to
// mend. It gives back what it read.
func (s *Subject) Verify(h *sim.Host, allowed *History) (view *View, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	look := h.Clone()
	look.Freeze()
	view, err = s.look(look, false, allowed.closed)
	if err != nil {
		return nil, fmt.Errorf("read-only: %w", err)
	}
	if n := look.Refused(); n > 0 {
		return nil, fmt.Errorf("read-only open wanted to change %d things", n)
	}
	if err := view.Within(allowed); err != nil {
		return nil, fmt.Errorf("read-only: %w", err)
	}
	wrote, err := s.repair(h, view)
	if err != nil {
		return nil, fmt.Errorf("first write: %w", err)
	}
	after, err := s.look(h, true, wrote)
	if err == nil {
		err = after.Same(view)
	}
	if err != nil {
		return nil, fmt.Errorf("after the first write: %w", err)
	}
	return view, nil
}

// look opens read-only, reads everything, and checks; clean: nothing may be left
// to mend.
func (s *Subject) look(h *sim.Host, check, clean bool) (*View, error) {
	l, err := s.Open(h, ops.Read)
	if err != nil {
		return nil, err
	}
	v, err := s.Read(h, l)
	if clean && err == nil {
		err = s.clean(l.Info())
	}
	if s.Also != nil && err == nil {
		err = s.Also(h, l, v)
	}
	if c, ok := l.(ops.Checker); ok && err == nil && check {
		err = s.check(c)
	}
	return v, errors.Join(err, l.Close())
}

func (s *Subject) clean(i ops.Info) error {
	if i.Log != ops.LogNone && i.Log != ops.LogClean {
		return fmt.Errorf("after a clean close the log is %s", i.Log)
	}
	for _, a := range i.Anomalies {
		if a.Severity != ops.Note && !slices.Contains(s.Lasting, a.Name) {
			return fmt.Errorf("after a clean close: %s: %s", a.Name, a.Text)
		}
	}
	return nil
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

// repair opens for writing and writes one sector with what it holds already,
// which replays a log and mends what the first write mends. wrote is false for an
// empty disk, where there may be nothing to do.
func (s *Subject) repair(h *sim.Host, view *View) (wrote bool, err error) {
	l, err := s.Open(h, ops.Write)
	if err != nil {
		return false, err
	}
	w, ok := l.(ops.Writer)
	if !ok {
		return false, errors.Join(fmt.Errorf("%T is no ops.Writer", l), l.Close())
	}
	if r, ok := l.(ops.Repairer); ok && s.Damaged {
		err = r.Repair(context.Background(), func(ops.Anomaly) error { return nil })
	}
	unit := max(int64(l.Info().LogicalSector), sector)
	off, data := rewritable(view, unit)
	switch {
	case err != nil:
	case data != nil:
		wrote = true
		_, err = w.WriteAt(data, off)
	case !s.Differencing:
		err = w.Zero(0, unit, false)
	}
	if err == nil {
		err = w.Flush()
	}
	return wrote, errors.Join(err, l.Close())
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
