package fs

import (
	"context"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"vhdfs/ops"
)

// content is a window of a guest's disk as a file: raw, or a partition.
type content struct {
	gofs.Inode
	m      *mount
	file   ops.FileID // the host file that makes its identity; of a set its own, as its disk may change
	isSet  bool
	first  names  // of its first look-up
	gen    uint32 // see pages
	window window
}

var (
	_ node                 = (*content)(nil)
	_ gofs.NodeOpener      = (*content)(nil)
	_ gofs.NodeReader      = (*content)(nil)
	_ gofs.NodeWriter      = (*content)(nil)
	_ gofs.NodeLseeker     = (*content)(nil)
	_ gofs.NodeAllocater   = (*content)(nil)
	_ gofs.NodeFlusher     = (*content)(nil)
	_ gofs.NodeFsyncer     = (*content)(nil)
	_ gofs.NodeReleaser    = (*content)(nil)
	_ gofs.NodeOnForgetter = (*content)(nil)
)

// names are those of a content file in the image folder: a host file may have
// several, and get new ones, while its node stays.
type names struct {
	image ops.Ref // what is opened
	host  ops.Ref // the file that holds the disk: the same, but for a set
	kept  *kept   // what it was looked up as, nil for anything but a snapshot
}

// kept is a snapshot of a set.
type kept struct {
	set ops.Ref
	id  string
}

// contentHandle is one open of a content file.
type contentHandle struct {
	disk   *ops.Handle
	node   *content
	opened ops.Ref // the name of the image
	pages  *pages
	write  bool
	opener uint32 // the process that opened it
	device bool   // the daemon itself opened it: for an attached image's block device, or to write back
}

// content makes the node of a window of an image, by a stat of its file alone. as is
// the snapshot that the image is looked up as, nil without one.
func (m *mount) content(found *ops.Found, w window, as *kept) (node, gofs.StableAttr, error) {
	c := &content{m: m, first: names{image: found.Ref, host: found.Ref, kept: as}, window: w}
	st := found.Stat
	if found.Set != nil && found.Err == nil {
		var err error
		if found, st, err = m.lib.Active(found); err != nil {
			return nil, gofs.StableAttr{}, err
		}
		c.first.host = found.Leaf
	}
	c.file, c.isSet = found.Stat.ID, found.Set != nil
	c.gen = m.look(c.file, &st, w, c.first)
	return c, gofs.StableAttr{Ino: nodeIno(c.file.Ino), Gen: nodeGen(c.file.Dev, c.gen)}, nil
}

// nodeIno is the host's inode number, but for those that mean something else to
// go-fuse: 0 asks for any number, all ones is reserved. The generation keeps
// nodes apart whatever this number is.
func nodeIno(ino uint64) uint64 {
	if ino == 0 || ino == ^uint64(0) {
		return 1 << 62
	}
	return ino
}

// Getattr implements [gofs.NodeGetattrer]: the size is the disk's, the blocks
// are what the image's own file has allocated, the times are the file's.
func (c *content) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	host := c.names().host
	st, err := host.Dir.Stat(host.Name)
	if err != nil || c.isSet || st.ID != c.file {
		h := c.anyHandle(false)
		if h == nil && (err != nil || !c.isSet) {
			return syscall.ESTALE
		}
		if h == nil {
			return c.fillAttr(out, &st)
		}
		if st, err = h.disk.Stat(); err != nil { // unlinked or replaced while open
			return errno(err)
		}
	}
	return c.fillAttr(out, &st)
}

func (c *content) fillAttr(out *fuse.AttrOut, st *ops.FileStat) syscall.Errno {
	mode := st.Mode & 0o666
	if c.m.opts.ReadOnly {
		mode &= 0o444
	}
	c.m.fill(&out.Attr, mode, st)
	out.Size = uint64(c.size())
	out.Blocks = uint64(st.Blocks)
	out.SetTimeout(attrTTL)
	return 0
}

// size is that of the window; the whole disk's may have grown since it was opened.
func (c *content) size() int64 {
	if c.window.part == 0 {
		if h := c.anyHandle(false); h != nil {
			if n := h.disk.Size(); n > 0 { // 0: closed meanwhile
				return n
			}
		}
	}
	return c.window.length
}

