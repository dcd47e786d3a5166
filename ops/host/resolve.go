package host

import (
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

const (
	// maxRaces bounds the tries of a path that somebody keeps renaming.
	maxRaces = 128
	// maxLinks bounds the symbolic links of one path, as the kernel does.
	maxLinks = 40
)

// resolve opens name beneath the directory as an O_PATH descriptor.
func (d *Dir) resolve(name string, a ops.Access) (*os.File, error) {
	if strings.HasPrefix(name, "/") {
		return nil, d.outside(name)
	}
	if d.walk {
		return d.resolveWalk(name, a)
	}
	return d.openat2(name, unix.O_PATH, a)
}

func (d *Dir) outside(name string) error {
	return ops.Errorf(ops.ErrForbidden, 0, "%q leads outside of %q", name, d.path)
}

func (d *Dir) passesLink(name string) error {
	return ops.Errorf(ops.ErrForbidden, 0, "%q passes a symbolic link", d.Path(name))
}

// openat2 lets the kernel keep the path beneath the directory. EAGAIN: a rename
// elsewhere left it unable to tell whether ".." stayed beneath.
func (d *Dir) openat2(name string, flags uint64, a ops.Access) (*os.File, error) {
	fd, err := d.openatFD(name, flags, a)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.Path(name)), nil
}

// openatFD is openat2 as a bare descriptor.
func (d *Dir) openatFD(name string, flags uint64, a ops.Access) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	if a&ops.NoFollow != 0 {
		how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	var fd int
	var err error
	for range maxRaces {
		fd, err = unix.Openat2(int(d.root.Fd()), name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			break
		}
	}
	switch {
	case err == unix.EXDEV:
		return -1, d.outside(name)
	case err == unix.ELOOP && a&ops.NoFollow != 0:
		return -1, d.passesLink(name)
	case err != nil:
		return -1, err
	}
	return fd, nil
}

// resolveWalk does the same without openat2: one component at a time, each
// opened without following it, ".." by going back to the descriptor that led here.
func (d *Dir) resolveWalk(name string, a ops.Access) (_ *os.File, err error) {
	if name == "" {
		return nil, unix.ENOENT
	}
	var trail []*os.File // what lies beneath the root, down to where we are
	defer func() {
		for _, f := range trail {
			err = errors.Join(err, f.Close())
		}
	}()
	todo, links := strings.Split(name, "/"), 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		at := d.root
		if len(trail) > 0 {
			at = trail[len(trail)-1]
		}
		if part == ".." {
			if len(trail) == 0 {
				return nil, d.outside(name)
			}
			trail = trail[:len(trail)-1]
			if err := at.Close(); err != nil {
				return nil, err
			}
			continue
		}
		next, target, err := step(at, part)
		if err != nil {
			return nil, err
		}
		if next != nil {
			trail = append(trail, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, unix.ELOOP
		}
		if a&ops.NoFollow != 0 {
			return nil, d.passesLink(name)
		}
		if strings.HasPrefix(target, "/") {
			return nil, d.outside(name)
		}
		todo = slices.Concat(strings.Split(target, "/"), todo)
	}
	if len(trail) == 0 {
		return dup(d.root)
	}
	last := trail[len(trail)-1]
	trail = trail[:len(trail)-1]
	return last, nil
}

// step opens one component of at, or reads where it leads if it is a link.
func step(at *os.File, part string) (next *os.File, target string, err error) {
	if part == "" {
		part = "."
	}
	fd, err := openRetry(int(at.Fd()), part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	next = os.NewFile(uintptr(fd), part)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, "", errors.Join(err, next.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return next, "", nil
	}
	defer next.Close()
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", b[:])
	return nil, string(b[:max(n, 0)]), err
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
