package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// openMerge looks at everything that a merge of the source needs, takes the files
// for it, and says what it will do. It changes nothing.
func (r *Request) openMerge(ctx context.Context, source Ref, pending *PendingMerge, set *setInUse) (_ *merger, err error) {
	m := &merger{lib: r.Library, res: &resolver{lib: r.Library}, set: set}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	terms := Terms{Name: opMergeName, Quiet: true, set: set != nil}
	if pending != nil {
		m.rec, m.state, terms.merge = pending.record, pending.state, pending.record.ID
	}
	if m.src, err = m.operate(source, terms); err != nil {
		return nil, err
	}
	if err := m.findLine(r); err != nil {
		return nil, err
	}
	if err := m.otherMerges(r.Dry); err != nil {
		return nil, err
	}
	if err := m.claimWithKids(); err != nil {
		return nil, err
	}
	if err := m.siblings(r.Args.Bool("Force")); err != nil {
		return nil, err
	}
	if m.destW, err = m.change(m.dest()); err != nil {
		return nil, err
	}
	if m.hingeW, err = m.change(m.hinge()); err != nil {
		return nil, err
	}
	if err := m.able(); err != nil {
		return nil, err
	}
	if m.rec == nil {
		if err := m.newRecord(r.Args.Bool("Keep")); err != nil {
			return nil, err
		}
	}
	m.mover = &mover{lib: m.lib, upper: layers(m.line[:len(m.line)-1]), dest: m.dest(), block: m.blockSize()}
	return m, m.makePlan(ctx)
}

// findLine follows the chain from the source to the destination.
func (m *merger) findLine(r *Request) error {
	layers := m.src.chain.layers()
	if len(layers) < 2 {
		return Errorf(errors.ErrUnsupported, StatusWrongType, "%s has no parent that it could be merged into", m.src.ref.Path())
	}
	to := 1
	if r.Args.Has("DestinationPath") {
		typed := r.Args.Text("DestinationPath")
		ref, err := r.place("into", typed, slices.Concat(m.lib.opts.Search, m.lib.opts.Allow)...)
		if err != nil {
			return err
		}
		st, err := ref.Dir.Stat(ref.Name)
		if err != nil {
			return err
		}
		to = slices.IndexFunc(layers, func(e *Engine) bool { return e.id == st.ID })
		if to < 1 {
			return Errorf(ErrUsage, StatusParentNotFound, "into=%q is no parent of %s, however far above", typed, m.src.ref.Path())
		}
	} else if m.rec != nil {
		to = len(m.rec.Files) - 1
	}
	if keep := r.Args.Bool("Keep"); m.rec != nil && r.Args.Has("Keep") && keep != m.rec.Keep {
		return Errorf(ErrUsage, 0, "keep=%t: the merge was begun with keep=%t", keep, m.rec.Keep)
	}
	if m.rec != nil && !m.isLine(layers[:min(to+1, len(layers))]) {
		return Errorf(ErrBusy, StatusOwned, "the merge of %s into %s is not finished, and this is another one",
			m.rec.path(m.rec.source()), m.rec.path(m.rec.destination()))
	}
	m.line = layers[:to+1]
	return m.noLinks()
}

