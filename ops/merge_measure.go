package ops

import (
	"context"
	"path"
)

// makePlan says what will be changed and removed, what will be moved, and what
// space that takes.
func (m *merger) makePlan(ctx context.Context) error {
	p := &m.plan
	p.Changes, p.Size = []string{m.dest().ref.Path()}, m.src.Size()
	for _, k := range m.kids {
		p.Changes = append(p.Changes, k.ref.Path())
	}
	for _, c := range m.lost {
		p.Changes = append(p.Changes, c.Path())
	}
	if m.rec.Keep {
		p.Changes = append(p.Changes, m.hinge().ref.Path())
	} else {
		for _, e := range m.line[:len(m.line)-1] {
			p.Removes = append(p.Removes, e.ref.Path())
		}
	}
	var err error
	if p.Free, err = m.dest().ref.Dir.Free(path.Dir(m.dest().ref.Name)); err != nil || m.state == mergeMoved {
		return err
	}
	p.Move, p.Need, err = m.measure(ctx)
	return err
}

// measure is how many bytes of data the disks above the destination hold, and how
// many bytes of the host it takes to store them: those that the destination has no
// place for, with what the format keeps of each piece, and of the others as many
// as its file has holes for.
func (m *merger) measure(ctx context.Context) (move, need int64, err error) {
	info, own, err := m.dest().describe()
	if err != nil {
		return 0, 0, err
	}
	size, fresh := m.src.Size(), int64(0)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		x, err := m.mover.extent(off, min(size-off, copyStride))
		if err != nil {
			return 0, 0, err
		}
		if x.Kind == Data {
			n, err := m.fresh(off, off+x.Len, own)
			if err != nil {
				return 0, 0, err
			}
			move, fresh, need = move+x.Len, fresh+n, need+perPiece
		}
		off += x.Len
	}
	st, err := m.dest().file.Stat()
	if err != nil {
		return 0, 0, err
	}
	need += fresh + min(move-fresh, max(st.Size-st.Blocks*512, 0))
	if info.Type == Fixed {
		need += max(size-own, 0)
	}
	return move, need, nil
}

// fresh is how many bytes of [off, end) have no place in the destination, whose
// disk has size bytes.
func (m *merger) fresh(off, end, size int64) (int64, error) {
	e := m.dest()
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.refusalLocked(); err != nil {
		return 0, err
	}
	n := max(end-max(off, size), 0)
	for end = min(end, size); off < end; {
		x, err := e.mu.layer.Extent(off, end-off)
		if err == nil && x.Len <= 0 {
			err = Corruptf(0, "%s: an extent of %d bytes at %#x", e.ref.Path(), x.Len, off)
		}
		if err != nil {
			return 0, atEOF(err)
		}
		if x.Kind != Data {
			n += x.Len
		}
		off += x.Len
	}
	return n, nil
}
