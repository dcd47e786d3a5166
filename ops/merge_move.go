package ops

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
)

const (
	moveWorkers = 4        // each holds a chunk of copyChunk bytes
	moveZero    = 16 << 20 // zeros that are stored at once, unless a block has more
)

// mover stores in the destination what the disks above it hold: data as data, and
// zeros that stand for zeros, but nothing where they leave the answer to the
// destination. So the source reads the same before, between and after; and moving
// again what was moved changes nothing.
type mover struct {
	lib   *Library
	upper layers // the source and the disks between
	dest  *Engine
	block int64 // of the destination, in bytes; 0 without
	held  bool  // whoever moves has all of them for himself

	progress func(done int64) // is told how many bytes of data are done, by one worker at a time
	mu       struct {
		sync.Mutex
		done int64
	}
}

// extent is the longest run of one kind at off in the disks above the destination.
// Absent is what they leave to it; what lies past the end of a disk between is
// zeros, whatever lies below.
func (v *mover) extentLocked(off, max int64) (Extent, error) {
	for i, e := range v.upper {
		layer := e.mu.layer
		room := layer.Size() - off
		if room <= 0 {
			if i == 0 {
				return Extent{}, io.EOF
			}
			return Extent{Len: max, Kind: Zero, Pos: -1}, nil
		}
		max = min(max, room)
		x, err := layer.Extent(off, max)
		if err == nil && (x.Len <= 0 || x.Len > max) {
			err = Corruptf(0, "%s: an extent of %d bytes at %#x of %d", e.ref.Path(), x.Len, off, max)
		}
		if err != nil {
			return Extent{}, atEOF(err)
		}
		if x.Kind != Absent {
			return x, nil
		}
		max = x.Len
	}
	return Extent{Len: max, Kind: Absent, Pos: -1}, nil
}

func (v *mover) extent(off, max int64) (Extent, error) {
	unlock, err := v.lock(v.upper)
	if err != nil {
		return Extent{}, err
	}
	defer unlock()
	return v.extentLocked(off, max)
}

// lock holds layers for reading, unless they are held already.
func (v *mover) lock(l layers) (unlock func(), err error) {
	if v.held {
		return func() {}, nil
	}
	return l.rUnlock, l.rLock()
}

// run moves [off, end). When ctx ends it stops within the time of one piece for
// each worker.
func (v *mover) run(ctx context.Context, off, end int64) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pieces := make(chan piece)
	var workers sync.WaitGroup
	for range moveWorkers {
		workers.Go(func() { v.work(ctx, pieces, stop) })
	}
	err := v.walk(ctx, off, end, pieces)
	close(pieces)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// walk hands out what has to be looked at, in order.
func (v *mover) walk(ctx context.Context, off, end int64, pieces chan<- piece) error {
	for off < end {
		x, err := v.extent(off, min(end-off, copyStride))
		if err != nil {
			return err
		}
		n := x.Len
		switch x.Kind {
		case Data:
			n = min(n, copyChunk-off%copyChunk)
		case Zero:
			unit := max(moveZero, v.block)
			n = min(n, unit-off%unit)
		case Absent:
			if err := ctx.Err(); err != nil {
				return err
			}
			off += n
			continue
		}
		select {
		case pieces <- piece{off, n}:
		case <-ctx.Done():
			return ctx.Err()
		}
		off += n
	}
	return nil
}

func (v *mover) work(ctx context.Context, pieces <-chan piece, stop context.CancelCauseFunc) {
	buf := make([]byte, copyChunk)
	for p := range pieces {
		if ctx.Err() != nil {
			continue // the walk stops, too
		}
		var err error
		v.lib.guard(opMergeName+" "+v.dest.ref.Path(), &err, func() { err = v.move(p.off, p.n, buf) })
		if err != nil {
			stop(err)
		}
	}
}

// move looks at a range once more, which a guest may have changed since, and
// stores what it holds.
func (v *mover) move(off, n int64, buf []byte) error {
	for n > 0 {
		x, err := v.read(off, min(n, max(copyChunk, moveZero, v.block)), buf)
		if err != nil {
			return err
		}
		switch x.Kind {
		case Data:
			err = v.store(buf[:x.Len], off)
		case Zero:
			err = v.zero(off, x.Len)
		case Absent:
		}
		if err != nil {
			return err
		}
		off, n = off+x.Len, n-x.Len
	}
	return nil
}

// read is the run at off with, of data, the bytes of one moment.
func (v *mover) read(off, max int64, buf []byte) (Extent, error) {
	unlock, err := v.lock(v.upper)
	if err != nil {
		return Extent{}, err
	}
	defer unlock()
	x, err := v.extentLocked(off, max)
	if err != nil || x.Kind != Data {
		return x, err
	}
	x.Len = min(x.Len, int64(len(buf)))
	_, err = v.upper.readLocked(buf[:x.Len], off)
	return x, err
}

// store writes data, and what of it is zeros by whole granules as zeros.
func (v *mover) store(b []byte, off int64) error {
	granule := func(from int) (zero bool, to int) {
		to = min(from+copyGranule-int((off+int64(from))%copyGranule), len(b))
		return bytes.Equal(b[from:to], Zeros(int64(to-from))), to
	}
	for from := 0; from < len(b); {
		zero, to := granule(from)
		for to < len(b) {
			same, end := granule(to)
			if same != zero {
				break
			}
			to = end
		}
		var err error
		if zero {
			err = v.zero(off+int64(from), int64(to-from))
		} else {
			err = v.write(b[from:to], off+int64(from))
		}
		if err != nil {
			return err
		}
		v.done(int64(to - from))
		from = to
	}
	return nil
}

func (v *mover) write(b []byte, off int64) error {
	return v.withDest(func(w Writer) error {
		_, err := w.WriteAt(b, off)
		return err
	})
}

func (v *mover) zero(off, n int64) error {
	return v.withDest(func(w Writer) error { return w.Zero(off, n, true) })
}

// withDest runs f with the layer of the destination.
func (v *mover) withDest(f func(w Writer) error) error {
	e := v.dest
	unlock, err := v.lock(layers{e})
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.refuseWriteLocked(); err != nil {
		return err
	}
	err = f(e.mu.writer)
	if errors.Is(err, ErrPoisoned) {
		e.refuseWrites(Errorf(ErrPoisoned, 0, "%s: %s failed: %v", e.ref.Path(), opMergeName, err))
	}
	return err
}

func (v *mover) done(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.done += n
	if v.progress != nil {
		v.progress(v.mu.done)
	}
}

// moved is how many bytes of data the destination was given.
func (v *mover) moved() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.done
}
