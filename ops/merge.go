package ops

import (
	"context"
	"errors"
)

// merger is one merge: the source, the disks between and the destination become
// one, the destination. What other images and guests read through any of them is
// the same at every moment, and after every crash.
//
// The chain above the destination hangs on one record, that of the disk just above
// it: the hinge, which is the source itself where nothing lies between.
//
//	record     a journal beside every file says that the merge has begun
//	announce   the hinge accepts the destination's next id; then the destination has it
//	fit        the destination has the size, id and physical sector of the source's disk
//	move       the destination holds what the disks above it hold; flush
//	           mark «moved», where images were made from the source
//	relink     each of these has the destination as its parent
//	           mark «ending»
//	cut        the hinge accepts no id that the destination has: the source is dead
//	end        the dead files and then the journal are removed
//
// Up to cut the source reads right through the hinge, whatever is in the
// destination; from move on the destination reads right by itself. So a crash at
// any point leaves a chain that reads right, and the same request goes on from
// there: before the first mark by moving everything again, which changes nothing
// that was moved before. docs/merge.md says what each state looks like.
type merger struct {
	lib      *Library
	res      *resolver
	src      *Operation
	line     []*Engine    // the source first, the destination last
	kids     []*Operation // images that were made from the source
	lost     []Ref        // images that were made from others, and are given up
	rec      *mergeRecord
	state    mergeState // in which it was found
	journal  mergeJournal
	claimed  bool
	upgraded []*Engine // which are to be read again in the end
	left     []*Engine // parts in engines that chains have given up
	log      *writeLog // of the source, while guests may write it
	hingeW   Writer
	destW    Writer
	mover    *mover
	plan     Plan
	set      *setInUse // whose files these are; nil for other disks
	diskID   GUID      // of the source, which the destination gets

	reparented []string
	removed    []string
	warnings   []string
}

func (m *merger) source() *Engine { return m.line[0] }
func (m *merger) dest() *Engine   { return m.line[len(m.line)-1] }
func (m *merger) hinge() *Engine  { return m.line[len(m.line)-2] }

func (m *merger) files() []Ref {
	list := make([]Ref, len(m.line))
	for i, e := range m.line {
		list[i] = e.ref
	}
	return list
}

