package sim

import (
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"syscall"

	"vhdfs/ops"
)

// maxLinks bounds the symbolic links of one path, as the kernel does.
const maxLinks = 40

// dir is an [ops.Dir] of a [Host].
type dir struct {
	host *Host
	node *node
	path string
}

var _ ops.Dir = (*dir)(nil)

func (d *dir) Close() error { return nil }

func (d *dir) Path(name string) string {
	if name == "." {
		return d.path
	}
	return strings.TrimSuffix(d.path, "/") + "/" + name
}

// walkLocked follows a path beneath d, symbolic links included unless a says no.
func (d *dir) walkLocked(name string, a ops.Access) (*node, error) {
	if strings.HasPrefix(name, "/") {
		return nil, d.forbidden(name, "is absolute")
	}
	if name == "" {
		return nil, syscall.ENOENT
	}
	trail, links := []*node{d.node}, 0
	todo := strings.Split(name, "/")
	for len(todo) > 0 {
		part, at := todo[0], trail[len(trail)-1]
		todo = todo[1:]
		if at.kind != directory {
			return nil, syscall.ENOTDIR
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if len(trail) == 1 {
				return nil, d.forbidden(name, "leads outside")
			}
			trail = trail[:len(trail)-1]
			continue
		}
		next := at.children[part]
		if next == nil {
			return nil, syscall.ENOENT
		}
		if next.kind != symlink {
			trail = append(trail, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, syscall.ELOOP
		}
		if a&ops.NoFollow != 0 {
			return nil, d.forbidden(name, "passes a symbolic link")
		}
		if strings.HasPrefix(next.target, "/") {
			return nil, d.forbidden(name, "leads outside")
		}
		todo = append(strings.Split(next.target, "/"), todo...)
	}
	return trail[len(trail)-1], nil
}

func (d *dir) forbidden(name, why string) error {
	return ops.Errorf(ops.ErrForbidden, 0, "%q %s", d.Path(name), why)
}

// parentLocked is the directory that holds, or will hold, the last part of name.
func (d *dir) parentLocked(name string) (*node, string, error) {
	base := path.Base(name)
	if base == "." || base == ".." || base == "/" {
		return nil, "", d.forbidden(name, "has no last part")
	}
	up := strings.TrimSuffix(name, base)
	if up == "" {
		up = "."
	}
	parent, err := d.walkLocked(up, ops.Read)
	if err == nil && parent.kind != directory {
		err = syscall.ENOTDIR
	}
	return parent, base, err
}

func pathError(op string, d *dir, name string, err error) error {
	if err == nil {
		return nil
	}
	if errno, ok := err.(syscall.Errno); ok {
		return &fs.PathError{Op: op, Path: d.Path(name), Err: errno}
	}
	return err
}

func (d *dir) Open(name string, a ops.Access) (ops.File, error) {
	h := d.host
	if err := h.ask(Call{Op: OpOpen, Path: d.Path(name)}); err != nil {
		return nil, pathError("open", d, name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := d.walkLocked(name, a)
	if err != nil {
		return nil, pathError("open", d, name, err)
	}
	if n.kind != regular {
		return nil, d.forbidden(name, "is not a regular file")
	}
	h.opened = append(h.opened, d.Path(name))
	return &file{host: h, node: n, path: d.Path(name), write: a&ops.Write != 0}, nil
}

func (d *dir) Create(name string, perm uint32) (ops.File, error) {
	n, err := d.add(OpCreate, name, perm)
	if err != nil {
		return nil, pathError("create", d, name, err)
	}
	return &file{host: d.host, node: n, path: d.Path(name), write: true}, nil
}

func (d *dir) Mkdir(name string, perm uint32) error {
	_, err := d.add(OpMkdir, name, perm)
	return pathError("mkdir", d, name, err)
}

func (d *dir) add(op Op, name string, perm uint32) (*node, error) {
	h := d.host
	if err := h.ask(Call{Op: op, Path: d.Path(name)}); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	parent, base, err := d.parentLocked(name)
	if err != nil {
		return nil, err
	}
	if parent.children[base] != nil {
		return nil, syscall.EEXIST
	}
	if err := h.mayChangeLocked(); err != nil {
		return nil, err
	}
	k := regular
	if op == OpMkdir {
		k = directory
	} else {
		h.opened = append(h.opened, d.Path(name))
	}
	n := h.addLocked(parent, base, k)
	n.perm = perm
	h.eventLocked(Event{Op: op, File: n.ino, Dir: parent.ino, Path: d.Path(name), IsDir: k == directory})
	return n, nil
}

func (d *dir) Stat(name string) (ops.FileStat, error) {
	h := d.host
	if err := h.ask(Call{Op: OpStat, Path: d.Path(name)}); err != nil {
		return ops.FileStat{}, pathError("stat", d, name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := d.walkLocked(name, ops.Read)
	if err != nil {
		return ops.FileStat{}, pathError("stat", d, name, err)
	}
	return n.stat(), nil
}

func (n *node) stat() ops.FileStat {
	return ops.FileStat{
		ID: ops.FileID{Dev: Device, Ino: n.ino}, Size: n.size, Blocks: n.stored * (pageSize / 512),
		Mtime: clock(n.mtime), Ctime: clock(n.mtime), Mode: n.perm, IsDir: n.kind == directory, IsRegular: n.kind == regular,
	}
}

func (d *dir) List(name string) ([]ops.DirEntry, error) {
	h := d.host
	if err := h.ask(Call{Op: OpList, Path: d.Path(name)}); err != nil {
		return nil, pathError("list", d, name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := d.walkLocked(name, ops.Read)
	if err == nil && n.kind != directory {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, pathError("list", d, name, err)
	}
	list := make([]ops.DirEntry, 0, len(n.children))
	for base, child := range n.children {
		if child.kind == symlink {
			if child, err = d.walkLocked(name+"/"+base, ops.Read); err != nil {
				continue
			}
		}
		list = append(list, ops.DirEntry{Name: base, IsDir: child.kind == directory, IsRegular: child.kind == regular})
	}
	slices.SortFunc(list, func(a, b ops.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (d *dir) Remove(name string) error {
	return pathError("remove", d, name, d.remove(name))
}

func (d *dir) remove(name string) error {
	h := d.host
	if err := h.ask(Call{Op: OpRemove, Path: d.Path(name)}); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	parent, base, err := d.parentLocked(name)
	if err != nil {
		return err
	}
	n := parent.children[base]
	if n == nil {
		return syscall.ENOENT
	}
	if len(n.children) > 0 {
		return syscall.ENOTEMPTY
	}
	if err := h.mayChangeLocked(); err != nil {
		return err
	}
	delete(parent.children, base)
	parent.mtime = h.ticks
	h.eventLocked(Event{Op: OpRemove, File: n.ino, Dir: parent.ino, Path: d.Path(name)})
	return nil
}

func (d *dir) Rename(old, new string) error {
	return pathError("rename", d, old, d.rename(old, new))
}

func (d *dir) rename(old, new string) error {
	h := d.host
	if err := h.ask(Call{Op: OpRename, Path: d.Path(old)}); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	from, oldBase, err := d.parentLocked(old)
	if err != nil {
		return err
	}
	to, newBase, err := d.parentLocked(new)
	if err != nil {
		return err
	}
	n := from.children[oldBase]
	if n == nil {
		return syscall.ENOENT
	}
	if to.children[newBase] != nil {
		return syscall.EEXIST
	}
	if err := h.mayChangeLocked(); err != nil {
		return err
	}
	delete(from.children, oldBase)
	to.children[newBase] = n
	from.mtime, to.mtime = h.ticks, h.ticks
	h.eventLocked(Event{Op: OpRename, File: n.ino, Dir: from.ino, ToDir: to.ino, Path: d.Path(old), To: d.Path(new), IsDir: n.kind == directory})
	return nil
}

// Free is what is left of the capacity that [Host.SetCapacity] sets.
func (d *dir) Free(name string) (int64, error) {
	h := d.host
	if err := h.ask(Call{Op: OpStat, Path: d.Path(name)}); err != nil {
		return 0, pathError("statfs", d, name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := d.walkLocked(name, ops.Read); err != nil {
		return 0, pathError("statfs", d, name, err)
	}
	if h.capacity == 0 {
		return math.MaxInt64, nil
	}
	return max(0, h.capacity-h.usedLocked()), nil
}

func (d *dir) Sync(name, label string) error {
	h := d.host
	if err := h.ask(Call{Op: OpSyncDir, Path: d.Path(name), Label: label}); err != nil {
		return pathError("sync", d, name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := d.walkLocked(name, ops.Read)
	if err != nil {
		return pathError("sync", d, name, err)
	}
	h.labels[label]++
	if !h.dropped[label] {
		h.eventLocked(Event{Op: OpSyncDir, File: n.ino, Dir: n.ino, Path: d.Path(name), Label: label})
	}
	return nil
}
