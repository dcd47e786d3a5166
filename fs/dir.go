package fs

import (
	"context"
	"errors"
	iofs "io/fs"
	"path"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// serviceName is the directory of the service in the root of the mount.
const serviceName = ".vhdfs"

// dir is a folder of the host; the root of the mount is the image folder.
type dir struct {
	gofs.Inode
	fixed
	m    *mount
	path string // slash-separated, "" for the root
}

var (
	_ node               = (*dir)(nil)
	_ gofs.NodeLookuper  = (*dir)(nil)
	_ gofs.NodeReaddirer = (*dir)(nil)
	_ gofs.NodeFsyncer   = (*dir)(nil)
	_ gofs.NodeMkdirer   = (*dir)(nil)
	_ gofs.NodeMknoder   = (*dir)(nil)
	_ gofs.NodeCreater   = (*dir)(nil)
	_ gofs.NodeLinker    = (*dir)(nil)
	_ gofs.NodeSymlinker = (*dir)(nil)
	_ gofs.NodeUnlinker  = (*dir)(nil)
	_ gofs.NodeRmdirer   = (*dir)(nil)
	_ gofs.NodeRenamer   = (*dir)(nil)
)

func (d *dir) child(name string) string { return path.Join(d.path, name) }

// stat is of a host file by its path in the image folder.
func (m *mount) stat(name string) (ops.FileStat, error) {
	if name == "" {
		name = "."
	}
	return m.lib.Stat(m.lib.Top(name))
}

// Getattr implements [gofs.NodeGetattrer].
func (d *dir) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	name := d.path
	if d.m.opts.Single != "" {
		name = d.m.opts.Single
	}
	st, err := d.m.stat(name)
	if err != nil {
		return errno(err)
	}
	d.m.fillDir(&out.Attr, &st)
	return 0
}

// fillDir sets the attributes of the directory that stands for a folder or an image.
func (m *mount) fillDir(a *fuse.Attr, st *ops.FileStat) {
	mode := st.Mode & 0o777
	if !st.IsDir {
		mode = searchable(st.Mode)
	}
	m.fill(a, mode, st)
}

// Setattr implements [gofs.NodeSetattrer].
func (d *dir) Setattr(ctx context.Context, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return setTimes(ctx, d, f, in, out)
}

// Lookup implements [gofs.NodeLookuper]: one stat of the host, no image opened.
func (d *dir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	if d.path == "" && name == serviceName {
		t := d.m.service()
		return enterKept(ctx, &d.Inode, name, t, t.same, out)
	}
	if !d.shows(name) {
		return nil, syscall.ENOENT
	}
	p := d.child(name)
	st, err := d.m.stat(p)
	switch {
	case errors.Is(err, ops.ErrForbidden) || errors.Is(err, iofs.ErrPermission):
		return nil, syscall.ENOENT // it is in no list either
	case err != nil:
		return nil, errno(err)
	case st.IsDir:
		same := func(e gofs.InodeEmbedder) bool { o, ok := e.(*dir); return ok && o.path == p }
		d.m.fillDir(&out.Attr, &st)
		return keep(ctx, &d.Inode, name, &dir{m: d.m, path: p}, same), 0
	case st.IsRegular && d.m.lib.IsImageName(name):
		t := d.m.image(p)
		d.m.fillDir(&out.Attr, &st)
		return keep(ctx, &d.Inode, name, t, t.same), 0
	}
	return nil, syscall.ENOENT
}

// shows tells whether a name of the host folder may appear here.
func (d *dir) shows(name string) bool {
	if d.m.opts.Single != "" {
		return d.path == "" && name == d.m.opts.Single
	}
	return name != ops.StateDir
}

// keep is the node of a directory in answer to a LOOKUP: the one that is there, if it
// is still the same, else fresh.
func keep(ctx context.Context, parent *gofs.Inode, name string, fresh node, same func(gofs.InodeEmbedder) bool) *gofs.Inode {
	if _, child := known(parent, name, same); child != nil {
		return child
	}
	return parent.NewInode(ctx, fresh, gofs.StableAttr{Mode: syscall.S_IFDIR})
}

// enterKept is keep, with the attributes that fresh has.
func enterKept(ctx context.Context, parent *gofs.Inode, name string, fresh node, same func(gofs.InodeEmbedder) bool, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	var a fuse.AttrOut
	if no := fresh.Getattr(ctx, nil, &a); no != 0 {
		return nil, no
	}
	out.Attr = a.Attr
	return keep(ctx, parent, name, fresh, same), 0
}

// Readdir implements [gofs.NodeReaddirer]. It opens no image.
func (d *dir) Readdir(context.Context) (gofs.DirStream, syscall.Errno) {
	var list []fuse.DirEntry
	if d.path == "" {
		list = append(list, fuse.DirEntry{Name: serviceName, Mode: syscall.S_IFDIR})
	}
	if d.m.opts.Single != "" {
		list = append(list, fuse.DirEntry{Name: d.m.opts.Single, Mode: syscall.S_IFDIR})
		return gofs.NewListDirStream(list), 0
	}
	name := d.path
	if name == "" {
		name = "."
	}
	found, err := d.m.lib.List(name)
	if err != nil {
		return nil, errno(err)
	}
	for _, e := range found {
		if d.shows(e.Name) && !(d.path == "" && e.Name == serviceName) {
			list = append(list, fuse.DirEntry{Name: e.Name, Mode: syscall.S_IFDIR})
		}
	}
	return gofs.NewListDirStream(list), 0
}
