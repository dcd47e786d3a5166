package vhdx

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"

	"vhdfs/ops"
)

const (
	// trimUnit is the least run of zeros within a block that is given back, and its
	// alignment in the file.
	trimUnit = 64 * kib
	noBlock  = -1
)

var zeroUnit [trimUnit]byte

// watch tells whether a guest changed a block, or gave it up, since it was set.
// block is guarded by Disk.mu; a guest that changes a block holds that.
type watch struct {
	block   int64
	touched atomic.Bool
}

// watchBlock watches block b from now on, and no other.
func (w *Writer) watchBlock(b int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watch.block = b
	w.watch.touched.Store(false)
}

// touch notes that a guest is about to change the block at off. Disk.mu is held,
// for reading at least.
func (w *Writer) touch(off int64) {
	if off/w.geometry.block == w.watch.block {
		w.watch.touched.Store(true)
	}
}

// touchedLocked tells whether the block that is watched was changed.
func (w *Writer) touchedLocked() bool { return w.watch.touched.Load() }

// looked is what a look at a block found.
type looked struct {
	zero   bool // it reads as zeros, its parents' bytes included
	free   bool // nobody wants what it holds
	absent bool // its parents read as zeros where it lies
	zeros  []span
}

// look reads a block with space, while guests go on. It is right as long as nobody
// touches the block. One that nobody wants is not read.
func (c *compaction) look(ctx context.Context, b int64) (looked, error) {
	from, used := c.extentOf(b)
	free, err := c.unwanted(from, used)
	l := looked{zero: !free, free: free}
	if free && c.o.Below != nil {
		l.absent, err = c.o.Below(from, used)
	}
	if err != nil || free {
		return l, err
	}
	var holes []span // of the disk, which the parents fill
	for off := from; off < from+used; {
		if err := ctx.Err(); err != nil {
			return l, err
		}
		x, src, whole, err := c.run(off, from+used-off)
		if err != nil {
			return l, err
		}
		if x.Kind == ops.Data {
			err = c.readRun(ctx, src, whole, span{x.Pos, x.Pos + x.Len}, &l)
		} else if x.Kind == ops.Absent {
			holes = append(holes, span{off, off + x.Len})
		}
		if err != nil || !l.zero && !c.o.Trim {
			return l, err
		}
		off += x.Len
	}
	if !l.zero || !c.o.Scan || c.o.Below == nil {
		l.zero = l.zero && len(holes) == 0
		return l, nil
	}
	if l.absent, err = c.o.Below(from, used); err != nil || l.absent {
		return l, err
	}
	for _, h := range holes {
		if l.zero, err = c.o.Below(h.off, h.len()); err != nil || !l.zero {
			return l, err
		}
	}
	return l, nil
}

// unwanted tells whether nobody wants what a block holds of its own. Where all of it
// is the parents', there is nothing to give up.
func (c *compaction) unwanted(from, used int64) (bool, error) {
	if !c.o.Scan || c.o.Free == nil || !c.o.Free(from, used) {
		return false, nil
	}
	x, _, _, err := c.run(from, used)
	return x.Kind != ops.Absent || x.Len < used, err
}

// extentOf is where block b lies in the disk.
func (c *compaction) extentOf(b int64) (off, n int64) {
	c.w.mu.RLock()
	defer c.w.mu.RUnlock()
	return b * c.w.geometry.block, c.w.geometry.used(b)
}

// run is the run at off, and where it can be read: whole tells that holes of the
// host file are zeros there.
func (c *compaction) run(off, n int64) (x ops.Extent, src io.ReaderAt, whole bool, err error) {
	c.w.mu.RLock()
	defer c.w.mu.RUnlock()
	x, err = c.w.lookup(off, n)
	return x, c.w.src, c.w.overlay == nil, err
}

// readRun reads a part of the file: whether it is all zeros, and which whole units
// of it are zeros that the host stores.
func (c *compaction) readRun(ctx context.Context, src io.ReaderAt, whole bool, s span, l *looked) error {
	for at := s.off; at < s.end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		end := s.end
		if whole {
			data, hole, err := c.w.f.NextData(at)
			if err == io.EOF || err == nil && data >= s.end {
				return nil
			}
			if err == nil {
				at, end = max(at, data), min(end, hole)
			}
		}
		for at < end {
			n := min(copyChunk-at%trimUnit, end-at)
			if err := readFull(src, c.b[:n], at, "payload block"); err != nil {
				return err
			}
			l.note(c.b[:n], at)
			if !l.zero && !c.o.Trim {
				return nil
			}
			at += n
		}
	}
	if !whole {
		l.zeros = nil // nobody knows which of them the host stores
	}
	return nil
}

// note takes up bytes that stand at off in the file.
func (l *looked) note(p []byte, off int64) {
	for len(p) > 0 {
		n := min(int64(len(p)), trimUnit-off%trimUnit)
		zero := bytes.Equal(p[:n], zeroUnit[:n])
		l.zero = l.zero && zero
		if zero && n == trimUnit {
			if k := len(l.zeros); k > 0 && l.zeros[k-1].end == off {
				l.zeros[k-1].end += n
			} else {
				l.zeros = append(l.zeros, span{off, off + n})
			}
		}
		p, off = p[n:], off+n
	}
}
