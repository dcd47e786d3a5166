package vhd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"

	"vhdfs/ops"
)

// hostPage is the unit in which hosts give space back.
const hostPage = 4096

// look goes over the blocks: those of zeros go, and zeros in the others become
// holes of the host.
func (c *compaction) look(ctx context.Context) error {
	if !c.o.Scan && !c.o.Trim {
		return nil
	}
	return c.allocated(ctx, func(b int64) error {
		gone, err := c.drop(b)
		if err == nil && !gone && c.o.Trim {
			err = c.trim(ctx, b)
		}
		if err == nil && !c.o.Dry && c.full() {
			err = c.w.Flush()
		}
		c.passed()
		return err
	})
}

func (c *compaction) full() bool {
	c.w.mu.RLock()
	defer c.w.mu.RUnlock()
	return c.w.fullLocked()
}

// blank is what makes a block one that may go.
type blank struct {
	at   int64
	bits []byte // of a differencing disk: sectors that are the block's own
}

// drop takes block b out of the table if it is zeros, or of no use to anybody, and
// the parents are zeros where it is the block that says so. It is looked at twice,
// first beside the guests.
func (c *compaction) drop(b int64) (gone bool, err error) {
	if !c.o.Scan {
		return false, nil
	}
	w := c.w
	w.mu.RLock()
	seen, ok, err := c.blankLocked(b)
	w.mu.RUnlock()
	if err != nil || !ok {
		return false, err
	}
	if ok, err := c.zerosBelow(b, seen.bits); err != nil || !ok {
		return false, err
	}
	if c.o.Dry {
		c.gone.add(b)
		c.res.Dropped++
		return true, nil
	}
	w.flushes.Lock()
	defer w.flushes.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session.poisoned {
		return false, errPoisoned
	}
	now, ok, err := c.blankLocked(b)
	if err != nil || !ok || !bytes.Equal(now.bits, seen.bits) {
		return false, err
	}
	c.res.Dropped++
	return true, w.dropLocked(b)
}

// blankLocked tells whether all that block b shows is zeros, or nobody wants it. A
// block that nobody wants counts as if all of its sectors were its own: it is to
// read as zeros.
func (c *compaction) blankLocked(b int64) (blank, bool, error) {
	d := c.w
	off := b * d.blockSize
	if c.o.Free == nil || !c.o.Free(off, min(d.Size()-off, d.blockSize)) {
		return d.blankLocked(b)
	}
	at, ok, err := d.blockLocked(b)
	return blank{at: at, bits: bytes.Repeat([]byte{0xff}, int(d.mapBytes))}, ok, err
}

// blankLocked tells whether all that block b shows is zeros.
func (d *Disk) blankLocked(b int64) (blank, bool, error) {
	at, ok, err := d.blockLocked(b)
	if err != nil || !ok {
		return blank{}, false, err
	}
	k := blank{at: at}
	visible := min(d.Size()-b*d.blockSize, d.blockSize)
	if d.typ != ops.Differencing {
		ok, err := allZeros(d.file, at+d.mapBytes, visible)
		return k, ok, err
	}
	m, err := d.bitmapLocked(b, at)
	if err != nil {
		return k, false, err
	}
	k.bits = slices.Clone(m)
	ok = true
	err = ownRuns(m, visible, func(in, n int64) error {
		if ok {
			ok, err = allZeros(d.file, at+d.mapBytes+in, n)
		}
		return err
	})
	return k, ok, err
}

// ownRuns visits the runs of bytes below end whose bits are set.
func ownRuns(bits []byte, end int64, visit func(in, n int64) error) error {
	last := end / sectorSize
	for s := int64(0); s < last; {
		n, set := bitRun(bits, s, last)
		if set {
			if err := visit(s*sectorSize, n*sectorSize); err != nil {
				return err
			}
		}
		s += n
	}
	return nil
}

// zerosBelow asks whether the parents read as zeros where the block's own sectors
// are: only there does the block going change anything.
func (c *compaction) zerosBelow(b int64, bits []byte) (bool, error) {
	w := c.w
	if w.typ != ops.Differencing {
		return true, nil
	}
	ok := true
	err := ownRuns(bits, min(w.Size()-b*w.blockSize, w.blockSize), func(in, n int64) (err error) {
		switch {
		case c.o.Below == nil:
			ok = false
		case ok:
			ok, err = c.o.Below(b*w.blockSize+in, n)
		}
		return err
	})
	return ok && err == nil, err
}

