package ops

import (
	"context"
	"errors"
	"math"
	"path"
	"sync"
)

// measure is a new file that keeps nothing but how much it would take: a format
// lays an image out in it to see whether it can, and in how much space.
type measure struct {
	size, used int64
}

var _ File = (*measure)(nil)

func (m *measure) extend(off, n int64) {
	m.used += n
	m.size = max(m.size, off+n)
}

func (m *measure) WriteAt(p []byte, off int64) (int, error) {
	m.extend(off, int64(len(p)))
	return len(p), nil
}

func (m *measure) Allocate(off, n int64) error {
	m.extend(off, n)
	return nil
}

func (m *measure) Truncate(size int64, _ string) error {
	m.size = size
	return nil
}

func (m *measure) Stat() (FileStat, error) { return FileStat{Size: m.size, IsRegular: true}, nil }

func (m *measure) Sync(string) error { return nil }
func (m *measure) Close() error      { return nil }
func (m *measure) Lock(bool) error   { return nil }

func (m *measure) ReadAt([]byte, int64) (int, error)          { return 0, errors.ErrUnsupported }
func (m *measure) Punch(int64, int64) error                   { return errors.ErrUnsupported }
func (m *measure) NextData(int64) (data, hole int64, _ error) { return 0, 0, errors.ErrUnsupported }

// perPiece is what a format keeps of each piece of content besides it: a sector of
// bitmap for each block of a VHD takes a page of the host.
const perPiece = 4 << 10

// plan is what making the image, filled from src unless that is nil, would take.
// Parameters that the format refuses are refused here. The space is counted from
// the map of the source, in which stored zeros are content; only where that does
// not fit is the source read. What a raw file shares with the source takes no space:
// where that is needed to fit, [target.make] goes on only as long as the host shares.
func (t *target) plan(ctx context.Context, src source) (Plan, error) {
	p := Plan{Makes: []string{t.ref.Path()}, Size: t.spec.Size}
	var m measure
	if t.format != nil {
		var err error
		t.lib.guard("create "+t.ref.Path(), &err, func() { err = t.format.Create(&m, t.spec) })
		if err != nil {
			return p, err
		}
	}
	var err error
	if p.Free, err = t.ref.Dir.Free(path.Dir(t.ref.Name)); err != nil {
		return p, err
	}
	p.Need = m.used
	if src == nil {
		return p, nil
	}
	shares := t.sharesSpace(src)
	count := func(read bool) error {
		total, err := t.content(ctx, src, read, shares)
		p.Move = total.n
		if t.spec.Type != Fixed { // else the content lies in what is laid out
			p.Need = m.used + min(total.n+(total.pieces+total.shares)*perPiece, math.MaxInt64-m.used)
		}
		t.mustShare = nil
		if all := p.Need + total.shared; all > p.Free {
			t.mustShare = &noSpace{what: t.ref.Path(), need: all, free: p.Free}
		}
		return err
	}
	if err := count(false); err != nil || p.Need <= p.Free || p.Need == m.used {
		return p, err
	}
	return p, count(true)
}

// content is how much a copy would store at most, and share if it can; exactly, if the
// source is read for it.
func (t *target) content(ctx context.Context, src source, read, shares bool) (sharer, error) {
	total := sharer{counter: &counter{}}
	c := t.copier(src, total.counter)
	if shares {
		c.dst = &total
	}
	if read {
		err := c.run(ctx)
		return total, err
	}
	list, done := make(chan piece), make(chan struct{})
	go func() {
		defer close(done)
		for p := range list {
			total.add(p.n)
		}
	}()
	err := c.walk(ctx, list)
	close(list)
	<-done
	return total, err
}

// counter is a [sink] that keeps nothing but how much it was given.
type counter struct {
	mu        sync.Mutex
	n, pieces int64
}

func (c *counter) add(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n, c.pieces = c.n+n, c.pieces+1
}

func (c *counter) WriteAt(p []byte, _ int64) (int, error) {
	c.add(int64(len(p)))
	return len(p), nil
}

func (c *counter) Zero(int64, int64, bool) error { return nil }
func (c *counter) Flush() error                  { return nil }
