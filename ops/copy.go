package ops

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
)

// What a copy holds in memory: each worker a chunk of the source and, for a
// child, one of its parent: 8 MiB in all. More workers only wait for one
// another: a host writes into one file one after the other.
const (
	copyWorkers = 4
	copyChunk   = 1 << 20
	copyGranule = 64 << 10 // zeros, and what the parent holds, are left out in these units
	copyStride  = 1 << 30  // of holes, between two looks whether to go on
)

// source is what a copy reads: a [Handle], or a raw file.
type source interface {
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
	Extent(off, max int64) (ChainExtent, error)
	io.Closer
}

// sink is what a copy writes: a [Writer], or a raw file. It reads as zeros, or
// as its parent, before.
type sink interface {
	WriteAt(p []byte, off int64) (int, error)
	Zero(off, n int64, unmap bool) error
	Flush() error
}

// rawFile is a new file that is the disk.
type rawFile struct{ File }

func (f rawFile) Flush() error { return f.Sync("raw.fill") }

// Zero has nothing to do: a raw file has no parent.
func (f rawFile) Zero(int64, int64, bool) error { return nil }

// rawSource is a raw file that is read.
type rawSource struct{ *Raw }

// ReadAt reads bytes of the disk; io.EOF with those that are there at the end.
func (s rawSource) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, _, err := s.ReadRun(p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Extent implements source.
func (s rawSource) Extent(off, max int64) (ChainExtent, error) {
	x, err := s.Raw.Extent(off, max)
	return ChainExtent{Extent: x}, err
}

// copier copies a disk into a new image. Holes of the source and zeros in its
// data are left out; in a child, what its parent has.
type copier struct {
	lib  *Library
	name string // of the new image
	src  source
	base source // the new image's parent, nil without one
	dst  sink
	size int64 // of the new image; what src lacks are zeros

	noClones  bool  // the host has refused one
	mustShare error // why it must not; nil where there is space for a copy

	progress func(done, all int64) // may be nil; called by one worker at a time
	mu       struct {
		sync.Mutex
		done int64
	}
}

type piece struct{ off, n int64 }

// run ends within the time of one chunk for each worker after ctx does.
func (c *copier) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pieces := make(chan piece)
	var workers sync.WaitGroup
	for range copyWorkers {
		workers.Go(func() { c.work(ctx, pieces, stop) })
	}
	err := c.walk(ctx, pieces)
	close(pieces)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (c *copier) work(ctx context.Context, pieces <-chan piece, stop context.CancelCauseFunc) {
	buf, base := make([]byte, copyChunk), []byte(nil)
	if c.base != nil {
		base = make([]byte, copyChunk)
	}
	for p := range pieces {
		if ctx.Err() != nil {
			continue // the walk stops, too
		}
		var err error
		c.lib.guard("write "+c.name, &err, func() { err = c.copy(p, buf, base) })
		if err != nil {
			stop(err)
			continue
		}
		c.report(p.n)
	}
}

func (c *copier) report(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.done += n
	if c.progress != nil {
		c.progress(c.mu.done, c.size)
	}
}

// walk hands out what has to be looked at, in order and in whole granules.
func (c *copier) walk(ctx context.Context, pieces chan<- piece) error {
	for off := int64(0); off < c.size; {
		n, zero, err := run(c.src, off, min(c.size-off, copyStride))
		if err == nil && c.base != nil {
			var baseZero bool
			n, baseZero, err = run(c.base, off, n) // the shorter of both
			zero = zero && baseZero
		}
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case zero:
			c.report(n)
			off += n
			continue
		}
		if k, err := c.clone(off, n); err != nil {
			return err
		} else if k > 0 {
			c.report(k)
			off += k
			continue
		}
		n = min(c.size-off, (off+n+copyGranule-1)/copyGranule*copyGranule-off, copyChunk-off%copyGranule)
		select {
		case pieces <- piece{off, n}:
		case <-ctx.Done():
			return ctx.Err()
		}
		off += n
	}
	return nil
}

// run is how far all is stored, or all is zeros, at most max bytes.
func run(s source, off, max int64) (n int64, zero bool, err error) {
	if off >= s.Size() {
		return max, true, nil
	}
	x, err := s.Extent(off, min(max, s.Size()-off))
	return x.Len, x.Kind != Data, err
}

// copy reads a piece and stores what the new image does not have by itself.
func (c *copier) copy(p piece, buf, base []byte) error {
	buf = buf[:p.n]
	if err := readPadded(c.src, buf, p.off); err != nil {
		return err
	}
	if c.base != nil {
		base = base[:p.n]
		if err := readPadded(c.base, base, p.off); err != nil {
			return err
		}
	}
	for from := int64(0); from < p.n; {
		what, to := c.wants(buf, base, from)
		for to < p.n {
			next, end := c.wants(buf, base, to)
			if next != what {
				break
			}
			to = end
		}
		var err error
		switch what {
		case storeBytes:
			_, err = c.dst.WriteAt(buf[from:to], p.off+from)
		case storeZeros:
			err = c.dst.Zero(p.off+from, to-from, true)
		case storeNothing:
		}
		if err != nil {
			return err
		}
		from = to
	}
	return nil
}

type storing uint8

const (
	storeNothing storing = iota
	storeBytes
	storeZeros
)

// wants judges the granule of buf at from and says where it ends.
func (c *copier) wants(buf, base []byte, from int64) (storing, int64) {
	to := min(from+copyGranule, int64(len(buf)))
	zero := bytes.Equal(buf[from:to], Zeros(to-from))
	switch {
	case c.base == nil && zero, c.base != nil && bytes.Equal(buf[from:to], base[from:to]):
		return storeNothing, to
	case zero:
		return storeZeros, to
	}
	return storeBytes, to
}

// readPadded fills p; past the end of the disk are zeros.
func readPadded(s source, p []byte, off int64) error {
	if room := max(s.Size()-off, 0); int64(len(p)) > room {
		clear(p[room:])
		p = p[:room]
	}
	if len(p) == 0 {
		return nil
	}
	n, err := s.ReadAt(p, off)
	if n == len(p) && errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
