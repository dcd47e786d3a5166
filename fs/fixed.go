package fs

import (
	"context"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// fixed refuses every change of names in a directory. go-fuse answers success
// for an Unlink or Rmdir that a node does not have, and forgets the file; and
// EPERM is what stops a recursive delete without a disk lost.
type fixed struct{}

// Mkdir implements [gofs.NodeMkdirer].
func (fixed) Mkdir(context.Context, string, uint32, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Mknod implements [gofs.NodeMknoder].
func (fixed) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Create implements [gofs.NodeCreater].
func (fixed) Create(context.Context, string, uint32, uint32, *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EPERM
}

// Link implements [gofs.NodeLinker].
func (fixed) Link(context.Context, gofs.InodeEmbedder, string, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Symlink implements [gofs.NodeSymlinker].
func (fixed) Symlink(context.Context, string, string, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Unlink implements [gofs.NodeUnlinker].
func (fixed) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }

// Rmdir implements [gofs.NodeRmdirer].
func (fixed) Rmdir(context.Context, string) syscall.Errno { return syscall.EPERM }

// Rename implements [gofs.NodeRenamer]. Never EXDEV: mv would copy.
func (fixed) Rename(context.Context, string, gofs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EPERM
}

// Fsync implements [gofs.NodeFsyncer]: no name here is ours to make durable.
func (fixed) Fsync(context.Context, gofs.FileHandle, uint32) syscall.Errno { return 0 }

// setTimes answers a SETATTR of a node that has nothing to set: times are
// accepted and ignored, modes and owners are the host's, sizes never change.
func setTimes(ctx context.Context, n node, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_SIZE) != 0 {
		return syscall.EPERM
	}
	return attrAfterSet(ctx, n, f, out)
}

// attrAfterSet is the attributes in the answer to a SETATTR, with the inode
// number, which go-fuse leaves out there: the kernel would show 0.
func attrAfterSet(ctx context.Context, n node, f gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Ino = n.EmbeddedInode().StableAttr().Ino
	return n.Getattr(ctx, f, out)
}
