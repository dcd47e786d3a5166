package fs

import (
	"context"
	"errors"
	iofs "io/fs"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// Write implements [gofs.NodeWriter]. WRITE may come on another process's
// handle: the kernel takes any that is open for writing. What lies past the end
// is refused, what lies before it is stored: the kernel sends neighbours in one
// request.
func (c *content) Write(_ context.Context, f gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	h, ok := f.(*contentHandle)
	if !ok || !h.write {
		return 0, syscall.EBADF
	}
	c.m.counted.writes.Add(1)
	h.pages.lost.writes.Add(1)
	defer h.pages.lost.writes.Add(-1)
	n := h.inside(off, int64(len(data)))
	if n > 0 {
		if _, err := h.disk.WriteAt(data[:n], c.window.off+off); err != nil {
			c.lose(h.pages, off, int64(len(data)), err)
			return 0, c.failed("write", off, err)
		}
		c.m.counted.writeBytes.Add(n)
	}
	if n < int64(len(data)) {
		err := ops.Errorf(ops.ErrPastEnd, 0, "%d bytes at %d of %d", len(data), off, h.size())
		c.lose(h.pages, off+n, int64(len(data))-n, err)
		c.repairSize()
		return 0, c.failed("write", off, err)
	}
	return uint32(n), 0
}

// repairSize puts the size that the kernel believes right again: the daemon
// truncates its own file, from a goroutine that serves no request.
func (c *content) repairSize() {
	v, name := c.beginRepair()
	if v == nil {
		return
	}
	go func() {
		defer c.endRepair(v)
		if err := apart(func() error { return c.truncateOwn(name) }); err != nil {
			c.log().WithError(err).Debug("repairing the size of raw")
		}
	}()
}

// beginRepair is nil when one is under way, or there is nothing to repair.
func (c *content) beginRepair() (*pages, ops.Ref) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	v := c.viewLocked()
	if v == nil || v.fixing || c.m.opts.Cache != Writeback {
		return nil, ops.Ref{}
	}
	v.fixing = true
	if len(v.handles) > 0 {
		return v, v.handles[0].opened
	}
	return v, v.names.image
}

func (c *content) endRepair(v *pages) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	v.fixing = false
}

// Allocate implements [gofs.NodeAllocater]: fallocate. Punching gives space
// back, zeroing keeps it; both read as zeros afterwards at any alignment. Space
// is allocated by writing: reserving it inside the disk is accepted as nothing.
func (c *content) Allocate(_ context.Context, f gofs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	h, ok := f.(*contentHandle)
	if !ok || !h.write {
		return syscall.EBADF
	}
	end := h.size()
	past := off > uint64(end) || size > uint64(end)-off
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		if past {
			return syscall.ENOSPC
		}
		return 0
	case unix.FALLOC_FL_PUNCH_HOLE:
		return c.zero(h, int64(min(off, uint64(end))), size, true)
	case unix.FALLOC_FL_ZERO_RANGE:
		if past {
			return syscall.ENOSPC
		}
		return c.zero(h, int64(off), size, false)
	}
	return syscall.EOPNOTSUPP
}

// zero makes a range of the window read as zeros, up to its end.
func (c *content) zero(h *contentHandle, off int64, size uint64, unmap bool) syscall.Errno {
	n := int64(min(size, uint64(h.size()-off)))
	if n == 0 {
		return 0
	}
	c.m.counted.zeroes.Add(1)
	if err := h.disk.Zero(c.window.off+off, n, unmap); err != nil {
		return c.failed("zero", off, err)
	}
	c.m.counted.zeroBytes.Add(n)
	return 0
}

// Setattr implements [gofs.NodeSetattrer].
func (c *content) Setattr(ctx context.Context, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	size, ok := in.GetSize()
	if !ok {
		return setTimes(ctx, c, f, in, out)
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return syscall.EPERM
	}
	grown, no := c.truncate(ctx, f, size)
	if no != 0 {
		return no
	}
	if no := attrAfterSet(ctx, c, f, out); no != 0 {
		return no
	}
	if grown > 0 {
		out.Size = uint64(grown)
	}
	if size == 0 && c.m.opts.Discard {
		c.dropPages(out)
	}
	return 0
}

