package fs

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// parked is an image that was opened under a node that does not stand for it any more:
// its file was replaced, or changed, between look-up and open. That open answers
// ESTALE, and the kernel looks the name up and opens it once more: were the file to
// change again meanwhile, the program would be told ESTALE. So this second look-up, by
// the same thread, finds what was opened, and the second open takes it: an open(2) of
// raw finds one file or the other, as that of a plain file does. The disk of a set
// depends on more than a file: its node alone is kept for the thread.
type parked struct {
	image  ops.Ref
	disk   *ops.Handle // nil of a set
	access ops.Access
	stat   ops.FileStat
	view   *pages // that the second look-up has pinned; mount.mu guards it
	taken  bool   // or given up; mount.mu guards it
	late   *time.Timer
}

// parkedFor is how long an image is parked, for a thread that never looks again: less than
// an operation waits for who is in its way.
const parkedFor = waitTries * waitStep / 2

// park keeps an image that was opened for the thread that looks again; false where it
// does not, and the caller closes the image. A partition's place depends on more than a
// file: it is not parked.
func (m *mount) park(caller *fuse.Caller, c *content, image ops.Ref, disk *ops.Handle, access ops.Access) bool {
	if caller == nil || caller.Pid == 0 || c.window.part != 0 {
		return false
	}
	p, pid := &parked{image: image, access: access}, caller.Pid
	if !c.isSet {
		st, err := disk.Stat()
		if err != nil || disk.CacheID() != st.ID {
			return false
		}
		p.disk, p.stat = disk, st
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed || m.mu.parked[pid] != nil {
		return false
	}
	m.mu.parked[pid] = p
	p.late = time.AfterFunc(parkedFor, func() { m.forgetParked(pid, p) })
	return p.disk != nil
}

// raw makes the node of an image's raw, as far as the thread that looks is to see it.
func (m *mount) raw(ctx context.Context, found *ops.Found) (node, gofs.StableAttr, error) {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return m.content(found, window{length: found.Size})
	}
	m.mu.Lock()
	p := m.mu.parked[caller.Pid]
	m.mu.Unlock()
	if p == nil || p.image.Path() != found.Ref.Path() || (p.disk == nil) != (found.Set != nil) {
		return m.content(found, window{length: found.Size})
	}
	if p.disk == nil {
		return m.contentAgain(found, window{length: found.Size}, p)
	}
	old := *found
	old.Stat, old.Size = p.stat, p.disk.Size()
	return m.contentAgain(&old, window{length: old.Size}, p)
}

// unpark gives what is parked for a thread that opens something; nil where nothing is.
// What it has pinned stays so until [mount.unpin].
func (m *mount) unpark(caller *fuse.Caller) *parked {
	if caller == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.mu.parked[caller.Pid]
	if p != nil {
		p.late.Stop()
		p.taken = true
		delete(m.mu.parked, caller.Pid)
	}
	return p
}

// unpin lets the view go that was kept for an open.
func (m *mount) unpin(p *parked) {
	if p == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.view != nil {
		p.view.pinned--
	}
}

// openOr is what is parked, where the node stands for it and nobody asks for more: true
// then. Else it opens the image. One whose file changed while others had it open cannot be opened
// before they have closed it, of which the mount hears late: that is waited for.
func (c *content) openOr(p *parked, image ops.Ref, access ops.Access) (disk *ops.Handle, taken bool, err error) {
	if p != nil && p.disk != nil && p.stat.ID == c.file && p.access == access && c.window.part == 0 {
		return p.disk, true, nil
	}
	c.m.closeParked(p)
	for try := 0; ; try++ {
		disk, err = c.m.lib.Open(image, access)
		if try == waitTries || !errors.Is(err, ops.ErrChanged) {
			return disk, false, err
		}
		time.Sleep(waitStep)
	}
}

// forgetParked ends what no thread came back for.
func (m *mount) forgetParked(pid uint32, p *parked) {
	m.mu.Lock()
	mine := m.mu.parked[pid] == p
	if mine {
		p.taken = true
		delete(m.mu.parked, pid)
	}
	m.mu.Unlock()
	if mine {
		m.unpin(p)
		m.closeParked(p)
	}
}

func (m *mount) closeParked(p *parked) {
	if p == nil || p.disk == nil {
		return
	}
	if err := p.disk.Close(); err != nil {
		m.log.WithField("image", p.image.Path()).WithError(err).Warn("close")
	}
}

// unparkAll is for the end of the mount.
func (m *mount) unparkAll() {
	m.mu.Lock()
	pids := slices.Collect(maps.Keys(m.mu.parked))
	m.mu.Unlock()
	for _, pid := range pids {
		p := m.unpark(&fuse.Caller{Pid: pid})
		m.unpin(p)
		m.closeParked(p)
	}
}
