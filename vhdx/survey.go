package vhdx

import "vhdfs/ops"

// lookout is what a survey of the BAT overlooks, and whom it tells what it sees.
type lookout struct {
	// unreserved: reserved bits are not there where nothing but them is wrong.
	unreserved bool
	// kept, unless nil, is told of each block without content that names space, and
	// whether that belongs to somebody else too.
	kept func(i int64, e entry, shared bool)
}

// entry is the entry at BAT index i as it is looked at.
func (l lookout) entry(g geometry, i int64, e entry) entry {
	if l.unreserved {
		return g.unreserved(i, e)
	}
	return e
}

// surveyLocked reads the BAT once, streaming: what space is taken, and whether
// anything is taken twice or out of reach. It writes nothing.
func (w *Writer) surveyLocked(look lookout) (*session, error) {
	s := &session{space: newSpaceMap(w.fileSize), stale: &spaceMap{}, anchors: true, dirty: map[int64]*dirtyPage{}}
	s.space.claim(span{0, mib})
	for _, r := range w.reserved {
		s.space.grow(r.end)
		s.space.claim(r)
	}
	kept := false
	var bad error
	err := w.scanBAT(0, w.geometry.entries, func(int64, int64) bool { return true }, func(i int64, e entry) bool {
		if e != 0 {
			bad = w.claimLocked(s, look, i, look.entry(w.geometry, i, e))
			kept = kept || e.offset() != 0 && (!e.present() || w.geometry.isBitmap(i))
		}
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	if err == nil && kept {
		err = w.claimAnchorsLocked(s, look.kept)
	}
	if err != nil {
		return nil, err
	}
	s.stale.grow(s.space.units * mib)
	s.stale.claim(span{0, s.space.units * mib}) // nobody knows what free space holds
	return s, nil
}

// claimLocked takes the space of entry i, or says why the disk must not be written.
func (w *Writer) claimLocked(s *session, look lookout, i int64, e entry) error {
	g := w.geometry
	n, used := g.block, int64(0)
	switch {
	case !g.isBitmap(i):
		if err := g.checkPayload(i, e, w.reserved); err != nil {
			return err
		}
		b := g.payloadOf(i)
		used = g.used(b)
		if e.state() == statePartial {
			n := g.bitmapIndex(b / g.ratio)
			m, err := w.entryAt(n)
			if err == nil {
				err = g.checkBitmap(n, look.entry(g, n, m), w.reserved)
			}
			if err != nil {
				return err
			}
		}
	case g.hasParent:
		if err := g.checkBitmap(i, e, w.reserved); err != nil {
			return err
		}
		n, used = bitmapBlock, bitmapBlock
	default:
		return nil // a bitmap without a parent is not looked at
	}
	if !e.present() {
		return nil
	}
	at := span{e.offset(), e.offset() + n}
	if at.off+used > w.fileSize {
		return corruptf(ops.StatusBATCorrupt, "bat entry %d: %#x bytes at %#x past end of file %#x", i, used, at.off, w.fileSize)
	}
	s.space.grow(at.end)
	if s.space.claim(at) {
		return corruptf(ops.StatusBATCorrupt, "bat entry %d: block at %#x overlaps something else", i, at.off)
	}
	return nil
}

// claimAnchorsLocked takes the space that blocks without content kept, and that of
// bitmaps without a parent, which is not ours to give away. If any kept space
// belongs to somebody else, no block gets its own back. kept, unless nil, is told of
// each such block, and whether its space is shared.
func (w *Writer) claimAnchorsLocked(s *session, kept func(i int64, e entry, shared bool)) error {
	g := w.geometry
	return w.scanBAT(0, g.entries, func(int64, int64) bool { return true }, func(i int64, e entry) bool {
		if g.isBitmap(i) {
			if !g.hasParent {
				s.space.claim(span{e.offset(), e.offset() + bitmapBlock})
			}
			return true
		}
		if e.present() || e.offset() == 0 {
			return true
		}
		at := span{e.offset(), e.offset() + g.block}
		shared := s.space.claim(at)
		if shared || at.off < mib || at.end > w.fileSize {
			s.anchors = false
		}
		if kept != nil {
			kept(i, e, shared)
		}
		return true
	})
}
