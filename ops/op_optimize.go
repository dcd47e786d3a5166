package ops

import (
	"context"
	"errors"
	"math"
	"path"
	"slices"
)

// opOptimize gives back the space of what a set does not show any more.
var opOptimize = &Op{
	Name:    "optimize",
	Method:  "OptimizeVHDSet",
	Brief:   "give back the space of deleted snapshots and of states that were thrown away",
	JobType: 5,
	Writes:  true,
	Plans:   true,
	Can:     canSet,
	Run:     runOptimize,
}

// runOptimize removes files that nothing refers to and nothing is made from, and
// folds the one disk that is made from such a file into it. Guests go on. It can be
// ended and broken off anywhere, and goes on when it is asked again.
func runOptimize(ctx context.Context, r *Request) (_ Fields, err error) {
	s, err := r.Library.useSet(r.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.keepOut(); err != nil {
		return nil, err
	}
	z := &optimizing{set: s, r: r, skipped: map[string]string{}}
	if r.Dry {
		return z.planned()
	}
	r.Begin(0)
	for err == nil {
		var more bool
		if err = ctx.Err(); err == nil {
			more, err = z.step(ctx)
		}
		if !more {
			break
		}
	}
	if err == nil && s.set.Plain() && len(s.set.Anomalies) > 0 { // what a change left that was broken off
		err = s.commit(s.next())
	}
	why := []string{}
	for _, w := range z.skipped {
		why = append(why, w)
	}
	slices.Sort(why)
	return Fields{{"Path", r.Image.Path()}, {"Removed", append([]string{}, z.removed...)}, {"BytesMoved", z.moved}, {"Skipped", why}}, err
}

// optimizing is one optimize.
type optimizing struct {
	set     *setInUse
	r       *Request
	removed []string
	moved   int64
	skipped map[string]string // by file: why it stays
}

// planned names the files that would go.
func (z *optimizing) planned() (Fields, error) {
	p := Plan{Changes: []string{z.set.ref.Path()}, Free: math.MaxInt64}
	for _, f := range z.set.set.Files {
		if z.set.set.Refers(f.Name) {
			continue
		}
		p.Removes = append(p.Removes, z.set.beside(f.Name).Path())
		if st, err := z.set.ref.Dir.Stat(z.set.beside(f.Name).Name); err == nil {
			p.Move += st.Blocks * 512
		}
	}
	return p.Fields(), nil
}

// step does one thing that is left to do; false when there is none.
func (z *optimizing) step(ctx context.Context) (bool, error) {
	for _, f := range z.set.set.Files {
		p, err := z.pending(f.Name)
		if err != nil {
			return false, err
		}
		if p != nil && z.skipped[f.Name] == "" {
			return true, z.busy(f.Name, z.resume(ctx, p))
		}
	}
	for _, f := range z.set.set.Files {
		if z.set.set.Refers(f.Name) || z.skipped[f.Name] != "" {
			continue
		}
		done, err := z.file(ctx, f.Name)
		if done || err != nil {
			return true, z.busy(f.Name, err)
		}
	}
	return false, nil
}

// busy lets a file be that somebody uses, or that something else keeps from going.
func (z *optimizing) busy(name string, err error) error {
	if errors.Is(err, ErrBusy) || errors.Is(err, ErrReadOnly) || errors.Is(err, errOtherFile) {
		z.skipped[name] = err.Error()
		return nil
	}
	return err
}

// pending is a merge that was broken off, seen from one of its files.
func (z *optimizing) pending(name string) (*PendingMerge, error) {
	p, err := z.set.lib.MergePending(z.set.beside(name))
	if absent(err) {
		return nil, nil
	}
	return p, err
}

// resume ends a merge that was broken off.
func (z *optimizing) resume(ctx context.Context, p *PendingMerge) error {
	from := path.Base(p.Source)
	if p.state != mergeEnded {
		return z.fold(ctx, from, p)
	}
	n, err := z.set.lib.resumeEnd(p.record, z.set.ref.Dir)
	if err != nil {
		return err
	}
	if err := errors.Join(n.run(), n.journal.close()); err != nil {
		return err
	}
	return z.forget(from)
}

// file does away with a file that nothing refers to. False when it has to stay.
func (z *optimizing) file(ctx context.Context, name string) (bool, error) {
	found, err := z.set.lib.inspect(z.set.beside(name), Read|NoFollow, false)
	if absent(err) {
		return true, z.forget(name)
	}
	if err == nil {
		err = found.Err
	}
	if err != nil {
		return false, err
	}
	kids, err := (&resolver{lib: z.set.lib}).children(found)
	if err != nil {
		return false, err
	}
	switch {
	case len(kids) == 0:
		if err := z.set.notOpen(name); err != nil {
			return false, err
		}
		return true, z.forget(name)
	case len(kids) > 1:
		return false, nil // both need it
	}
	kid := path.Base(kids[0].Name)
	if z.set.beside(kid).Path() != kids[0].Path() || !z.set.set.Owns(kid) {
		return false, nil // an image that is not the set's
	}
	if err := z.set.isRecorded(kid); err != nil {
		return false, err
	}
	return true, z.fold(ctx, kid, nil)
}

// forget removes a file, and its name from the set.
func (z *optimizing) forget(name string) error {
	if err := z.set.discard(name); err != nil {
		return err
	}
	z.removed = append(z.removed, z.set.beside(name).Path())
	return nil
}

// fold merges a disk of the set into the one that it is made from; see [merger]. The
// set says the destination where it said the source before the source is cut off.
func (z *optimizing) fold(ctx context.Context, from string, pending *PendingMerge) (err error) {
	r := *z.r
	r.Args, r.Progress = Args{}, nil
	m, err := r.openMerge(ctx, z.set.beside(from), pending, z.set)
	if err != nil {
		return err
	}
	if err = m.plan.Enough(m.dest().ref.Path()); err == nil && m.state == mergeVoid {
		for _, folder := range mergeFolders(m.files()) {
			err = errors.Join(err, m.lib.sweepMerges(folder))
		}
	}
	if err == nil {
		if z.r.Progress != nil {
			m.mover.progress = func(done int64) { z.r.Progress(z.moved+done, z.moved+max(done, m.plan.Move)) }
		}
		err = m.run(ctx)
		z.moved += m.mover.moved()
	}
	if err = errors.Join(err, m.close()); err != nil {
		return err
	}
	return z.forget(from)
}

// commitSet makes the set name the destination where it named the source, with the
// ids that it has by now. From then on nobody opens the source for it.
func (m *merger) commitSet() error {
	if m.set == nil {
		return nil
	}
	from, into := path.Base(m.source().ref.Name), path.Base(m.dest().ref.Name)
	n, link := m.set.next(), m.rec.NextID
	if n.Leaf == from {
		n.Leaf, link = into, GUID{}
	}
	n.record(into, m.diskID, link)
	for i := range n.Snapshots {
		if n.Snapshots[i].Path == from {
			n.Snapshots[i].Path = into
		}
	}
	err := m.set.commit(n)
	if errors.Is(err, ErrPoisoned) {
		m.source().refuseWrites(Errorf(ErrPoisoned, 0, "%s: its set could not be changed: %v", m.source().ref.Path(), err))
	}
	return err
}

// operate opens a file of the merge for it: the active disk of a set as that.
func (m *merger) operate(r Ref, t Terms) (*Operation, error) {
	if m.set != nil && m.set.beside(m.set.set.Leaf).Path() == r.Path() {
		r = m.set.ref
	}
	return m.lib.Operate(r, t)
}
