package ops

import "io"

// Chain is an image with its parents: the only code that reads through them.
// Its methods may be called concurrently. Each holds the locks of all engines
// from its start to its end, child before parent, so that it sees one state.
type Chain struct {
	layers []*Engine // the image itself first
}

// ChainExtent is a run of one kind in the merged view of a chain.
type ChainExtent struct {
	Extent
	Depth int  // index of the layer that says so, 0 is the image itself; of a hole the last one
	Hole  bool // a run of Zero that no layer says anything about
}

func (c *Chain) rLock() error {
	for i, e := range c.layers {
		e.mu.RLock()
		if err := e.refusalLocked(); err != nil {
			c.rUnlock(i + 1)
			return err
		}
	}
	return nil
}

func (c *Chain) rUnlock(n int) {
	for _, e := range c.layers[:n] {
		e.mu.RUnlock()
	}
}

// lock is rLock with the image itself for the caller alone.
func (c *Chain) lock() error {
	c.layers[0].mu.Lock()
	err := c.layers[0].refusalLocked()
	if err == nil {
		parents := Chain{c.layers[1:]}
		err = parents.rLock()
	}
	if err != nil {
		c.layers[0].mu.Unlock()
	}
	return err
}

func (c *Chain) unlock() {
	parents := Chain{c.layers[1:]}
	parents.rUnlock(len(parents.layers))
	c.layers[0].mu.Unlock()
}

func (c *Chain) sizeLocked() int64 { return c.layers[0].mu.layer.Size() }

// ReadAt reads guest bytes; io.EOF with those that are there at the end.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, Errorf(ErrUsage, 0, "read at %d", off)
	}
	if err := c.rLock(); err != nil {
		return 0, err
	}
	defer c.rUnlock(len(c.layers))
	size := c.sizeLocked()
	if off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	n, err := c.readLocked(0, p, off)
	if err != nil {
		return n, err
	}
	return n, eof
}

// readLocked fills p from layer i and those below it. What none of them holds,
// and what lies past a parent's end, is zeros.
func (c *Chain) readLocked(i int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		rest := p[done:]
		room := int64(0)
		if i < len(c.layers) {
			room = c.layers[i].mu.layer.Size() - off
		}
		if room <= 0 {
			clear(rest)
			return len(p), nil
		}
		rest = rest[:min(int64(len(rest)), room)]
		n, kind, err := c.layers[i].mu.layer.ReadRun(rest, off)
		if err == nil && (n <= 0 || n > len(rest)) {
			err = Corruptf(0, "%s: a run of %d bytes at %#x of %d", c.layers[i].ref.Path(), n, off, len(rest))
		}
		if err != nil {
			return done, atEOF(err)
		}
		if kind == Absent {
			if n, err = c.readLocked(i+1, rest[:n], off); err != nil {
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
	if err := c.rLock(); err != nil {
		return ChainExtent{}, err
	}
	defer c.rUnlock(len(c.layers))
	room := c.sizeLocked() - off
	if room <= 0 {
		return ChainExtent{}, io.EOF
	}
	max = min(max, room)
	run, err := c.extentLocked(0, off, max)
	for err == nil && run.Len < max {
		var next ChainExtent
		next, err = c.extentLocked(0, off+run.Len, max-run.Len)
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

// extentLocked is one piece as layer i and those below it have it.
func (c *Chain) extentLocked(i int, off, max int64) (ChainExtent, error) {
	for ; i < len(c.layers); i++ {
		layer := c.layers[i].mu.layer
		room := layer.Size() - off
		if room <= 0 {
			break
		}
		max = min(max, room)
		x, err := layer.Extent(off, max)
		if err == nil && (x.Len <= 0 || x.Len > max) {
			err = Corruptf(0, "%s: an extent of %d bytes at %#x of %d", c.layers[i].ref.Path(), x.Len, off, max)
		}
		if err != nil {
			return ChainExtent{}, atEOF(err)
		}
		if x.Kind != Absent {
			return ChainExtent{Extent: x, Depth: i}, nil
		}
		max = x.Len
	}
	return ChainExtent{Extent{Len: max, Kind: Zero, Pos: -1}, len(c.layers) - 1, true}, nil
}
