package ops

import (
	"context"
	"errors"
	"math"
	"path"
	"strings"
	"time"
)

const opSnapshotName = "snapshot"

// opSnapshot keeps the present state of a disk.
var opSnapshot = &Op{
	Name:   opSnapshotName,
	Brief:  "keep the present state: of a set, while it goes on; of another disk, which a new child takes the place of",
	Writes: true,
	Plans:  true,
	Args: []Arg{
		{Name: "Label", Kind: ArgText, Bare: true, Help: "name of the snapshot, of a set; default none but its id"},
		{Name: "SnapshotId", Short: "id", Kind: ArgID, Help: "id of the snapshot, of a set; default a random one"},
	},
	Can: func(f *Found) bool { return f.Info.Type != 0 },
	Run: runSnapshot,
}

func runSnapshot(ctx context.Context, r *Request) (Fields, error) {
	found, err := r.Library.Inspect(r.Image)
	if err == nil {
		err = found.Err
	}
	if err != nil {
		return nil, err
	}
	if found.Set != nil {
		return r.snapshotSet(ctx)
	}
	if r.Args.Has("Label") || r.Args.Has("SnapshotId") {
		return nil, Errorf(ErrUsage, 0, "%s is not a set: its snapshots have no labels and ids", r.Image.Path())
	}
	return r.snapshotDisk(ctx, found)
}

// snapshotDisk makes a child of a disk, which is read-only from then on.
func (r *Request) snapshotDisk(ctx context.Context, found *Found) (_ Fields, err error) {
	ext := path.Ext(found.Ref.Name)
	child := found.Ref
	child.Name = strings.TrimSuffix(found.Ref.Name, ext) + "_" + NewGUID().String() + ".avhd"
	if found.Format.Number == FormatVHDX {
		child.Name += "x"
	}
	t := &target{lib: r.Library, ref: child, format: found.Format, spec: CreateSpec{Type: Differencing, Now: time.Now()}}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.openParentAt(found.Ref, found.Ref.Name); err != nil {
		return nil, err
	}
	if err := t.parent.askOwner(); err != nil {
		return nil, err
	}
	t.spec.Size = t.parent.Size()
	f, err := t.produce(ctx, r, nil)
	if err == nil && !r.Dry {
		f = append(f, Field{"ParentPath", found.Ref.Path()}, Field{"Note", "the snapshot is " + found.Ref.Path() + ", read-only from now on: go on with " + child.Path()})
	}
	return f, err
}

// askOwner refuses a disk that a set manages.
func (h *Handle) askOwner() error {
	owner, err := (&resolver{lib: h.lib}).owner(h.engine().id)
	if err == nil && owner != nil {
		err = Errorf(errors.ErrUnsupported, StatusWrongState, "%s belongs to the set %s: take a snapshot of that", h.ref.Path(), owner.Ref.Path())
	}
	return err
}

// snapshotSet makes the active disk a snapshot and goes on with a new one.
func (r *Request) snapshotSet(ctx context.Context) (_ Fields, err error) {
	n := SetSnapshot{ID: r.Args.ID("SnapshotId"), Label: r.Args.Text("Label"), Type: SetSnapshotVM}
	if n.ID.IsZero() {
		n.ID = NewGUID()
	}
	s, err := r.Library.useSet(r.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.takes(n.Label, n.ID); err != nil {
		return nil, err
	}
	o, err := r.Library.Operate(r.Image, Terms{Name: opSnapshotName, Quiet: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	if len(o.chain.layers()) >= MaxChain {
		return nil, tooDeep(r.Image)
	}
	leaf := newName(r.Image.Name)
	if r.Dry {
		p := Plan{Makes: []string{s.beside(leaf).Path()}, Changes: []string{r.Image.Path()}, Free: math.MaxInt64, Size: o.Size()}
		return p.Fields(), nil
	}
	if err := o.Launder(); err != nil {
		return nil, err
	}
	r.Begin(0)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.take(o, &n, leaf); err != nil {
		return nil, err
	}
	return Fields{{"Path", r.Image.Path()}, {"SnapshotId", n.ID}, {"Label", n.Label}, {"SnapshotPath", s.beside(n.Path).Path()}, {"ActivePath", s.beside(leaf).Path()}}, nil
}

// takeTries: a guest's first write after the image was opened changes the id that
// the new disk records; there is one first write.
const takeTries = 3

// take takes a snapshot. After a crash there is
//
//	commit           the set with one more file, which it does not use and which need not be there
//	make the disk    the same
//	hold, commit     see [leafSwitch.run]
//
// An error before the second commit takes the file away again.
func (s *setInUse) take(o *Operation, n *SetSnapshot, leaf string) error {
	began := s.next()
	began.Files = append(began.Files, SetFile{Name: leaf})
	if err := s.commit(began); err != nil {
		return err
	}
	err := errOtherLink
	for range takeTries {
		if err = s.tryTake(o, n, leaf); !errors.Is(err, errOtherLink) {
			break
		}
	}
	if err != nil && !errors.Is(err, ErrPoisoned) {
		err = errors.Join(err, s.discard(leaf))
	}
	return err
}

var errOtherLink = errors.New("the active disk was written for the first time meanwhile")

func (s *setInUse) tryTake(o *Operation, n *SetSnapshot, leaf string) (err error) {
	from := o.engine()
	info, err := s.newLeaf(leaf, from, time.Now())
	if err != nil {
		return err
	}
	to, err := s.openLeaf(leaf)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.lib.release(to))
		if errors.Is(err, errOtherLink) {
			err = errors.Join(err, removeAny(to.ref.Dir, to.ref.Name))
		}
	}()
	if err := o.Launder(); err != nil {
		return err
	}
	next := s.next()
	n.Path, n.Created = next.Leaf, time.Now().UTC().Truncate(time.Millisecond)
	n.Parent = next.above(s.filesOf(o.chain.layers()[1:]))
	next.record(n.Path, info.DiskID, info.LinkID)
	next.record(leaf, info.DiskID, GUID{})
	next.Snapshots, next.Leaf = append(next.Snapshots, *n), leaf
	w := &leafSwitch{set: s, op: o, to: to, next: next, holds: func(now Info) error {
		if now.LinkID != info.LinkID {
			return errOtherLink
		}
		id, err := from.sealForLocked(to, n.Created)
		next.Snapshots[len(next.Snapshots)-1].TrackingID = id
		return err
	}}
	if err := w.run(); err != nil {
		return err
	}
	return from.downgrade()
}
