package ops

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"math"
	"path"
	"slices"
	"time"
)

// argSnapshot names a snapshot of a set.
var argSnapshot = Arg{Name: "SnapshotId", Short: "snapshot", Kind: ArgText, Required: true, Bare: true, Help: "id or label of the snapshot"}

// opApply makes a snapshot the disk's content again.
var opApply = &Op{
	Name:     "apply",
	Brief:    "go back to a snapshot of a set; what was written since is thrown away or kept as another one",
	Writes:   true,
	Plans:    true,
	Snapshot: true,
	Args: []Arg{
		argSnapshot,
		{Name: "Keep", Kind: ArgText, Help: "label of a writeable snapshot that is to hold the present state; default: that is thrown away"},
	},
	Can: canSet,
	Run: runApply,
}

func canSet(f *Found) bool { return f.Set != nil && f.Set.ReadOnly == "" }

// useSnapshot takes a set, and the snapshot of it that the request names.
func (r *Request) useSnapshot() (*setInUse, *SetSnapshot, error) {
	s, err := r.Library.useSet(r.Image)
	if err != nil {
		return nil, nil, err
	}
	n, err := s.snapshot(r.Args.Text(argSnapshot.Name))
	if err != nil {
		return nil, nil, errors.Join(err, s.close())
	}
	return s, n, nil
}

func runApply(ctx context.Context, r *Request) (_ Fields, err error) {
	s, n, err := r.useSnapshot()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if n.Path == "" {
		return nil, Errorf(errors.ErrUnsupported, StatusWrongState, "snapshot %q of %s is a reference without data", n.Name(), r.Image.Path())
	}
	a := &applying{set: s, to: *n, keep: r.Args.Text("Keep"), id: NewGUID()}
	if a.keep != "" {
		if err := s.takes(a.keep, a.id); err != nil {
			return nil, err
		}
	}
	if a.op, err = r.Library.Operate(r.Image, Terms{Name: "apply", Quiet: true, Still: true}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.op.Close()) }()
	if err := a.mayThrowAway(); err != nil {
		return nil, err
	}
	st, err := a.op.engine().file.Stat()
	if err != nil {
		return nil, err
	}
	a.old = s.set.Leaf
	if r.Dry {
		p := Plan{Changes: []string{r.Image.Path()}, Free: math.MaxInt64, Size: a.op.Size()}
		lost := int64(0)
		if a.keep == "" {
			p.Removes, lost = []string{s.beside(a.old).Path()}, st.Blocks*512
		}
		return append(p.Fields(), Field{"BytesDiscarded", lost}), nil
	}
	r.Begin(0)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := a.run(); err != nil {
		return nil, err
	}
	f := Fields{{"Path", r.Image.Path()}, {"SnapshotId", n.ID}, {"ActivePath", s.beside(a.leaf).Path()}}
	if a.keep != "" {
		f = append(f, Field{"KeptSnapshotId", a.id})
	}
	return f, nil
}

// applying is one apply.
type applying struct {
	set  *setInUse
	op   *Operation
	to   SetSnapshot
	keep string
	id   GUID   // of the snapshot that keeps the present state
	old  string // names of the disk before and after
	leaf string
}

// mayThrowAway refuses to remove what other images were made from.
func (a *applying) mayThrowAway() error {
	if a.keep != "" {
		return nil
	}
	e := a.op.engine()
	info, size, err := e.describe()
	if err != nil {
		return err
	}
	res := &resolver{lib: a.op.lib}
	children, err := res.children(&Found{Ref: e.ref, Stat: e.since(), Format: e.format, Size: size, Info: info, Leaf: e.ref})
	children = slices.DeleteFunc(children, a.op.set.unused)
	if err == nil && len(children) > 0 {
		err = Errorf(ErrReadOnly, 0, "%s is the parent of %s: keep=LABEL keeps it", e.ref.Path(), children[0].Path())
	}
	return err
}

// run makes a new disk from the snapshot the active one. After a crash there is
//
//	commit             the set with one more file, which it does not use
//	make the disk      the same
//	hold, commit       the old disk or the new one
//	remove, commit     the new disk; the old one, which is thrown away, listed or gone
func (a *applying) run() error {
	s := a.set
	a.leaf = newName(s.ref.Name)
	began := s.next()
	began.Files = append(began.Files, SetFile{Name: a.leaf})
	if err := s.commit(began); err != nil {
		return err
	}
	if err := a.change(); err != nil {
		if !errors.Is(err, ErrPoisoned) {
			err = errors.Join(err, s.discard(a.leaf))
		}
		return err
	}
	err := errors.Join(a.op.Replaced(), a.op.Resized())
	if a.keep == "" {
		err = errors.Join(err, s.discard(a.old))
	}
	return err
}

