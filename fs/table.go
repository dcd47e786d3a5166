package fs

import (
	"context"
	"slices"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// table is a directory that is no folder of the host: an image, its
// partitions/, the service, its help/.
type table struct {
	gofs.Inode
	fixed
	m    *mount
	key  string                               // what it stands for: unique in the mount
	stat func() (*ops.FileStat, error)        // mode, and times of what it stands for
	rows func(context.Context) ([]row, error) // what is in it now
	edit *edits                               // what may be done to its names; nil: nothing
}

// edits are the changes of names that mean something in a table.
type edits struct {
	mkdir, rmdir func(ctx context.Context, name string) error
	rename       func(ctx context.Context, old, name string) error
	unlink       func(name string) // a refused one is told
}

// row is one name in a table.
type row struct {
	name string
	kind uint32 // S_IFREG, S_IFDIR or S_IFLNK
	// node makes the node. Zero attributes ask for a new inode number at each
	// LOOKUP: a small file that kept its inode would keep its old size, and a
	// second writer would wait for the first in the kernel in place of EBUSY.
	node   func() (node, gofs.StableAttr, error)
	hidden bool // found by its name, in no list
}

var (
	_ node               = (*table)(nil)
	_ gofs.NodeLookuper  = (*table)(nil)
	_ gofs.NodeReaddirer = (*table)(nil)
	_ gofs.NodeFsyncer   = (*table)(nil)
	_ gofs.NodeMkdirer   = (*table)(nil)
	_ gofs.NodeMknoder   = (*table)(nil)
	_ gofs.NodeCreater   = (*table)(nil)
	_ gofs.NodeLinker    = (*table)(nil)
	_ gofs.NodeSymlinker = (*table)(nil)
	_ gofs.NodeUnlinker  = (*table)(nil)
	_ gofs.NodeRmdirer   = (*table)(nil)
	_ gofs.NodeRenamer   = (*table)(nil)
)

func (t *table) same(e gofs.InodeEmbedder) bool {
	o, ok := e.(*table)
	return ok && o.key == t.key
}

// Getattr implements [gofs.NodeGetattrer].
func (t *table) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	st, err := t.stat()
	if err != nil {
		return errno(err)
	}
	t.m.fill(&out.Attr, searchable(st.Mode), st)
	return 0
}

// Setattr implements [gofs.NodeSetattrer].
func (t *table) Setattr(ctx context.Context, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return setTimes(ctx, t, f, in, out)
}

// Lookup implements [gofs.NodeLookuper].
func (t *table) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	rows, err := t.rows(ctx)
	if err != nil {
		return nil, errno(err)
	}
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
	if i < 0 {
		return nil, syscall.ENOENT
	}
	n, id, err := rows[i].node()
	if err != nil {
		return nil, errno(err)
	}
	if sub, ok := n.(*table); ok {
		return enterKept(ctx, &t.Inode, name, sub, sub.same, out)
	}
	id.Mode = rows[i].kind
	return enter(ctx, &t.Inode, n, id, out)
}

// Readdir implements [gofs.NodeReaddirer].
func (t *table) Readdir(ctx context.Context) (gofs.DirStream, syscall.Errno) {
	rows, err := t.rows(ctx)
	if err != nil {
		return nil, errno(err)
	}
	list := make([]fuse.DirEntry, 0, len(rows))
	for _, r := range rows {
		if !r.hidden {
			list = append(list, fuse.DirEntry{Name: r.name, Mode: r.kind})
		}
	}
	return gofs.NewListDirStream(list), 0
}

// subTable is a row for a directory.
func subTable(name string, t *table) row {
	return row{name: name, kind: syscall.S_IFDIR, node: func() (node, gofs.StableAttr, error) {
		return t, gofs.StableAttr{}, nil
	}}
}

// small is a row for a small file.
func small(name string, f *textFile) row {
	return row{name: name, kind: syscall.S_IFREG, node: func() (node, gofs.StableAttr, error) {
		return f, gofs.StableAttr{}, nil
	}}
}
