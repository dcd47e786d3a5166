package forest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// action is one request to an operation, and what has to come of it.
type action struct {
	op, image, request string
	refused            error             // what it has to be refused for; nil: it succeeds
	made               string            // the image that it makes
	line               []string          // of a merge: the source first, the destination last
	once               bool              // asked twice it is another one
	after              map[string][]byte // what every image reads as then
	commit             func()            // makes the model so
}

// then is an action that makes a disk.
func (a *action) then(f *Forest, d *disk) *action {
	a.after = f.view()
	a.after[d.name] = d.data
	a.commit = func() { f.disks = append(f.disks, d) }
	return a
}

// alone is an action that changes no byte of any disk.
func (a *action) alone(f *Forest) *action {
	a.after, a.commit = f.view(), func() {}
	return a
}

// refuse is an action that must not be carried out.
func (a *action) refuse(f *Forest, why error) *action {
	a.refused = why
	return a.alone(f)
}

// do is the request, as a control file would run it.
func (a *action) do(lib *ops.Library) ops.Answer { return request(lib, a.op, a.image, a.request) }

func request(lib *ops.Library, name, image, text string) ops.Answer {
	op := ops.All[slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == name })]
	args, err := op.Parse(text)
	if err != nil {
		return op.Refuse(err)
	}
	return op.Do(context.Background(), &ops.Request{Library: lib, Image: lib.Top(image), Args: args})
}

// run carries an action out, and looks at all images.
func (f *Forest) run(a *action) error {
	f.trail = append(f.trail, fmt.Sprintf("%s %s %s", a.op, a.image, a.request))
	if err := f.prepare(a); err != nil {
		return err
	}
	answer := a.do(f.lib)
	switch {
	case a.refused == nil && answer.Err != nil:
		return fmt.Errorf("%s: %w", a.op, answer.Err)
	case !errors.Is(answer.Err, a.refused):
		return fmt.Errorf("%s: answered %v, want %v", a.op, answer.Err, a.refused)
	}
	if a.refused == nil {
		a.commit()
	}
	return f.look()
}

// look reads all images, through the guest that stays as well.
func (f *Forest) look() error {
	view := f.view()
	if f.user != nil {
		if err := compareOpen(f.writer, f.user.data); err != nil {
			return fmt.Errorf("the open disk: %w", err)
		}
		if f.former != "" { // its own name is taken as long as the guest stays
			delete(view, f.user.name)
			view[f.former] = f.user.data
		}
	}
	return reads(f.lib, view)
}

// prepare tries the action dry, or cuts it short elsewhere and here.
func (f *Forest) prepare(a *action) error {
	cut := f.Cut != Whole && a.refused == nil && !a.once && f.rng.IntN(3) == 0
	switch {
	case cut && f.Cut == Faults:
		return f.fail(a)
	case cut && f.Cut == Crashes:
		return f.crash(a)
	case f.rng.IntN(4) > 0:
		return nil
	}
	before := f.host.Changes()
	answer := request(f.lib, a.op, a.image, a.request+" dryrun=true")
	if !errors.Is(answer.Err, a.refused) || a.refused == nil && answer.Err != nil {
		return fmt.Errorf("%s: the dry run answered %v, want %v", a.op, answer.Err, a.refused)
	}
	if n := f.host.Changes() - before; n != 0 {
		return fmt.Errorf("%s: the dry run made %d changes", a.op, n)
	}
	return nil
}

func exists(h *sim.Host, name string) bool {
	_, err := h.Dir(folder).Stat(name)
	return err == nil
}

// judge asks of a host on which an action began, and perhaps ended, that nothing
// is lost: each image reads as before or as afterwards, those that a merge works on
// may be shut, but not both ends.
func (a *action) judge(lib *ops.Library, h *sim.Host, before map[string][]byte) error {
	open := false // one end of a merge
	for name, want := range before {
		allowed := [][]byte{want}
		if after, ok := a.after[name]; ok {
			allowed = append(allowed, after)
		}
		err, at := compare(lib, name, allowed...), slices.Index(a.line, name)
		if s := (*shut)(nil); at >= 0 && errors.As(err, &s) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		open = open || at == 0 || at == len(a.line)-1
	}
	if len(a.line) > 0 && !open {
		return errors.New("neither source nor destination opens")
	}
	if a.made == "" || !exists(h, a.made) {
		return nil
	}
	return reads(lib, map[string][]byte{a.made: a.after[a.made]})
}

// complete goes on with an action that was cut short.
func (a *action) complete(lib *ops.Library, h *sim.Host) error {
	switch {
	case a.made != "" && exists(h, a.made):
		return nil
	case len(a.line) > 0:
		return a.completeMerge(lib, h)
	}
	return a.do(lib).Err
}

// completeMerge asks through whichever file is left.
func (a *action) completeMerge(lib *ops.Library, h *sim.Host) error {
	at, text := a.line[0], a.request
	for i := 0; !exists(h, at); i++ {
		at, text = a.line[i+1], "1"
	}
	_, kept := a.after[at]
	if err := compare(lib, at, a.after[a.line[len(a.line)-1]]); kept || errors.Is(err, ops.ErrParentMismatch) {
		if p, err := lib.MergePending(lib.Top(at)); p == nil || err != nil {
			return err // it was over
		}
	}
	return request(lib, a.op, at, text).Err
}
