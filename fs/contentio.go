package fs

import (
	"context"
	"io"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// Read implements [gofs.NodeReader]. READ comes on handles that were opened for
// writing only, too: the kernel fills the rest of a page before it changes it.
// The reply is never longer than dest, which would kill the mount.
func (c *content) Read(_ context.Context, f gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h, ok := f.(*contentHandle)
	if !ok {
		return nil, syscall.EBADF
	}
	c.m.counted.reads.Add(1)
	n := h.inside(off, int64(len(dest)))
	got, err := h.disk.ReadAt(dest[:n], c.window.off+off)
	if err != nil && err != io.EOF {
		return nil, c.failed("read", off, err)
	}
	c.m.counted.readBytes.Add(int64(got))
	return inPlace(dest[:got]), 0
}

// size is that of the handle's window.
func (h *contentHandle) size() int64 {
	if h.node.window.part == 0 {
		return h.disk.Size()
	}
	return h.node.window.length
}

// inside is how many of n bytes at off lie in the window.
func (h *contentHandle) inside(off, n int64) int64 {
	if off < 0 || n < 0 {
		return 0
	}
	return max(0, min(n, h.size()-off))
}

// failed counts and logs a failed request; nothing is said of a guest's data.
func (c *content) failed(what string, off int64, err error) syscall.Errno {
	c.m.counted.ioErrors.Add(1)
	c.log().WithField("offset", off).WithError(err).Error(what)
	return errno(err)
}

// Lseek implements [gofs.NodeLseeker]: SEEK_DATA and SEEK_HOLE by the map of the
// whole chain. Other programs' bytes that the kernel has not written yet are
// written first, or they would be taken for a hole; inside LSEEK that cannot
// deadlock, as it would in READ, WRITE and SETATTR.
func (c *content) Lseek(ctx context.Context, f gofs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	h, ok := f.(*contentHandle)
	if !ok {
		return 0, syscall.EBADF
	}
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	if off >= uint64(h.size()) {
		return 0, syscall.ENXIO
	}
	if c.anyHandle(true) != nil {
		if no := c.NotifyContent(int64(off), 0); no != 0 && no != syscall.ENOENT {
			return 0, c.failed("seek", int64(off), no)
		}
	}
	pos, err := h.seek(ctx, int64(off), whence == unix.SEEK_DATA)
	if err != nil {
		if err == syscall.ENXIO || err == syscall.EINTR {
			return 0, errno(err)
		}
		return 0, c.failed("seek", int64(off), err)
	}
	return uint64(pos), 0
}

// seek finds the first byte at or after off that is data, or is not. ENXIO when
// no data follows; the end of the window is a hole.
func (h *contentHandle) seek(ctx context.Context, off int64, data bool) (int64, error) {
	size, start := h.size(), h.node.window.off
	for pos := off; pos < size; {
		if ctx.Err() != nil && callerDying(ctx) {
			return 0, syscall.EINTR
		}
		e, err := h.disk.Extent(start+pos, size-pos)
		if err != nil {
			return 0, err
		}
		if (e.Kind == ops.Data) == data {
			return pos, nil
		}
		if e.Len <= 0 {
			return 0, ops.Errorf(ops.ErrCorrupt, 0, "extent of %d bytes at %d", e.Len, start+pos)
		}
		pos += e.Len
	}
	if data {
		return 0, syscall.ENXIO
	}
	return size, nil
}

// Flush implements [gofs.NodeFlusher]: close(2) promises nothing, but a write
// that was lost after write(2) had returned is told here as well.
func (c *content) Flush(_ context.Context, f gofs.FileHandle) syscall.Errno {
	h, ok := f.(*contentHandle)
	if !ok || !h.write {
		return 0
	}
	c.awaitSize(h.pages)
	return errno(c.lost(h.pages))
}

// Fsync implements [gofs.NodeFsyncer]: every write that completed before
// survives power loss when it answers 0, whichever handles they came on.
//
// The kernel tells of a page that it could not write once; the next fsync would
// succeed though the bytes are nowhere. So a lost write is remembered: what was
// lost for want of space is told by the next flush that succeeds, anything else
// by every fsync until the file is closed by all.
func (c *content) Fsync(_ context.Context, f gofs.FileHandle, _ uint32) syscall.Errno {
	h, ok := f.(*contentHandle)
	if !ok {
		return syscall.EBADF
	}
	c.m.counted.flushes.Add(1)
	lost := c.lost(h.pages)
	if err := h.disk.Flush(); err != nil {
		return c.failed("flush", 0, err)
	}
	if lost != nil && errno(lost) == syscall.ENOSPC {
		c.told(h.pages, lost)
	}
	return errno(lost)
}
