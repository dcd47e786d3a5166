package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

var _ ops.StorageProber = (*Dir)(nil)

// Storage implements [ops.StorageProber]. Block devices are taken apart into those
// that they are made of: the disk of a partition, the members of a volume.
func (d *Dir) Storage(name string) (ops.Storage, error) {
	s, err := d.storage(name)
	if err != nil {
		return ops.Storage{}, d.pathError("look below", name, err)
	}
	return s, nil
}

func (d *Dir) storage(name string) (ops.Storage, error) {
	f, st, err := d.find(name, ops.Read)
	if err != nil {
		return ops.Storage{}, err
	}
	defer f.Close()
	var sfs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(f.Fd()), &sfs) }); err != nil {
		return ops.Storage{}, err
	}
	s := ops.Storage{FileSystem: fileSystem(uint32(sfs.Type)), Cluster: clusters[uint32(sfs.Type)]}
	if s.Cluster {
		return s, nil
	}
	b := blockLayer{sys: "/sys", dev: "/dev", send: sendSCSI}
	number := st.ID.Dev
	if unix.Major(number) == 0 { // of a file system that makes its own: Btrfs
		if number, err = mountSource(f); err != nil || number == 0 {
			return s, err
		}
	}
	s.Devices, err = b.below(unix.Major(number), unix.Minor(number))
	return s, err
}

// fileSystems are those that people keep images on, by what statfs calls them.
var fileSystems = map[uint32]string{
	0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0xf2f52010: "f2fs", 0x2fc12fc1: "zfs",
	0x01021994: "tmpfs", 0x858458f6: "ramfs", 0x794c7630: "overlay", 0x65735546: "fuse", 0x01021997: "9p",
	0x6969: "nfs", 0xff534d42: "cifs", 0xfe534d42: "smb", 0x4d44: "vfat", 0x2011bab0: "exfat", 0x7366746e: "ntfs3",
	gfs2: "gfs2", ocfs2: "ocfs2", ceph: "ceph", lustre: "lustre", gpfs: "gpfs", beegfs: "beegfs",
}

// File systems of clusters, by what statfs calls them.
const (
	gfs2   = 0x01161970
	ocfs2  = 0x7461636f
	ceph   = 0x00c36400
	lustre = 0x0bd00bd0
	gpfs   = 0x47504653
	beegfs = 0x19830326
)

var clusters = map[uint32]bool{gfs2: true, ocfs2: true, ceph: true, lustre: true, gpfs: true, beegfs: true}

func fileSystem(magic uint32) string {
	if name, ok := fileSystems[magic]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", magic)
}

// mountSource is the number of the block device that the mount of a file names as
// its source, 0 where it names none.
func mountSource(f *os.File) (uint64, error) {
	var st unix.Statx_t
	if err := retry(func() error { return unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st) }); err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, nil
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	source := sourceOf(string(table), st.Mnt_id)
	if !filepath.IsAbs(source) {
		return 0, nil
	}
	var dev unix.Stat_t
	if err := unix.Stat(source, &dev); err != nil || dev.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, nil // a name, or one of another namespace
	}
	return dev.Rdev, nil
}

// sourceOf is the source of a mount in the kernel's table, "" where it is not there.
func sourceOf(table string, id uint64) string {
	for line := range strings.Lines(table) {
		head, tail, ok := strings.Cut(line, " - ")
		number, _, _ := strings.Cut(head, " ")
		if f := strings.Fields(tail); ok && number == fmt.Sprint(id) && len(f) >= 2 {
			return f[1]
		}
	}
	return ""
}

// blockLayer is the kernel's view of block devices.
type blockLayer struct {
	sys, dev string // where /sys and /dev are
	send     func(device string, command, data []byte) (scsiResult, error)
}

// Bounds of what a device may be made of.
const (
	maxDepth   = 16
	maxMembers = 256
)

// below asks every device that one is made of.
func (b blockLayer) below(major, minor uint32) ([]ops.ReservingDevice, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(b.sys, "dev/block", fmt.Sprintf("%d:%d", major, minor)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // not a device that is seen from here
	}
	if err != nil {
		return nil, err
	}
	var names []string
	if err := b.collect(dir, maxDepth, &names); err != nil {
		return nil, err
	}
	list := make([]ops.ReservingDevice, len(names))
	for i, name := range names {
		path := filepath.Join(b.dev, strings.ReplaceAll(name, "!", "/"))
		list[i].Path = path
		list[i].Registrations, list[i].Err = b.registrations(path)
	}
	return list, nil
}

// collect gathers the kernel's names of the disks that the device of a directory in
// /sys is made of.
func (b blockLayer) collect(dir string, depth int, names *[]string) error {
	if depth == 0 || len(*names) == maxMembers {
		return fmt.Errorf("%s: made of more than %d devices, or deeper than %d", dir, maxMembers, maxDepth)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return b.collect(filepath.Dir(dir), depth-1, names)
	}
	slaves, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(slaves) == 0 {
		*names = append(*names, filepath.Base(dir))
		return nil
	}
	for _, s := range slaves {
		member, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", s.Name()))
		if err != nil {
			return err
		}
		if err := b.collect(member, depth-1, names); err != nil {
			return err
		}
	}
	return nil
}
