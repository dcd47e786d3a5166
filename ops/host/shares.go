package host

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

var _ ops.SpaceSharer = (*Dir)(nil)

// Of XFS: its geometry, as xfs_fsop_geom of the kernel's xfs_fs.h has it.
const (
	xfsGeometry = 0x8100587e // XFS_IOC_FSGEOMETRY
	xfsReflink  = 1 << 20    // XFS_FSOP_GEOM_FLAGS_REFLINK
	xfsFlagsAt  = 92
)

// SharesSpace implements [ops.SpaceSharer] for Btrfs, where all files can, and XFS,
// which says whether it was made so.
func (d *Dir) SharesSpace(name string) bool {
	f, err := d.openDir(name)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(f.Fd()), &st) }); err != nil {
		return false
	}
	switch fileSystem(uint32(st.Type)) {
	case "btrfs":
		return true
	case "xfs":
		var b [256]byte
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), xfsGeometry, uintptr(unsafe.Pointer(&b)))
		return errno == 0 && binary.NativeEndian.Uint32(b[xfsFlagsAt:])&xfsReflink != 0
	}
	return false
}
