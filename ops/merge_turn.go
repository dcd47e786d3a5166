package ops

import (
	"context"
	"errors"
	"slices"
)

const (
	// lastSlice is how many bytes of what guests write meanwhile are moved at least
	// while they wait.
	lastSlice = 4 << 20
	// maxPasses bounds how often what was written meanwhile is moved while guests go
	// on; who writes faster than that has to wait in the end.
	maxPasses = 8
)

// follow moves what guests have written to the source since it was moved, again
// and again, until little is left, or they write as fast as it moves.
func (m *merger) follow(ctx context.Context) error {
	if m.log == nil {
		return nil
	}
	for range maxPasses {
		s := m.log.take()
		if m.log.bytes(s) <= lastSlice {
			m.log.back(s)
			return nil
		}
		if err := m.moveSet(ctx, &s, m.src.Size()); err != nil {
			return err
		}
	}
	return nil
}

// moveSet moves at most limit bytes of a set.
func (m *merger) moveSet(ctx context.Context, s *writeSet, limit int64) error {
	return m.log.each(s, limit, func(off, end int64) error { return m.mover.run(ctx, off, end) })
}

// handOver ends the source, which guests may write: they wait while the rest
// moves and the source is cut off, and go on with the destination. After a crash
// there is
//
//	move the rest; flush   the source with all that was flushed
//	track                  the same; the destination's tracking file, which the next try makes anew
//	commit of the set      the same; of a set the destination, which nobody writes before it is cut off
//	cut                    the destination with that, and all that was written
//
// and what guests write from then on is in the destination alone.
func (m *merger) handOver(ctx context.Context) error {
	if err := m.journal.mark(markEnding); err != nil {
		return err
	}
	if err := m.lib.cached().Launder(m.source().id); err != nil {
		return err
	}
	cut, err := m.parentOf(m.hinge(), CreateParent{LinkID: m.rec.CutID})
	if err != nil {
		return err
	}
	var file File
	var stat FileStat
	if m.set == nil {
		if file, stat, err = m.openSource(); err != nil {
			return err
		}
	}
	for slice := int64(lastSlice); ; slice *= 2 {
		done, err := m.turn(ctx, cut, slice)
		if err != nil {
			if file != nil {
				err = errors.Join(err, file.Close())
			}
			return err
		}
		if done {
			break
		}
	}
	handles, err := m.lib.moveOn(m.source(), m.dest(), file, stat)
	m.takeOver(handles)
	return err
}

// openSource opens the source's file once more, as what its name will mean while
// it is open.
func (m *merger) openSource() (File, FileStat, error) {
	ref := m.source().ref
	f, err := ref.Dir.Open(ref.Name, Read|NoFollow)
	if err != nil {
		return nil, FileStat{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, st, errors.Join(err, f.Close())
	}
	return f, st, nil
}

// turn makes the guests wait, moves up to slice bytes, and when that is all, makes
// the destination the disk. False while more is left.
func (m *merger) turn(ctx context.Context, cut CreateParent, slice int64) (bool, error) {
	chain := m.src.chain
	l, err := chain.lock()
	if err != nil {
		return false, err
	}
	defer l.unlock()
	if p := m.source().poison.Load(); p != nil {
		return false, *p
	}
	m.mover.held = true
	defer func() { m.mover.held = false }()
	s := m.log.take()
	err = m.moveSet(ctx, &s, slice)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil || s.count > 0 {
		m.log.back(s)
		return false, err
	}
	if err := m.mover.withDest(Writer.Flush); err != nil {
		return false, err
	}
	if err := m.trackLocked(); err != nil {
		return false, err
	}
	if err := m.commitSet(); err != nil {
		return false, err
	}
	if err := m.judge(m.hinge(), m.hingeW.(Relinker).SetParent(cut)); err != nil {
		// The next who opens it sees which record it has. Until then nothing may be
		// promised that the other one of them would not keep.
		m.source().refuseWrites(Errorf(ErrPoisoned, 0, "%s: its end in a merge failed: %v", m.source().ref.Path(), err))
		return false, err
	}
	below := slices.Clone(l[len(m.line)-1:])
	chain.now.Store(&below)
	return true, nil
}

// takeOver settles who has part in what, after the chain of the source has become
// that of the destination, with so many handles. Their parts in the disks between
// and in the destination as a parent end.
func (m *merger) takeOver(handles int) {
	m.lib.mu.Lock()
	for _, e := range m.line[1:] {
		e.use.children--
	}
	m.lib.freedLocked()
	m.lib.mu.Unlock()
	m.left = append(m.left, m.line[1:]...)
	if handles > 0 { // who write it, or may begin to
		m.upgraded = slices.DeleteFunc(m.upgraded, func(e *Engine) bool { return e == m.dest() })
	}
}

// relay lets the chains that led through the source lead from the image above it
// to the destination. One that is closed meanwhile is not asked any more.
func (m *merger) relay() error {
	m.lib.mu.Lock()
	var chains []*Chain
	for _, x := range m.lib.mu.engines {
		if c := x.use.chain; c != nil && slices.Index(c.layers(), m.source()) > 0 {
			chains = append(chains, c)
		}
	}
	m.lib.mu.Unlock()
	for _, c := range chains {
		l, err := c.lock()
		if err != nil {
			continue
		}
		at := slices.Index(l, m.source())
		if at > 0 {
			all := slices.Concat(l[:at], l[at+len(m.line)-1:])
			c.now.Store(&all)
		}
		l.unlock()
		if at <= 0 {
			continue
		}
		m.lib.mu.Lock()
		for _, e := range m.line[:len(m.line)-1] {
			e.use.children--
		}
		m.lib.freedLocked()
		m.lib.mu.Unlock()
		m.left = append(m.left, m.line[:len(m.line)-1]...)
	}
	return nil
}
