// Package host is the real host behind [ops.Dir] and [ops.File]: directories
// that nothing leads out of, and files with their holes, syncs and locks. It is
// the only package that opens files of the host for images.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// Dir is a directory of the host. Safe for concurrent use.
type Dir struct {
	root *os.File // O_PATH
	path string   // absolute; for answers and messages
	walk bool     // the kernel has no openat2: resolve by components
	bare bool     // rename as where the file system takes no flags
	mu   struct {
		sync.RWMutex
		refused []uint64
	}
}

var _ ops.Dir = (*Dir)(nil)

// OpenDir opens the directory at path for its names and all that lies beneath.
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenFile(abs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := &Dir{root: root, path: abs}
	f, err := d.openat2(".", unix.O_PATH, ops.Read)
	if err == nil {
		return d, f.Close()
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return nil, errors.Join(err, root.Close())
	}
	d.walk = true // an old kernel, or a sandbox that refuses what it does not know
	return d, nil
}

// Refuse lets nothing be opened, made or removed on the file system with this
// device number (st_dev): a mount served by this very program, which would wait
// for itself.
func (d *Dir) Refuse(dev uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.refused = append(d.mu.refused, dev)
}

func (d *Dir) refuses(dev uint64) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Contains(d.mu.refused, dev)
}

// Close gives the directory back; files opened in it stay open.
func (d *Dir) Close() error { return d.root.Close() }

// Path is the absolute host path of name.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// find opens name without any effect on it (O_PATH), whatever it is.
func (d *Dir) find(name string, a ops.Access) (*os.File, ops.FileStat, error) {
	f, err := d.resolve(name, a)
	if err != nil {
		return nil, ops.FileStat{}, err
	}
	st, err := statFile(f)
	if err == nil {
		err = d.judge(name, st)
	}
	if err != nil {
		return nil, ops.FileStat{}, errors.Join(err, f.Close())
	}
	return f, st, nil
}

// Open opens a regular file beneath the directory. What is found is looked at
// before it is opened, through a descriptor: a FIFO or device never feels it.
func (d *Dir) Open(name string, a ops.Access) (ops.File, error) {
	f, err := d.open(name, a)
	if err != nil {
		return nil, d.pathError("open", name, err)
	}
	return &File{f: f}, nil
}

func (d *Dir) open(name string, a ops.Access) (*os.File, error) {
	found, st, err := d.find(name, a)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	if !st.IsRegular {
		return nil, ops.Errorf(ops.ErrForbidden, 0, "%q is not a regular file", d.Path(name))
	}
	flags := unix.O_RDONLY
	if a&ops.Write != 0 {
		flags = unix.O_RDWR
	}
	return reopen(found, d.Path(name), flags)
}

