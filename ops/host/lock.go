package host

import (
	"errors"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// QEMU marks on an image file what a program does and what it lets others do:
// a read lock on byte 100+p holds permission p, one on byte 200+p forbids it to
// others. Nobody waits: a program takes its marks, then looks for marks of
// others that contradict them.
const (
	heldBase      = 100
	forbiddenBase = 200

	permRead   = 0 // consistent reads
	permWrite  = 1
	permResize = 3
)

// locks is a set of marks.
type locks struct {
	held, forbidden []int64
}

var (
	readerLocks = locks{held: []int64{permRead}, forbidden: []int64{permWrite, permResize}}
	writerLocks = locks{held: []int64{permRead, permWrite, permResize}, forbidden: []int64{permWrite, permResize}}
)

// bytes are the bytes that the marks lie on.
func (l locks) bytes() []int64 { return positions(l.held, l.forbidden) }

// conflicts are the bytes on which a mark of somebody else contradicts l.
func (l locks) conflicts() []int64 { return positions(l.forbidden, l.held) }

func positions(first, second []int64) []int64 {
	var list []int64
	for _, p := range first {
		list = append(list, heldBase+p)
	}
	for _, p := range second {
		list = append(list, forbiddenBase+p)
	}
	return list
}

// Lock takes QEMU's image locks. They belong to the open file description, so
// that two handles of this program exclude each other too. Where the file system
// has no locks nobody can hold one: a reader goes on, a writer gets the errno.
func (f *File) Lock(write bool) error {
	want := readerLocks
	if write {
		want = writerLocks
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var taken []int64
	for _, b := range missing(want.bytes(), f.mu.locked.bytes()) {
		if err := f.setLock(b, unix.F_RDLCK); err != nil {
			if !write && noLocks(err) {
				return nil
			}
			return errors.Join(err, f.unlock(taken))
		}
		taken = append(taken, b)
	}
	for _, b := range want.conflicts() {
		other, err := f.conflict(b)
		if err == nil && other {
			err = f.busy(b)
		}
		if err != nil {
			return errors.Join(err, f.unlock(taken))
		}
	}
	if len(taken) > 0 {
		f.mu.locked = want
	}
	return nil
}

// missing are the bytes of want that are not in have.
func missing(want, have []int64) []int64 {
	held := map[int64]bool{}
	for _, b := range have {
		held[b] = true
	}
	var list []int64
	for _, b := range want {
		if !held[b] {
			list = append(list, b)
		}
	}
	return list
}

func (f *File) unlock(bytes []int64) error {
	var all error
	for _, b := range bytes {
		all = errors.Join(all, f.setLock(b, unix.F_UNLCK))
	}
	return all
}

// unlockAll gives up what Lock took; nothing where it took nothing.
func (f *File) unlockAll() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.mu.locked.bytes()) == 0 {
		return nil
	}
	f.mu.locked = locks{}
	return f.control("unlock", func(fd int) error {
		all := unix.Flock_t{Type: unix.F_UNLCK, Start: heldBase, Len: 2 * (forbiddenBase - heldBase)}
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &all)
	})
}

func (f *File) setLock(b int64, typ int16) error {
	return f.control("lock", func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: b, Len: 1})
	})
}

// conflict tells whether somebody else has any lock on a byte.
func (f *File) conflict(b int64) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
	err := f.control("lock", func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) })
	return l.Type != unix.F_UNLCK, err
}

func (f *File) busy(b int64) error {
	who := "another program"
	st, err := f.Stat()
	if err == nil {
		who = holder(st.ID, b, int(f.f.Fd()))
	}
	return ops.Errorf(ops.ErrBusy, ops.StatusOwned, "%s is locked by %s", f.f.Name(), who)
}

func noLocks(err error) bool {
	return isErrno(err, unix.ENOLCK) || isErrno(err, unix.EOPNOTSUPP) || isErrno(err, unix.ENOSYS)
}

func isErrno(err error, errno unix.Errno) bool {
	var e unix.Errno
	return errors.As(err, &e) && e == errno
}