// viewLocked is the node's view; nil when the node is not the current one.
func (c *content) viewLocked() *pages {
	d := c.m.mu.disks[c.file]
	if d == nil {
		return nil
	}
	v := d.windows[c.window.part]
	if v == nil || v.gen != c.gen {
		return nil
	}
	return v
}

// names are those under which the node was looked up last.
func (c *content) names() names {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if v := c.viewLocked(); v != nil {
		return v.names
	}
	return c.first
}

// log starts a line about the image.
func (c *content) log() *logrus.Entry { return c.m.log.WithField("image", c.names().image.Path()) }

// anyHandle is some open handle of the node, one for writing if asked; nil when
// there is none.
func (c *content) anyHandle(write bool) *contentHandle {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	v := c.viewLocked()
	if v == nil {
		return nil
	}
	for _, h := range v.handles {
		if h.write || !write {
			return h
		}
	}
	return nil
}

// Open implements [gofs.NodeOpener]: it opens the image and its parents, or
// joins those who have it open. Pages are kept always: a node under which they
// may be wrong is not opened (see pages).
func (c *content) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	h, err := c.open(ctx, flags&syscall.O_ACCMODE != syscall.O_RDONLY)
	if err != nil {
		c.m.counted.openErrors.Add(1)
		if err != errLookAgain {
			c.log().WithError(err).Info("open")
		}
		return nil, 0, errno(err)
	}
	c.m.counted.opens.Add(1)
	if c.m.opts.Cache == CacheNone {
		return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
	}
	return h, fuse.FOPEN_KEEP_CACHE, 0
}

func (c *content) open(ctx context.Context, write bool) (*contentHandle, error) {
	access := ops.Read
	if write {
		if c.m.opts.ReadOnly {
			return nil, ops.Errorf(ops.ErrReadOnly, 0, "%s: the mount is read-only", c.names().image.Name)
		}
		access = ops.Write
	}
	caller, known := fuse.FromContext(ctx)
	device := known && ownThread(caller.Pid)
	if device && write { // nothing else of the daemon's writes to its own mount
		access |= ops.ForDevice
	}
	v, err := c.m.admit(c, write)
	if err != nil {
		return nil, err
	}
	n := c.names()
	disk, err := c.m.openDisk(n, access)
	if err != nil {
		c.m.dismiss(v, write)
		return nil, err
	}
	h := &contentHandle{disk: disk, node: c, opened: n.image, pages: v, write: write}
	h.device = device
	if known {
		h.opener = caller.Pid
	}
	at := time.Now()
	if err := c.m.settle(c, h, stampOf(disk.Layers()), at); err != nil {
		if e := disk.Close(); e != nil {
			c.log().WithError(e).Warn("close")
		}
		return nil, err
	}
	return h, nil
}

// openDisk opens an image. What is read as a snapshot has to be the file that the set
// recorded when it is opened, too: the one that was looked up may have been exchanged.
func (m *mount) openDisk(n names, a ops.Access) (*ops.Handle, error) {
	if n.kept != nil && a&ops.Write == 0 {
		return m.lib.OpenSnapshot(n.kept.set, n.kept.id)
	}
	return m.lib.Open(n.image, a)
}

// Release implements [gofs.NodeReleaser]. The kernel has written its dirty pages
// by now. Nobody is told of an error here; fsync is what promises.
func (c *content) Release(_ context.Context, f gofs.FileHandle) syscall.Errno {
	if h, ok := f.(*contentHandle); ok && c.m.leave(h) {
		if err := c.m.close(h); err != nil {
			c.log().WithError(err).Error("close")
		}
	}
	return 0
}

// close closes a handle that has left its view.
func (m *mount) close(h *contentHandle) error {
	layers := h.disk.Layers()
	err := h.disk.Close()
	m.rest(h.pages, stampOf(layers))
	return err
}

// OnForget implements [gofs.NodeOnForgetter].
func (c *content) OnForget() { c.m.forget(c, time.Now()) }

// closeAll closes every handle, when no RELEASE is to be expected any more.
func (m *mount) closeAll() {
	m.mu.Lock()
	m.mu.closed = true
	m.mu.Unlock()
	for _, h := range m.handles() {
		if !m.leave(h) {
			continue
		}
		if err := m.close(h); err != nil {
			h.node.log().WithError(err).Error("close")
		}
	}
}