// reopen opens what an O_PATH descriptor stands for. Only the owner of a file
// may leave its access time alone; anyone else opens it all the same.
func reopen(found *os.File, name string, flags int) (*os.File, error) {
	self := fmt.Sprintf("/proc/self/fd/%d", found.Fd())
	flags |= unix.O_CLOEXEC | unix.O_NOCTTY
	fd, err := openRetry(unix.AT_FDCWD, self, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = openRetry(unix.AT_FDCWD, self, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openRetry(dirfd int, name string, flags int, perm uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, name, flags, perm)
		return err
	})
	return fd, err
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// in opens the directory that holds the last part of name, and that part.
func (d *Dir) in(name string) (*os.File, string, error) {
	base := path.Base(name)
	if base == "." || base == ".." || base == "/" || strings.HasSuffix(name, "/") {
		return nil, "", ops.Errorf(ops.ErrForbidden, 0, "%q does not name an entry of a directory", name)
	}
	up := strings.TrimSuffix(name, base)
	if up == "" {
		up = "."
	}
	parent, st, err := d.find(up, ops.Read)
	if err == nil && !st.IsDir {
		err = errors.Join(unix.ENOTDIR, parent.Close())
	}
	return parent, base, err
}

// at runs a call on the directory that holds the last part of name.
func (d *Dir) at(op, name string, call func(dirfd int, base string) error) error {
	parent, base, err := d.in(name)
	if err != nil {
		return d.pathError(op, name, err)
	}
	defer parent.Close()
	return d.pathError(op, name, retry(func() error { return call(int(parent.Fd()), base) }))
}

// Create makes a new file with permission bits perm, less the umask.
func (d *Dir) Create(name string, perm uint32) (ops.File, error) {
	var f *os.File
	err := d.at("create", name, func(dirfd int, base string) error {
		const flags = unix.O_CREAT | unix.O_EXCL | unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err := unix.Openat(dirfd, base, flags, perm)
		if err == nil {
			f = os.NewFile(uintptr(fd), d.Path(name))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &File{f: f}, nil
}

// Mkdir makes a directory with permission bits perm, less the umask.
func (d *Dir) Mkdir(name string, perm uint32) error {
	return d.at("mkdir", name, func(dirfd int, base string) error { return unix.Mkdirat(dirfd, base, perm) })
}

// Remove unlinks a file or an empty directory.
func (d *Dir) Remove(name string) error {
	return d.at("remove", name, func(dirfd int, base string) error {
		err := unix.Unlinkat(dirfd, base, 0)
		if err == unix.EISDIR {
			err = unix.Unlinkat(dirfd, base, unix.AT_REMOVEDIR)
		}
		return err
	})
}

// Sync makes changes of the names in directory name durable.
func (d *Dir) Sync(name, _ string) error {
	f, err := d.openDir(name)
	if err != nil {
		return d.pathError("sync", name, err)
	}
	defer f.Close()
	return d.pathError("sync", name, retry(func() error { return unix.Fsync(int(f.Fd())) }))
}

func (d *Dir) openDir(name string) (*os.File, error) {
	found, st, err := d.find(name, ops.Read)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	if !st.IsDir {
		return nil, unix.ENOTDIR
	}
	return reopen(found, fmt.Sprintf("/proc/self/fd/%d", found.Fd()), unix.O_RDONLY|unix.O_DIRECTORY)
}

// Stat follows symbolic links that stay beneath the directory.
func (d *Dir) Stat(name string) (ops.FileStat, error) {
	st, err := d.stat(name)
	if err != nil {
		return ops.FileStat{}, d.pathError("stat", name, err)
	}
	return st, nil
}

// stat makes no [os.File]: there is one for each name of a folder that is listed.
func (d *Dir) stat(name string) (ops.FileStat, error) {
	if d.walk || strings.HasPrefix(name, "/") {
		f, st, err := d.find(name, ops.Read)
		if err != nil {
			return ops.FileStat{}, err
		}
		return st, f.Close()
	}
	fd, err := d.openatFD(name, unix.O_PATH, ops.Read)
	if err != nil {
		return ops.FileStat{}, err
	}
	st, err := statFD(fd)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return ops.FileStat{}, err
	}
	return st, d.judge(name, st)
}

// judge refuses what lies in a mount of this program.
func (d *Dir) judge(name string, st ops.FileStat) error {
	if d.refuses(st.ID.Dev) {
		return ops.Errorf(ops.ErrForbidden, 0, "%q lies in a mount of this program", d.Path(name))
	}
	return nil
}

// StatIn implements [ops.FolderStater]: one call for each name that is no symbolic
// link, in a directory that was found to lie beneath.
func (d *Dir) StatIn(name string, plain []string) ([]ops.FileStat, []error) {
	stats, errs := make([]ops.FileStat, len(plain)), make([]error, len(plain))
	folder, _, err := d.find(name, ops.Read)
	if err != nil {
		for i := range errs {
			errs[i] = d.pathError("stat", path.Join(name, plain[i]), err)
		}
		return stats, errs
	}
	defer folder.Close()
	for i, base := range plain {
		at := path.Join(name, base)
		st, link, err := statAt(int(folder.Fd()), base)
		if link {
			stats[i], errs[i] = d.Stat(at)
			continue
		}
		if err == nil {
			err = d.judge(at, st)
		}
		if err != nil {
			errs[i] = d.pathError("stat", at, err)
			continue
		}
		stats[i] = st
	}
	return stats, errs
}

// Free is what the file system of directory name has left for its users.
func (d *Dir) Free(name string) (int64, error) {
	f, _, err := d.find(name, ops.Read)
	if err != nil {
		return 0, d.pathError("statfs", name, err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(f.Fd()), &st) }); err != nil {
		return 0, d.pathError("statfs", name, err)
	}
	if st.Blocks == 0 { // some network and pseudo file systems
		return math.MaxInt64, nil
	}
	unit := int64(st.Frsize)
	if unit <= 0 {
		unit = max(int64(st.Bsize), 1)
	}
	if st.Bavail > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, nil
	}
	return int64(st.Bavail) * unit, nil
}

// List reads a directory in name order.
func (d *Dir) List(name string) ([]ops.DirEntry, error) {
	f, err := d.openDir(name)
	if err != nil {
		return nil, d.pathError("list", name, err)
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, d.pathError("list", name, err)
	}
	list := make([]ops.DirEntry, 0, len(entries))
	for _, e := range entries {
		entry := ops.DirEntry{Name: e.Name(), IsDir: e.IsDir(), IsRegular: e.Type().IsRegular()}
		if e.Type()&fs.ModeSymlink != 0 {
			st, err := d.Stat(path.Join(name, e.Name()))
			if err != nil {
				continue // leads nowhere, or outside
			}
			entry.IsDir, entry.IsRegular = st.IsDir, st.IsRegular
		}
		list = append(list, entry)
	}
	slices.SortFunc(list, func(a, b ops.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// pathError names the file in an errno's message; other errors name it already.
func (d *Dir) pathError(op, name string, err error) error {
	var errno syscall.Errno
	var named *ops.Error
	if err == nil || errors.As(err, &named) || !errors.As(err, &errno) {
		return err
	}
	return &fs.PathError{Op: op, Path: d.Path(name), Err: errno}
}