// otherMerges refuses files that another merge is about. One of which nothing but
// its journal is left is ended.
func (m *merger) otherMerges(dry bool) error {
	for _, e := range m.line[1:] {
		info, _, err := e.describe()
		if err != nil {
			return err
		}
		p, err := m.lib.mergeOf(e.ref, e.id, info.LinkID)
		switch {
		case err != nil:
			return err
		case p == nil, m.rec != nil && p.record.ID == m.rec.ID:
		case p.role != roleDestination || p.state != mergeEnded:
			return p.refusal(e.ref.Path())
		case !dry:
			if err := m.lib.endEmptyMerge(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// isLine tells whether these are the files of the record.
func (m *merger) isLine(layers []*Engine) bool {
	return slices.EqualFunc(m.rec.Files, layers, func(f mergeFile, e *Engine) bool {
		return m.rec.path(&f) == e.ref.Path() || f.Inode == e.id.Ino
	})
}

// noLinks refuses a source that is named through a symbolic link: its journal has
// to lie beside the file itself. Parents are never found through one.
func (m *merger) noLinks() error {
	ref := m.src.ref
	f, err := ref.Dir.Open(ref.Name, Read|NoFollow)
	if err != nil {
		return err
	}
	return f.Close()
}

// claimWithKids finds the images that were made from the source and takes them.
func (m *merger) claimWithKids() error {
	kids, err := m.findKids()
	if err != nil {
		return err
	}
	ids := make([]FileID, len(kids))
	for i, k := range kids {
		st, err := k.Dir.Stat(k.Name)
		if err != nil {
			return err
		}
		ids[i] = st.ID
	}
	if err := m.claim(ids); err != nil {
		return err
	}
	m.res = &resolver{lib: m.lib} // from now on nobody makes another one
	again, err := m.findKids()
	if err != nil {
		return err
	}
	if !slices.EqualFunc(kids, again, func(a, b Ref) bool { return a.Path() == b.Path() }) {
		return Errorf(ErrBusy, StatusParentOpen, "%s just had another image made from it", m.src.ref.Path())
	}
	for _, k := range kids {
		o, err := m.operate(k, Terms{Name: opMergeName, Quiet: true, set: m.set != nil})
		if err != nil {
			return err
		}
		m.kids = append(m.kids, o)
	}
	return m.owners()
}

func (m *merger) findKids() ([]Ref, error) { return m.childrenOf(m.source()) }

func (m *merger) childrenOf(e *Engine) ([]Ref, error) {
	info, size, err := e.describe()
	if err != nil {
		return nil, err
	}
	return m.res.children(&Found{Ref: e.ref, Stat: e.since(), Format: e.format, Size: size, Info: info, Leaf: e.ref})
}

// siblings refuses to change what other images were made from. Once everything
// is moved, those of the destination are right.
func (m *merger) siblings(force bool) error {
	if m.state == mergeMoved {
		return nil
	}
	for i, e := range m.line[1:] {
		children, err := m.childrenOf(e)
		if err != nil {
			return err
		}
		for _, c := range children {
			st, err := c.Dir.Stat(c.Name)
			if err != nil {
				return err
			}
			if st.ID == m.line[i].id || m.isKid(st.ID) {
				continue
			}
			if !force {
				return Errorf(ErrReadOnly, 0, "%s is also the parent of %s, which the merge would break; force=true goes on all the same", e.ref.Path(), c.Path())
			}
			m.lost = append(m.lost, c)
		}
	}
	return nil
}

func (m *merger) isKid(id FileID) bool {
	return slices.ContainsFunc(m.kids, func(k *Operation) bool { return k.engine().id == id })
}

// able asks the formats for what will be needed of them.
func (m *merger) able() error {
	need := func(ok bool, e *Engine, what string) error {
		if ok {
			return nil
		}
		return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: a %s image of this type cannot be given %s", e.ref.Path(), e.format.Name, what)
	}
	_, ok := m.hingeW.(Relinker)
	if err := need(ok, m.hinge(), "another parent"); err != nil {
		return err
	}
	for _, k := range m.kids {
		w, err := k.writer()
		if err != nil {
			return err
		}
		_, ok := w.(Relinker)
		if err := need(ok, k.engine(), "another parent"); err != nil {
			return err
		}
	}
	size := m.src.Size()
	_, own, err := m.dest().describe()
	if err != nil || size == own || m.state > mergeMoving {
		return err
	}
	resizer, ok := m.destW.(Resizer)
	if err := need(ok, m.dest(), "another size"); err != nil {
		return err
	}
	if err := resizer.CanResize(size); err != nil {
		return fmt.Errorf("%s has %d bytes and would have to have %d, as %s: %w", m.dest().ref.Path(), own, size, m.src.ref.Path(), err)
	}
	return nil
}

func (m *merger) blockSize() int64 {
	info, _, err := m.dest().describe()
	if err != nil {
		return 0
	}
	return int64(info.BlockSize)
}

// newRecord decides the ids of a merge that begins.
func (m *merger) newRecord(keep bool) error {
	m.rec = &mergeRecord{ID: NewGUID(), Began: time.Now().UTC(), Keep: keep, CutID: NewGUID(), Size: m.src.Size()}
	for i, e := range m.line {
		info, _, err := e.describe()
		if err != nil {
			return err
		}
		f := mergeFile{Role: roleBetween, Absolute: e.ref.Path(), Inode: e.id.Ino, LinkID: info.LinkID}
		switch i {
		case 0:
			f.Role = roleSource
		case len(m.line) - 1:
			f.Role = roleDestination
			m.rec.OldID, m.rec.NextID = info.LinkID, info.LinkID
		}
		m.rec.Files = append(m.rec.Files, f)
	}
	if _, ok := m.destW.(LinkSetter); ok {
		m.rec.NextID, m.rec.CutID = NewGUID(), m.rec.OldID
	}
	return nil
}
