package ops

import (
	"errors"
	"syscall"
)

// upgrade makes the engine writable in place: a second descriptor for writing,
// while the first one keeps the locks. At no moment is the file unlocked, and
// nothing is written. A failed upgrade leaves the readers as they were. r is what
// the file is called now.
func (e *Engine) upgrade(r Ref, a Access, o OpenOptions) error {
	e.mu.RLock()
	already := e.mu.writer != nil
	e.mu.RUnlock()
	if already { // the lock for writing would hold up guests behind a long request
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.refusalLocked(); err != nil || e.mu.writer != nil {
		return err
	}
	f, err := r.Dir.Open(r.Name, Write|a)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.ID != e.id {
		err = Errorf(ErrChanged, 0, "%s is another file now", r.Path())
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	o.Write = true
	first := &firstWrite{File: f, before: func() error { return e.lib.retireForeign(r) }}
	layer, err := e.newLayer(first, o)
	if err != nil {
		return err
	}
	w, ok := layer.(Writer)
	if !ok {
		err = Errorf(errors.ErrUnsupported, StatusWrongType, "%s: %s images cannot be written", e.ref.Path(), e.format.Name)
	}
	if err == nil {
		err = e.file.Lock(true)
	}
	if err == nil {
		err = e.openTracking(r, layer, false)
	}
	if err != nil {
		return errors.Join(err, layer.Close())
	}
	old := e.mu.layer
	e.mu.layer, e.mu.writer, e.mu.first = layer, w, first
	return old.Close()
}

// downgrade ends the write session in place: the engine reads from then on, as
// if it had just been opened. The locks for writing stay until it is closed: they
// cannot be given back without a moment in which anybody may write. When it fails
// the engine can be read all the same.
func (e *Engine) downgrade() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.refusalLocked(); err != nil || e.mu.writer == nil {
		return err
	}
	var err error
	var flushed Layer
	e.lib.guard("close "+e.ref.Path(), &err, func() { err = e.mu.writer.Flush() })
	if err == nil {
		flushed, err = e.newLayer(heldFile{e.file}, OpenOptions{})
	}
	if err != nil {
		return err
	}
	tracked := e.suspendLocked()
	e.lib.guard("close "+e.ref.Path(), &err, func() { err = e.mu.writer.Close() })
	e.mu.layer, e.mu.writer = flushed, nil
	closed, openErr := e.newLayer(heldFile{e.file}, OpenOptions{})
	ended := closed
	if err != nil || openErr != nil {
		ended = nil
	}
	err = errors.Join(err, tracked, e.resumeLocked(ended))
	if openErr == nil {
		e.mu.layer = closed
		openErr = flushed.Close()
	}
	st, statErr := e.file.Stat()
	if statErr == nil {
		e.stat = st
	}
	return errors.Join(err, openErr, statErr)
}

// refuseWriteLocked says why nothing can be written.
func (e *Engine) refuseWriteLocked() error {
	if p := e.poison.Load(); p != nil {
		return *p
	}
	if e.mu.writer == nil {
		return Errorf(ErrReadOnly, 0, "%s is open for reading", e.ref.Path())
	}
	return nil
}

// checkWriteLocked refuses what does not lie on the disk.
func (l layers) checkWriteLocked(off, n int64) error {
	if off < 0 || n < 0 {
		return Errorf(ErrUsage, 0, "write of %d bytes at %d", n, off)
	}
	if size := l.sizeLocked(); off > size || n > size-off {
		return Errorf(ErrPastEnd, 0, "write of %d bytes at %d, the disk has %d", n, off, size)
	}
	return l[0].refuseWriteLocked()
}

// wholeSectors: a disk may end within a sector; then its end is one.
func (l layers) wholeSectors(off, n, size int64) bool {
	sector := l[0].sector
	return off%sector == 0 && (n%sector == 0 || off+n == size)
}

// forWriting runs f with the locks that a change of [off, off+n) needs: those of
// a reader for whole sectors, the image for itself alone where sectors are read,
// changed and written.
func (c *Chain) forWriting(off, n int64, f func(layers) error) error {
	done, err := c.writeShared(off, n, f)
	if done || err != nil {
		return err
	}
	l, err := c.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	if err := l.checkWriteLocked(off, n); err != nil {
		return err
	}
	if err := l.markLocked(off, n); err != nil {
		return err
	}
	defer l.wroteLocked(off, n)
	return f(l)
}

// writeShared answers false when the range is not of whole sectors.
func (c *Chain) writeShared(off, n int64, f func(layers) error) (bool, error) {
	l, err := c.rLock()
	if err != nil {
		return false, err
	}
	defer l.rUnlock()
	if err := l.checkWriteLocked(off, n); err != nil || !l.wholeSectors(off, n, l.sizeLocked()) {
		return false, err
	}
	if err := l.markLocked(off, n); err != nil {
		return false, err
	}
	defer l.wroteLocked(off, n)
	return true, f(l)
}

// WriteAt stores p at off, and answers how many bytes of it when it fails.
func (c *Chain) WriteAt(p []byte, off int64) (n int, err error) {
	err = c.forWriting(off, int64(len(p)), func(l layers) error {
		n, err = l.writeLocked(p, off)
		return err
	})
	return n, err
}

// writeLocked passes whole sectors on as they are, and reads, changes and writes
// the others.
func (l layers) writeLocked(p []byte, off int64) (int, error) {
	w, sector, size := l[0].mu.writer, l[0].sector, l.sizeLocked()
	done := 0
	for done < len(p) {
		rest := p[done:]
		in := off % sector
		whole := int64(len(rest)) / sector * sector
		if off+int64(len(rest)) == size {
			whole = int64(len(rest))
		}
		if in == 0 && whole > 0 {
			n, err := w.WriteAt(rest[:whole], off)
			done, off = done+n, off+int64(n)
			if err != nil {
				return done, err
			}
			continue
		}
		buf := make([]byte, min(sector, size-(off-in)))
		if _, err := l.readLocked(buf, off-in); err != nil {
			return done, err
		}
		n := copy(buf[in:], rest)
		if _, err := w.WriteAt(buf, off-in); err != nil {
			return done, err
		}
		done, off = done+n, off+int64(n)
	}
	return done, nil
}

// Zero makes a range read as zeros.
func (c *Chain) Zero(off, n int64, unmap bool) error {
	return c.forWriting(off, n, func(l layers) error { return l.zeroLocked(off, n, unmap) })
}

func (l layers) zeroLocked(off, n int64, unmap bool) error {
	sector, end := l[0].sector, off+n
	first := min((off+sector-1)/sector*sector, end)
	last := max(end/sector*sector, first)
	if end == l.sizeLocked() {
		last = end
	}
	edges := make([]byte, max(first-off, end-last))
	if _, err := l.writeLocked(edges[:first-off], off); err != nil {
		return err
	}
	if err := l.zeroSectorsLocked(first, last, unmap); err != nil {
		return err
	}
	_, err := l.writeLocked(edges[:end-last], last)
	return err
}

// zeroSectorsLocked leaves out what is zeros by the map because no image of the
// chain holds it: a child needs no space to say so once more.
func (l layers) zeroSectorsLocked(off, end int64, unmap bool) error {
	w := l[0].mu.writer
	if len(l) == 1 && off < end {
		return w.Zero(off, end-off, unmap)
	}
	for off < end {
		x, err := l.extentLocked(off, end-off)
		if err != nil {
			return err
		}
		n := x.Len
		if needless := x.Kind == Zero && x.Depth > 0; !needless {
			for off+n < end {
				if x, err = l.extentLocked(off+n, end-off-n); err != nil {
					return err
				}
				if x.Kind == Zero && x.Depth > 0 {
					break
				}
				n += x.Len
			}
			if err := w.Zero(off, n, unmap); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

// Flush makes every write that was answered before it durable. A failed one
// poisons the image until it is closed everywhere (contract C6); that space ran
// out is left to the layer, which knows whether anything was lost.
func (c *Chain) Flush() error {
	return c.layers()[0].flushes.do(func() error {
		l, err := c.rLock()
		if err != nil {
			return err
		}
		defer l.rUnlock()
		return l.flushLocked()
	})
}

func (l layers) flushLocked() error {
	e := l[0]
	if e.mu.writer == nil {
		return nil
	}
	if p := e.poison.Load(); p != nil && !errors.Is(*p, ErrChanged) {
		return *p
	}
	if err := e.mu.writer.Flush(); err != nil {
		if !outOfSpace(err) {
			e.refuseWrites(Errorf(ErrPoisoned, 0, "%s: flush failed: %v", e.ref.Path(), err))
		}
		return err
	}
	if err := l.unchangedLocked(); err != nil {
		e.refuseWrites(err)
	}
	return nil
}

func (e *Engine) refuseWrites(why error) { e.poison.CompareAndSwap(nil, &why) }

func outOfSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