// allZeros reads what is stored of [off, off+n) until it is not zeros.
func allZeros(f ops.File, off, n int64) (bool, error) {
	buf := make([]byte, min(max(n, 0), copyChunk))
	zero := true
	err := storedRuns(f, off, n, func(off, n int64) (bool, error) {
		for end := off + n; off < end && zero; {
			k := min(end-off, copyChunk)
			if err := readFull(f, buf[:k], off, "block data"); err != nil {
				return false, err
			}
			zero = bytes.Equal(buf[:k], ops.Zeros(int64(k)))
			off += k
		}
		return zero, nil
	})
	return zero && err == nil, err
}

// storedRuns visits what the host stores of [off, off+n), all of it where the host
// cannot tell, until visit says that it is enough.
func storedRuns(f ops.File, off, n int64, visit func(off, n int64) (more bool, err error)) error {
	for end := off + n; off < end; {
		data, hole, err := f.NextData(off)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errors.ErrUnsupported):
			data, hole = off, end
		case err != nil:
			return err
		}
		if data >= end {
			return nil
		}
		off = min(hole, end)
		if more, err := visit(data, off-data); err != nil || !more {
			return err
		}
	}
	return nil
}

// trim makes pages of zeros in block b holes of the host, a part of the block at a
// time.
func (c *compaction) trim(ctx context.Context, b int64) error {
	for in := int64(0); in < c.w.blockSize && !c.noPunch; in += copyChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.trimPart(b, in); err != nil {
			return err
		}
	}
	return nil
}

// trimPart is alone with the disk: what is zeros stays so until it is a hole.
func (c *compaction) trimPart(b, in int64) error {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session.poisoned {
		return errPoisoned
	}
	at, ok, err := w.blockLocked(b)
	if err != nil || !ok {
		return err
	}
	n := min(copyChunk, w.blockSize-in)
	buf := make([]byte, n)
	return storedRuns(w.file, at+w.mapBytes+in, n, func(off, n int64) (bool, error) {
		if err := readFull(w.file, buf[:n], off, "block data"); err != nil {
			return false, err
		}
		err := zeroPages(buf[:n], off, c.punch)
		return err == nil && !c.noPunch, err
	})
}

// zeroPages visits the runs of whole pages of zeros in b, which stands at byte off.
func zeroPages(b []byte, off int64, visit func(off, n int64) error) error {
	start := int64(-1)
	i := roundUp(off, hostPage) - off
	for ; i+hostPage <= int64(len(b)); i += hostPage {
		switch zero := bytes.Equal(b[i:i+hostPage], ops.Zeros(hostPage)); {
		case zero && start < 0:
			start = i
		case !zero && start >= 0:
			if err := visit(off+start, i-start); err != nil {
				return err
			}
			start = -1
		}
	}
	if start < 0 {
		return nil
	}
	return visit(off+start, i-start)
}

// punch gives bytes that are zeros back to the host.
func (c *compaction) punch(off, n int64) error {
	if !c.o.Dry {
		c.w.changed.Store(true)
		if err := c.punchHost(off, n); err != nil || c.noPunch {
			return err
		}
	}
	c.res.Trimmed += n
	return nil
}

// trimGaps gives the host what no block and no structure uses, up to the footer.
// Nothing waits that would free space, so nobody who opens the file after a crash
// needs it either.
func (c *compaction) trimGaps(ctx context.Context) error {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session.poisoned {
		return errPoisoned
	}
	res, err := w.scanLocked(ctx, scanVisit{bad: failOn, gap: c.trimGap})
	if err != nil {
		return err
	}
	return c.trimGap(gap{off: res.end, end: w.session.tail})
}

func (c *compaction) trimGap(g gap) error {
	w := c.w
	off := roundUp(g.off, hostPage)
	n := g.end/hostPage*hostPage - off
	if n <= 0 || c.noPunch {
		return nil
	}
	stored := false
	err := storedRuns(w.file, off, n, func(int64, int64) (bool, error) { stored = true; return false, nil })
	if err != nil || !stored {
		return err
	}
	w.changed.Store(true)
	return c.punchHost(off, n)
}

// punchHost gives space back, if the host takes any.
func (c *compaction) punchHost(off, n int64) error {
	err := c.w.file.Punch(off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		c.noPunch = true
		return nil
	}
	return err
}
