package fs

import (
	"context"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// node is what every node of the tree is.
type node interface {
	gofs.InodeEmbedder
	gofs.NodeGetattrer
	gofs.NodeSetattrer
}

// blockSize is the preferred I/O size that stat shows. go-fuse overwrites the
// number of blocks of a node that does not set it.
const blockSize = 4096

// attrTTL is how long the kernel may use attributes of a raw file that is open.
// A stat by name always asks (the name is looked up); without it the kernel asks
// before every buffered write(2) as well. Its own punches and writes end it early.
const attrTTL = time.Second

// fill sets the attributes that all nodes have: those of the host file st, with
// the mount's owner.
func (m *mount) fill(a *fuse.Attr, mode uint32, st *ops.FileStat) {
	a.Mode = mode
	a.Owner = m.owner
	a.Nlink = 1
	a.Blksize = blockSize
	a.SetTimes(&st.Mtime, &st.Mtime, &st.Ctime)
}

// searchable turns the read bits of an image into the mode of its directory: who
// may read the disk may look at what is said of it.
func searchable(mode uint32) uint32 {
	r := mode & 0o444
	return r | r>>2 | mode&0o200
}

// enter answers a LOOKUP in parent with n. go-fuse gives the node that it knows
// under the same stable attributes instead, if there is one. Names are asked for
// every time: the entry's time-out stays 0.
func enter(ctx context.Context, parent *gofs.Inode, n node, id gofs.StableAttr, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	child := parent.NewInode(ctx, n, id)
	var a fuse.AttrOut
	if no := n.Getattr(ctx, nil, &a); no != 0 {
		return nil, no
	}
	out.Attr = a.Attr
	out.AttrValid, out.AttrValidNsec = a.AttrValid, a.AttrValidNsec
	return child, 0
}

// known is the node of a directory that has this name now. A directory keeps its
// node as long as it stands for the same: the kernel takes another one for a
// replacement and detaches whoever is in the old one.
func known(parent *gofs.Inode, name string, same func(gofs.InodeEmbedder) bool) (node, *gofs.Inode) {
	child := parent.GetChild(name)
	if child == nil || !same(child.Operations()) {
		return nil, nil
	}
	n, ok := child.Operations().(node)
	if !ok {
		return nil, nil
	}
	return n, child
}

// now is the time stamp of what exists only here.
func (m *mount) now() ops.FileStat {
	t := time.Now()
	return ops.FileStat{Mtime: t, Ctime: t}
}