// dropPages makes the kernel forget what it has of a disk that was discarded: it
// does that for the size 0, and learns the true one afterwards. Telling it to
// with NotifyContent would wait for this very SETATTR.
func (c *content) dropPages(out *fuse.AttrOut) {
	out.Size = 0
	out.SetTimeout(0)
	c.repairSize()
}

// truncate is ftruncate and O_TRUNC. The present size is nothing, without asking
// for any lock: it is how the daemon itself sets right what the kernel believes.
// More is a resize, and gives the size that the disk has then. Less is refused,
// because dd seek=, cp and qemu-img ask for it on their way to overwrite a disk.
func (c *content) truncate(ctx context.Context, f gofs.FileHandle, size uint64) (grown int64, no syscall.Errno) {
	have := uint64(c.size())
	caller, ok := fuse.FromContext(ctx)
	switch {
	case size == have:
		return 0, 0
	case ok && size != 0 && ownThread(caller.Pid):
		return 0, syscall.EAGAIN // the daemon's own, which the disk has overtaken
	case c.m.opts.ReadOnly:
		return 0, syscall.EROFS
	case size == 0:
		return 0, c.empty(ctx, f)
	case size < have:
		c.log().Warnf("truncating raw from %d to %d bytes is refused: shrink with resize", have, size)
		return 0, syscall.EPERM
	}
	grown, err := c.grow(ctx, size)
	if err != nil {
		c.log().WithError(err).Warnf("truncating raw from %d to %d bytes", have, size)
	}
	return grown, errno(err)
}

// empty is size 0: what > raw, O_TRUNC and tools that copy disks ask for before
// they write. They leave holes unwritten then, so it must not be ignored where
// old bytes would show.
func (c *content) empty(ctx context.Context, f gofs.FileHandle) syscall.Errno {
	h, named := f.(*contentHandle)
	if !named {
		var err error
		if h, err = c.open(ctx, true); err != nil {
			return errno(err)
		}
		defer c.Release(ctx, h)
	}
	if !h.write {
		return syscall.EBADF
	}
	if c.m.opts.Discard {
		return c.zero(h, 0, uint64(h.size()), true)
	}
	if !c.onlyWriter(h, named) {
		c.log().Warn("truncating raw to 0 bytes is refused: another program has it open for writing")
		return syscall.EEXIST
	}
	pos, err := h.seek(ctx, 0, true)
	if err == syscall.ENXIO {
		return 0
	}
	if err != nil {
		return c.failed("truncate", 0, err)
	}
	c.log().Warnf("truncating raw to 0 bytes is refused, it holds data at %d: "+
		"write over it (dd conv=notrunc, qemu-img convert -n), or punch the whole range first", pos)
	return syscall.EEXIST
}

// onlyWriter tells whether nobody but the caller of a SETATTR has the view open
// for writing: the unwritten pages of others cannot be seen from there. h is the
// caller's handle if it named one, else one of ours: open(O_TRUNC) names none but
// has one, and one of its process is taken for it. RELEASE comes late: it waits
// for a second.
func (c *content) onlyWriter(h *contentHandle, named bool) bool {
	for try := 0; c.otherWriters(h, named) > 0; try++ {
		if try == waitTries {
			return false
		}
		time.Sleep(waitStep)
	}
	return true
}

func (c *content) otherWriters(h *contentHandle, named bool) int {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	others, own := 0, named
	for _, o := range h.pages.handles {
		switch {
		case !o.write || o == h:
		case !own && o.opener == h.opener:
			own = true
		default:
			others++
		}
	}
	return others
}

// flushAll fetches what the kernel holds of written bytes and makes it durable. What
// was lost of it, and nobody has been told of, is an error too.
// No lock of ours is held: NotifyContent waits for the WRITEs that it causes.
func (m *mount) flushAll() error {
	var first error
	for _, h := range m.handles() {
		if !h.write {
			continue
		}
		h.node.NotifyContent(0, 0)
		err := h.disk.Flush()
		if err == nil {
			err = h.node.lost(h.pages)
		}
		if err != nil && !errors.Is(err, iofs.ErrClosed) && first == nil { // closed meanwhile: flushed
			first = err
		}
	}
	return first
}