func (a *applying) change() (err error) {
	s, lib := a.set, a.op.lib
	base, err := lib.acquire(s.beside(a.to.Path), NoFollow)
	if err != nil {
		return Wrapf(err, ErrParentMissing, StatusParentNotFound, "%q of snapshot %q of %s", a.to.Path, a.to.Name(), s.ref.Path())
	}
	defer func() { err = errors.Join(err, lib.release(base)) }()
	info, err := s.set.judged(base, a.to.Path)
	if err != nil {
		return err
	}
	if _, err := s.newLeaf(a.leaf, base, time.Now()); err != nil {
		return err
	}
	if err := base.inheritTrackingNew(s.beside(a.leaf)); err != nil {
		return err
	}
	to, err := s.openLeaf(a.leaf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lib.release(to)) }()
	chain, err := lib.follow(to)
	if err != nil {
		return err
	}
	under := chain.layers()[1:]
	if under[0].id != base.id {
		return errors.Join(errReplaced(base.ref, child{found: &Found{Ref: to.ref}}), lib.releaseParents(under))
	}
	next := s.next()
	next.record(a.leaf, info.DiskID, GUID{})
	if a.keep != "" {
		next.record(a.old, a.op.Info().DiskID, a.op.Info().LinkID)
		next.Snapshots = append(next.Snapshots, SetSnapshot{ID: a.id, Label: a.keep, Type: SetSnapshotWriteable, Path: a.old,
			Parent: next.above(s.filesOf(a.op.chain.layers()[1:])), Created: time.Now().UTC().Truncate(time.Millisecond)})
	}
	next.Leaf = a.leaf
	from := a.op.engine()
	lib.mu.Lock()
	from.use.refs++ // until it is given back here
	lib.mu.Unlock()
	w := &leafSwitch{set: s, op: a.op, to: to, next: next, under: under}
	if err := w.run(); err != nil {
		if a.op.engine() == from {
			err = errors.Join(err, lib.releaseParents(under))
		}
		return errors.Join(err, lib.release(from))
	}
	return errors.Join(from.downgrade(), lib.release(from))
}

// opDelete removes a snapshot from a set.
var opDelete = &Op{
	Name:     "delete",
	Method:   "DeleteVHDSnapshot",
	Brief:    "remove a snapshot from a set; optimize gives its space back",
	Writes:   true,
	Plans:    true,
	Snapshot: true,
	Args: []Arg{
		argSnapshot,
		{Name: "PersistReferenceSnapshot", Short: "persist", Kind: ArgBool, Help: "set to true keeps the entry as a reference without data"},
	},
	Can: canSet,
	Run: runDelete,
}

// runDelete is one commit. The file stays: what lies above it reads through it.
func runDelete(_ context.Context, r *Request) (_ Fields, err error) {
	s, n, err := r.useSnapshot()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.keepOut(); err != nil {
		return nil, err
	}
	persist := r.Args.Bool("PersistReferenceSnapshot")
	switch {
	case persist && n.Type != SetSnapshotVM:
		return nil, Errorf(errors.ErrUnsupported, StatusWrongType, "snapshot %q of %s is of type %d: only one of type %d can stay as a reference", n.Name(), r.Image.Path(), n.Type, SetSnapshotVM)
	case persist && n.Path == "":
		return nil, fmt.Errorf("snapshot %q of %s as a reference: %w", n.Name(), r.Image.Path(), iofs.ErrExist)
	}
	if n.Path != "" {
		if err := s.notOpen(n.Path); err != nil {
			return nil, err
		}
	}
	next := s.next()
	i := slices.IndexFunc(next.Snapshots, func(o SetSnapshot) bool { return o.ID == n.ID })
	if persist {
		next.Snapshots[i].Path = ""
	} else {
		for k := range next.Snapshots {
			if next.Snapshots[k].Parent == n.ID {
				next.Snapshots[k].Parent = n.Parent
			}
		}
		next.Snapshots = slices.Delete(next.Snapshots, i, i+1)
	}
	if r.Dry {
		return Plan{Changes: []string{r.Image.Path()}, Free: math.MaxInt64}.Fields(), nil
	}
	r.Begin(0)
	f := Fields{{"Path", r.Image.Path()}, {"SnapshotId", n.ID}}
	if err := s.commit(next); err != nil {
		return nil, err
	}
	return append(f, Field{"OptimizeNeeded", s.set.OptimizeNeeded()}), nil
}

// OptimizeNeeded tells whether there are files that no name leads to.
func (s *Set) OptimizeNeeded() bool {
	return s.Pending != nil || slices.ContainsFunc(s.Files, func(f SetFile) bool { return !s.Refers(f.Name) })
}

// notOpen refuses a file that is open by its own name: a snapshot that is read, here or
// by another program. What the latter does is not seen while it is a parent here.
func (s *setInUse) notOpen(name string) error {
	ref := s.beside(name)
	st, err := ref.Dir.Stat(ref.Name)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	parent := false
	err = s.lib.whenFree(func() error {
		e := s.lib.mu.engines[st.ID]
		if parent = e != nil; parent && e.use.named > 0 {
			return Errorf(ErrBusy, StatusOwned, "%s is open", path.Base(ref.Name))
		}
		return nil
	})
	if err != nil || parent {
		return err
	}
	f, err := ref.Dir.Open(ref.Name, NoFollow)
	if err != nil {
		return err
	}
	return errors.Join(f.Lock(true), f.Close())
}