// run carries the merge out.
func (m *merger) run(ctx context.Context) error {
	m.diskID = m.src.Info().DiskID
	if err := m.begin(); err != nil {
		return err
	}
	frozen := len(m.kids) > 0 || m.state == mergeMoved
	if !frozen {
		m.log = newWriteLog(m.src.Size())
		m.source().written.Store(m.log)
		defer m.source().written.Store(nil)
	}
	if m.state == mergeMoving {
		if err := m.fill(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	finish := m.handOver
	if frozen {
		finish = m.relink
	}
	if err := finish(ctx); err != nil {
		return err
	}
	n := &mergeEnd{lib: m.lib, rec: m.rec, files: m.files(), journal: m.journal}
	err := n.run()
	m.removed, m.journal = n.removed, n.journal
	return err
}

// begin makes the journal, or takes up the one that is there.
func (m *merger) begin() error {
	if err := m.loosen(); err != nil {
		return err
	}
	if m.state != mergeVoid {
		return m.journal.resume(m.rec, m.files())
	}
	m.state = mergeMoving
	return m.journal.begin(m.rec, m.files())
}

// fill makes the destination hold all that the disks above it hold, durably.
func (m *merger) fill(ctx context.Context) error {
	if err := m.dest().dropTracking(); err != nil {
		return err
	}
	if err := m.announce(); err != nil {
		return err
	}
	if err := m.fit(ctx); err != nil {
		return err
	}
	if err := m.mover.run(ctx, 0, m.src.Size()); err != nil {
		return err
	}
	if err := m.follow(ctx); err != nil {
		return err
	}
	return m.mover.withDest(Writer.Flush)
}

// announce gives the destination the id that it will have with other content,
// which the hinge accepts beforehand. A format whose ids do not follow the
// content has nothing to announce.
func (m *merger) announce() error {
	setter, ok := m.destW.(LinkSetter)
	if !ok {
		return m.cutSiblings()
	}
	err := m.record(m.hinge(), m.hingeW, CreateParent{LinkID: m.rec.OldID, NextID: m.rec.NextID})
	if err != nil {
		return err
	}
	return m.judge(m.dest(), setter.SetLinkID(m.rec.NextID))
}

// cutSiblings makes images that the merge gives up record a parent that is none,
// where the destination's id would not show them that it has other content.
func (m *merger) cutSiblings() error {
	for _, c := range m.lost {
		o, err := m.lib.Operate(c, Terms{Name: opMergeName, Quiet: true, Alone: true})
		if err != nil {
			return err
		}
		err = o.Do(func(w Writer) error {
			if _, ok := w.(Relinker); !ok {
				return Errorf(errors.ErrUnsupported, StatusWrongType, "%s cannot be given another parent", c.Path())
			}
			return m.record(o.engine(), w, CreateParent{LinkID: m.rec.CutID})
		})
		if err := errors.Join(err, o.Close()); err != nil {
			return err
		}
	}
	return nil
}

// fit gives the destination what the source says of the disk.
func (m *merger) fit(ctx context.Context) error {
	e, info, size := m.dest(), m.src.Info(), m.src.Size()
	own, ownSize, err := e.describe()
	if err != nil {
		return err
	}
	if size != ownSize {
		if err := m.judge(e, m.destW.(Resizer).Resize(ctx, size, m.below())); err != nil {
			return err
		}
	}
	set, ok := m.destW.(Settable)
	if _, apart := m.destW.(LinkSetter); !ok || !apart {
		return nil // the disk has no id but the one that children know
	}
	if info.DiskID != own.DiskID {
		if err := m.judge(e, set.SetDiskID(info.DiskID)); err != nil {
			return err
		}
	}
	if info.PhysicalSector != own.PhysicalSector {
		return m.judge(e, set.SetPhysicalSector(info.PhysicalSector))
	}
	return nil
}

// below is the size of the disk under the destination, 0 without one.
func (m *merger) below() int64 {
	layers := m.src.chain.layers()
	if len(layers) == len(m.line) {
		return 0
	}
	_, size, err := layers[len(m.line)].describe()
	if err != nil {
		return 0
	}
	return size
}

// rest ends the write session of an engine that is not to be written any more.
func (m *merger) rest(e *Engine) error { return e.downgrade() }

// relink makes the images that were made from the source children of the
// destination, one by one, in their files and then where they are open: each reads
// the same before and after. The source, which nobody writes, is cut off then.
func (m *merger) relink(context.Context) error {
	if err := m.rest(m.dest()); err != nil {
		return err
	}
	if err := m.trackFrozen(); err != nil {
		return err
	}
	if err := m.journal.mark(markMoved); err != nil {
		return err
	}
	for _, k := range m.kids {
		p, err := m.parentOf(k.engine(), CreateParent{LinkID: m.rec.NextID})
		if err != nil {
			return err
		}
		if err := k.Do(func(w Writer) error { return w.(Relinker).SetParent(p) }); err != nil {
			return err
		}
		m.reparented = append(m.reparented, k.ref.Path())
	}
	if err := m.relay(); err != nil {
		return err
	}
	if err := m.commitSet(); err != nil {
		return err
	}
	if err := m.journal.mark(markEnding); err != nil {
		return err
	}
	return m.record(m.hinge(), m.hingeW, CreateParent{LinkID: m.rec.CutID})
}

// record makes an image record the destination as its parent, with the ids of p.
func (m *merger) record(e *Engine, w Writer, p CreateParent) error {
	p, err := m.parentOf(e, p)
	if err != nil {
		return err
	}
	return m.judge(e, w.(Relinker).SetParent(p))
}

// parentOf is what an image records of the destination, with the ids of p.
func (m *merger) parentOf(e *Engine, p CreateParent) (CreateParent, error) {
	info, _, err := m.dest().describe()
	if err != nil {
		return p, err
	}
	st, err := m.dest().file.Stat()
	if err != nil {
		return p, err
	}
	p.DiskID, p.Timestamp, p.Absolute = info.DiskID, st.Mtime, m.dest().ref.Path()
	p.Relative, err = relativePath(e.ref.Path(), p.Absolute)
	return p, err
}

// judge lets a layer that poisoned itself refuse writes for its engine too.
func (m *merger) judge(e *Engine, err error) error {
	if errors.Is(err, ErrPoisoned) {
		e.refuseWrites(Errorf(ErrPoisoned, 0, "%s: %s failed: %v", e.ref.Path(), opMergeName, err))
	}
	return err
}

// close gives everything back.
func (m *merger) close() error {
	var err error
	for _, e := range m.upgraded {
		err = errors.Join(err, m.rest(e))
	}
	m.unclaim()
	for _, k := range m.kids {
		err = errors.Join(err, k.Close())
	}
	if m.src != nil {
		err = errors.Join(err, m.src.Close())
	}
	for _, e := range m.left {
		err = errors.Join(err, m.lib.release(e))
	}
	return errors.Join(err, m.journal.close())
}
