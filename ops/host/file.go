package host

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// maxWrite bounds one system call in bytes: the kernel stores no more than 2 GiB.
const maxWrite = 1 << 30

// File is an open regular file of the host. Safe for concurrent use.
type File struct {
	f  *os.File
	mu struct {
		sync.Mutex
		locked locks
	}
}

var (
	_ ops.File   = (*File)(nil)
	_ ops.Cloner = (*File)(nil)
)

// ReadAt fills p; io.EOF with what is there at the end of the file.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// WriteAt stores all of p, going on after short writes and signals.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		err = f.control("write", func(fd int) error {
			done, err := unix.Pwrite(fd, p[n:min(len(p), n+maxWrite)], off+int64(n))
			n += max(done, 0)
			if done == 0 && err == nil {
				err = io.ErrShortWrite
			}
			return err
		})
	}
	return n, err
}

// Close gives up the file's locks, too, at once: a child process that is being
// started has the open file for a moment longer.
func (f *File) Close() error {
	return errors.Join(f.unlockAll(), f.f.Close())
}

// control runs a system call on the descriptor while nobody can close it.
func (f *File) control(op string, call func(fd int) error) error {
	conn, err := f.f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = conn.Control(func(fd uintptr) {
		callErr = retry(func() error { return call(int(fd)) })
	})
	if err != nil {
		callErr = fs.ErrClosed // the one reason not to run the call
	}
	if callErr != nil {
		return &fs.PathError{Op: op, Path: f.f.Name(), Err: callErr}
	}
	return nil
}

// Stat is of the open file.
func (f *File) Stat() (st ops.FileStat, err error) {
	err = f.control("stat", func(fd int) error {
		st, err = statFD(fd)
		return err
	})
	return st, err
}

// Truncate sets the size.
func (f *File) Truncate(size int64, _ string) error {
	return f.control("truncate", func(fd int) error { return unix.Ftruncate(fd, size) })
}

// Sync is fdatasync: content, size and what is needed to find them.
func (f *File) Sync(string) error { return f.control("sync", unix.Fdatasync) }

// Punch makes a hole; the size stays.
func (f *File) Punch(off, n int64) error {
	if n == 0 {
		return nil
	}
	return f.control("punch", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// Allocate reserves space and extends the size.
func (f *File) Allocate(off, n int64) error {
	if n == 0 {
		return nil
	}
	return f.control("allocate", func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
}

// Clone shares space of two files of one file system; see [ops.Cloner].
func (f *File) Clone(off int64, src ops.File, from, n int64) error {
	s, ok := src.(*File)
	if !ok {
		return errors.ErrUnsupported
	}
	return f.control("clone", func(fd int) error {
		return s.control("clone from", func(srcFD int) error {
			err := unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{
				Src_fd: int64(srcFD), Src_offset: uint64(from), Src_length: uint64(n), Dest_offset: uint64(off),
			})
			switch err {
			case unix.EINVAL, unix.EXDEV, unix.ENOTTY, unix.EOPNOTSUPP, unix.EPERM, unix.ETXTBSY:
				return errors.ErrUnsupported
			}
			return err
		})
	})
}

// NextData finds the next run of stored data.
func (f *File) NextData(off int64) (data, hole int64, err error) {
	err = f.control("seek", func(fd int) error {
		if data, err = unix.Seek(fd, off, unix.SEEK_DATA); err != nil {
			return err
		}
		hole, err = unix.Seek(fd, data, unix.SEEK_HOLE)
		return err
	})
	if isErrno(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	return data, hole, err
}

// statFile is of a descriptor that only this call uses.
func statFile(f *os.File) (ops.FileStat, error) { return statFD(int(f.Fd())) }

func statFD(fd int) (ops.FileStat, error) {
	var x unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statWants, &x); err != nil {
		return ops.FileStat{}, err
	}
	return statOf(&x), nil
}

// statAt is of a plain name in a directory, and tells whether it is a symbolic link.
func statAt(dirfd int, name string) (st ops.FileStat, link bool, err error) {
	var x unix.Statx_t
	if err := unix.Statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW, statWants, &x); err != nil {
		return ops.FileStat{}, false, err
	}
	return statOf(&x), x.Mode&unix.S_IFMT == unix.S_IFLNK, nil
}

const statWants = unix.STATX_BASIC_STATS | unix.STATX_DIOALIGN

func statOf(x *unix.Statx_t) ops.FileStat {
	st := ops.FileStat{
		ID:    ops.FileID{Dev: unix.Mkdev(x.Dev_major, x.Dev_minor), Ino: x.Ino},
		Size:  int64(x.Size), // the kernel keeps it below 2^63
		Mtime: time.Unix(x.Mtime.Sec, int64(x.Mtime.Nsec)), Ctime: time.Unix(x.Ctime.Sec, int64(x.Ctime.Nsec)),
		Blocks: int64(x.Blocks), Mode: uint32(x.Mode) & 0o7777, UID: x.Uid, GID: x.Gid,
		IsDir: x.Mode&unix.S_IFMT == unix.S_IFDIR, IsRegular: x.Mode&unix.S_IFMT == unix.S_IFREG,
	}
	if x.Mask&unix.STATX_DIOALIGN != 0 {
		st.SectorSize = x.Dio_offset_align
	}
	return st
}
