package ops

import (
	"io"
	"sync/atomic"
)

// Chain is an image with its parents: the only code that reads through them.
// Its methods may be called concurrently. Each holds the locks of all engines
// from its start to its end, child before parent, so that it sees one state.
type Chain struct {
	now atomic.Pointer[layers] // changed by who has the first of them for itself
}

// layers are the engines of a chain, the image itself first. It never changes.
type layers []*Engine

func newChain(l layers) *Chain {
	c := &Chain{}
	c.now.Store(&l)
	return c
}

// layers are those of now; the next request may see others.
func (c *Chain) layers() layers { return *c.now.Load() }

// rLock holds the layers of the chain for reading. Where they were changed while
// it waited, it begins again.
func (c *Chain) rLock() (layers, error) { return c.take(layers.rLock, layers.rUnlock) }

// lock is rLock with the image itself for the caller alone.
func (c *Chain) lock() (layers, error) { return c.take(layers.lock, layers.unlock) }

func (c *Chain) take(lock func(layers) error, unlock func(layers)) (layers, error) {
	for {
		p := c.now.Load()
		err := lock(*p)
		if c.now.Load() == p {
			return *p, err
		}
		if err == nil {
			unlock(*p)
		}
	}
}

// ChainExtent is a run of one kind in the merged view of a chain.
type ChainExtent struct {
	Extent
	Depth int  // index of the layer that says so, 0 is the image itself; of a hole the last one
	Hole  bool // a run of Zero that no layer says anything about
}

func (l layers) rLock() error {
	for i, e := range l {
		e.mu.RLock()
		if err := e.refusalLocked(); err != nil {
			l[:i+1].rUnlock()
			return err
		}
	}
	return nil
}

func (l layers) rUnlock() {
	for _, e := range l {
		e.mu.RUnlock()
	}
}

func (l layers) lock() error {
	l[0].mu.Lock()
	err := l[0].refusalLocked()
	if err == nil {
		err = l[1:].rLock()
	}
	if err != nil {
		l[0].mu.Unlock()
	}
	return err
}

func (l layers) unlock() {
	l[1:].rUnlock()
	l[0].mu.Unlock()
}

func (l layers) sizeLocked() int64 { return l[0].mu.layer.Size() }

// ReadAt reads guest bytes; io.EOF with those that are there at the end.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, Errorf(ErrUsage, 0, "read at %d", off)
	}
	l, err := c.rLock()
	if err != nil {
		return 0, err
	}
	defer l.rUnlock()
	size := l.sizeLocked()
	if off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	n, err := l.readLocked(p, off)
	if err != nil {
		return n, err
	}
	return n, eof
}

// readLocked fills p from the first layer and those below it. What none of them
// holds, and what lies past a parent's end, is zeros.
func (l layers) readLocked(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		rest := p[done:]
		room := int64(0)
		if len(l) > 0 {
			room = l[0].mu.layer.Size() - off
		}
		if room <= 0 {
			clear(rest)
			return len(p), nil
		}
		rest = rest[:min(int64(len(rest)), room)]
		n, kind, err := l[0].mu.layer.ReadRun(rest, off)
		if err == nil && (n <= 0 || n > len(rest)) {
			err = Corruptf(0, "%s: a run of %d bytes at %#x of %d", l[0].ref.Path(), n, off, len(rest))
		}
		if err != nil {
			return done, atEOF(err)
		}
		if kind == Absent {
			if n, err = l[1:].readLocked(rest[:n], off); err != nil {
				return done + n, err
			}
		}
		done += n
		off += int64(n)
	}
	return done, nil
}

// atEOF: within the disk the end of a host file is not the end of the data.
func atEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Extent is the longest run at off of one kind, one layer and, for data, one
// piece of that layer's file; at most max bytes. Absent does not occur. io.EOF
// at the end of the disk.
func (c *Chain) Extent(off, max int64) (ChainExtent, error) {
	if off < 0 || max <= 0 {
		return ChainExtent{}, Errorf(ErrUsage, 0, "extent of %d bytes at %d", max, off)
	}
	l, err := c.rLock()
	if err != nil {
		return ChainExtent{}, err
	}
	defer l.rUnlock()
	room := l.sizeLocked() - off
	if room <= 0 {
		return ChainExtent{}, io.EOF
	}
	max = min(max, room)
	run, err := l.extentLocked(off, max)
	for err == nil && run.Len < max {
		var next ChainExtent
		next, err = l.extentLocked(off+run.Len, max-run.Len)
		if err != nil || !run.continues(next) {
			break
		}
		run.Len += next.Len
	}
	return run, err
}

func (x ChainExtent) continues(next ChainExtent) bool {
	return x.Kind == next.Kind && x.Depth == next.Depth && x.Hole == next.Hole &&
		(x.Kind != Data || x.Pos+x.Len == next.Pos)
}

// extentLocked is one piece as the layers have it.
func (l layers) extentLocked(off, max int64) (ChainExtent, error) {
	for i, e := range l {
		layer := e.mu.layer
		room := layer.Size() - off
		if room <= 0 {
			break
		}
		max = min(max, room)
		x, err := layer.Extent(off, max)
		if err == nil && (x.Len <= 0 || x.Len > max) {
			err = Corruptf(0, "%s: an extent of %d bytes at %#x of %d", e.ref.Path(), x.Len, off, max)
		}
		if err != nil {
			return ChainExtent{}, atEOF(err)
		}
		if x.Kind != Absent {
			return ChainExtent{Extent: x, Depth: i}, nil
		}
		max = x.Len
	}
	return ChainExtent{Extent{Len: max, Kind: Zero, Pos: -1}, len(l) - 1, true}, nil
}

// locked reads layers whose locks are held.
type locked struct{ layers }

// ReadAt is [Chain.ReadAt] without its locks.
func (l locked) ReadAt(p []byte, off int64) (int, error) {
	size := l.sizeLocked()
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	n, err := l.readLocked(p, off)
	if err == nil {
		err = eof
	}
	return n, err
}
