package fs

import (
	"context"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// link is the parent of a differencing image: a symbolic link to its directory.
type link struct {
	gofs.Inode
	m    *mount
	path string // of the child in the image folder
}

var (
	_ node                = (*link)(nil)
	_ gofs.NodeReadlinker = (*link)(nil)
)

// Getattr implements [gofs.NodeGetattrer].
func (l *link) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	st, err := l.m.stat(l.path)
	if err != nil {
		return errno(err)
	}
	l.m.fill(&out.Attr, 0o777, &st)
	return 0
}

// Setattr implements [gofs.NodeSetattrer].
func (l *link) Setattr(ctx context.Context, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return setTimes(ctx, l, f, in, out)
}

// Readlink implements [gofs.NodeReadlinker]. A parent in the mount is a relative
// path to its directory, one elsewhere the path of its file on the host. A
// parent that is missing leaves a dangling link to the name that the child
// records, beside the child.
func (l *link) Readlink(context.Context) ([]byte, syscall.Errno) {
	links, err := l.m.lib.ChainOf(l.m.lib.Top(l.path))
	if err != nil {
		return nil, errno(err)
	}
	if len(links) == 0 {
		return nil, syscall.ENOENT
	}
	if len(links) > 1 {
		return l.to(links[1].Ref)
	}
	return []byte(path.Join("..", baseName(links[0].Stored))), 0
}

func (l *link) to(parent ops.Ref) ([]byte, syscall.Errno) {
	top := l.m.lib.Top("")
	if parent.Dir != top.Dir || l.m.opts.Single != "" {
		return []byte(parent.Path()), 0
	}
	rel, err := filepath.Rel(l.path, parent.Name)
	if err != nil {
		return nil, errno(err)
	}
	return []byte(rel), 0
}

// baseName is the last part of the first recorded path that has one. Paths come
// out of images: separators of both worlds count, and nothing else of the path
// gets into the link.
func baseName(stored []ops.ParentPath) string {
	for _, p := range stored {
		name := p.Path[strings.LastIndexAny(p.Path, `/\`)+1:]
		if name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsRune(name, 0) {
			return name
		}
	}
	return "missing"
}
