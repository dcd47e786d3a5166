package host

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Rename gives a file another name beneath the directory, never a taken one.
// Where the file system cannot promise that in one step, as NFS cannot, a crash in
// between leaves
//
//	link, unlink     a file under both names
//	mkdir, rename    a folder under its old name, and an empty one under the new
func (d *Dir) Rename(old, new string) error {
	to, newBase, err := d.in(new)
	if err != nil {
		return d.pathError("rename", new, err)
	}
	defer to.Close()
	return d.at("rename", old, func(from int, oldBase string) error {
		if !d.bare {
			err := unix.Renameat2(from, oldBase, int(to.Fd()), newBase, unix.RENAME_NOREPLACE)
			if err != unix.EINVAL {
				return err
			}
		}
		var st unix.Stat_t
		if err := unix.Fstatat(from, oldBase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return renameFolder(from, oldBase, int(to.Fd()), newBase)
		}
		if err := unix.Linkat(from, oldBase, int(to.Fd()), newBase, 0); err != nil {
			return err
		}
		return unix.Unlinkat(from, oldBase, 0)
	})
}

// renameFolder takes the new name with an empty folder, so that it is nobody else's.
func renameFolder(from int, old string, to int, new string) error {
	if err := unix.Mkdirat(to, new, 0o700); err != nil {
		return err
	}
	return takePlace(from, old, to, new)
}

// takePlace puts a folder in the place of one that is empty: the kernel replaces no
// other, so what somebody puts there meanwhile stays. An error gives the name back.
func takePlace(from int, old string, to int, new string) error {
	err := unix.Renameat(from, old, to, new)
	if err == nil {
		return nil
	}
	if e := unix.Unlinkat(to, new, unix.AT_REMOVEDIR); e != nil && e != unix.ENOTEMPTY {
		return errors.Join(err, e)
	}
	return err
}
