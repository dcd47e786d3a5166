package host

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// sysfs is a tree of devices as /sys shows them: sda with a partition, nvme0n1, and
// a volume on a RAID of both, beside a loop device with nothing below.
func sysfs(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	for _, dir := range []string{
		"devices/pci/sda/sda1", "devices/pci/nvme0n1/slaves", "devices/virtual/md0/slaves", "devices/virtual/dm-0/slaves",
		"devices/virtual/loop0/slaves", "devices/virtual/cciss!c0d0", "devices/virtual/self/slaves", "dev/block",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(top, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(top, "devices/pci/sda/sda1/partition"), []byte("1\n"), 0o644))
	for link, to := range map[string]string{
		"dev/block/8:1":                       "../../devices/pci/sda/sda1",
		"dev/block/9:0":                       "../../devices/virtual/md0",
		"dev/block/253:0":                     "../../devices/virtual/dm-0",
		"dev/block/7:0":                       "../../devices/virtual/loop0",
		"dev/block/104:0":                     "../../devices/virtual/cciss!c0d0",
		"dev/block/250:0":                     "../../devices/virtual/self",
		"devices/virtual/self/slaves/self":    "..",
		"devices/virtual/md0/slaves/sda1":     "../../../pci/sda/sda1",
		"devices/virtual/md0/slaves/nvme0n1":  "../../../pci/nvme0n1",
		"devices/virtual/dm-0/slaves/md0":     "../../md0",
		"devices/virtual/dm-0/slaves/nvme0n2": "../../../gone",
	} {
		require.NoError(t, os.Symlink(to, filepath.Join(top, link)))
	}
	require.NoError(t, os.Remove(filepath.Join(top, "devices/virtual/dm-0/slaves/nvme0n2")))
	return top
}

// good is an answer with so many keys.
func good(keys uint32) func([]byte) (scsiResult, error) {
	return func(data []byte) (scsiResult, error) {
		binary.BigEndian.PutUint32(data[4:], 8*keys)
		return scsiResult{received: 8}, nil
	}
}

func sense(bytes ...byte) func([]byte) (scsiResult, error) {
	return func([]byte) (scsiResult, error) {
		r := scsiResult{status: statusCheckCondition, senseLen: len(bytes)}
		copy(r.sense[:], bytes)
		return r, nil
	}
}

func ends(r scsiResult, err error) func([]byte) (scsiResult, error) {
	return func([]byte) (scsiResult, error) { return r, err }
}

func TestDevicesBelow(t *testing.T) {
	var asked []string
	b := blockLayer{sys: sysfs(t), dev: "/dev", send: func(device string, command, data []byte) (scsiResult, error) {
		require.Equal(t, []byte{0x5e, 0, 0, 0, 0, 0, 0}, command[:7], "PERSISTENT RESERVE IN, READ KEYS")
		require.EqualValues(t, len(data), binary.BigEndian.Uint16(command[7:]))
		asked = append(asked, device)
		return good(3)(data)
	}}
	for _, tt := range []struct {
		major, minor uint32
		want         []string
	}{
		{8, 1, []string{"/dev/sda"}},
		{9, 0, []string{"/dev/nvme0n1", "/dev/sda"}},
		{253, 0, []string{"/dev/nvme0n1", "/dev/sda"}},
		{7, 0, []string{"/dev/loop0"}},
		{104, 0, []string{"/dev/cciss/c0d0"}},
		{0, 45, nil},
	} {
		asked = nil
		list, err := b.below(tt.major, tt.minor)
		require.NoError(t, err)
		require.Equal(t, tt.want, asked)
		for i, d := range list {
			require.Equal(t, ops.ReservingDevice{Path: tt.want[i], Registrations: 3}, d)
		}
	}
	_, err := b.below(250, 0)
	require.ErrorContains(t, err, "deeper than", "a device that is made of itself")
}

func TestRegistrations(t *testing.T) {
	fixed := func(key, asc, ascq byte) []byte { return []byte{0x70, 0, key, 13: ascq, 12: asc} }
	for _, tt := range []struct {
		name string
		send func([]byte) (scsiResult, error)
		want int
		err  string // "": none
		is   error
	}{
		{"no keys", good(0), 0, "", nil},
		{"many keys", good(500), 500, "", nil},
		{"an unknown command, fixed sense", sense(fixed(5, 0x20, 0)...), 0, "does not know SCSI PERSISTENT RESERVE IN", nil},
		{"an unknown command, sense descriptors", sense(0x72, 5, 0x20, 0), 0, "does not know SCSI PERSISTENT RESERVE IN", nil},
		{"another failure", sense(fixed(6, 0x29, 1)...), 0, "sense key 0x6, code 0x29/0x1", nil},
		{"illegal for another reason", sense(0x72, 5, 0x24, 0), 0, "sense key 0x5, code 0x24/0x0", nil},
		{"no sense", sense(), 0, "sense key 0x0, code 0x0/0x0", nil},
		{"short sense", sense(0x70, 0, 5), 0, "sense key 0x0", nil},
		{"a conflict", ends(scsiResult{status: 0x18}, nil), 0, "reservation conflict", nil},
		{"busy", ends(scsiResult{status: 0x08}, nil), 0, "status 0x8", nil},
		{"no way to it", ends(scsiResult{hostStatus: 1, received: 72}, nil), 0, "host status 0x1", nil},
		{"a short answer", ends(scsiResult{received: 4}, nil), 0, "an answer of 4 bytes, want 8", nil},
		{"no SCSI", ends(scsiResult{}, unix.ENOTTY), 0, "takes no SCSI commands", unix.ENOTTY},
		{"no SCSI either", ends(scsiResult{}, unix.EINVAL), 0, "takes no SCSI commands", unix.EINVAL},
		{"forbidden", ends(scsiResult{}, unix.EPERM), 0, "operation not permitted", os.ErrPermission},
		{"no device", ends(scsiResult{}, unix.ENXIO), 0, "no such device", unix.ENXIO},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := blockLayer{send: func(_ string, _, data []byte) (scsiResult, error) { return tt.send(data) }}
			n, err := b.registrations("/dev/sda")
			require.Equal(t, tt.want, n)
			if tt.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.err)
			if tt.is != nil {
				require.ErrorIs(t, err, tt.is)
			}
		})
	}
}

func TestSourceOfAMount(t *testing.T) {
	const table = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n" +
		"36 22 0:31 /vol /mnt/a rw - btrfs /dev/sdb1 rw,subvol=/vol\n37 22 0:32 / /mnt/b rw - tmpfs tmpfs rw\ngarbage\n38 22 - \n"
	for id, want := range map[uint64]string{22: "/dev/root", 36: "/dev/sdb1", 37: "tmpfs", 38: "", 1: "", 0: ""} {
		require.Equal(t, want, sourceOf(table, id), id)
	}
}

// The file system of a folder of this machine has a name, whatever lies below.
func TestStorage(t *testing.T) {
	d, err := OpenDir(t.TempDir())
	require.NoError(t, err)
	defer d.Close()
	s, err := d.Storage(".")
	require.NoError(t, err)
	require.NotEmpty(t, s.FileSystem)
	_, err = d.Storage("none")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = d.Storage("../..")
	require.ErrorIs(t, err, ops.ErrForbidden)
	proc, err := OpenDir("/proc")
	require.NoError(t, err)
	defer proc.Close()
	s, err = proc.Storage("version")
	require.NoError(t, err)
	require.Equal(t, ops.Storage{FileSystem: "file system 0x9fa0"}, s)
}

// A file takes no SCSI commands, and a device that is none says so.
func TestSendToWhatIsNoDevice(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) == 8 {
		require.EqualValues(t, 88, unsafe.Sizeof(sgIO{}), "struct sg_io_hdr")
	}
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	_, err := sendSCSI(name, make([]byte, 10), make([]byte, 8))
	require.True(t, errors.Is(err, unix.ENOTTY), "%v", err)
	_, err = sendSCSI(name+"x", make([]byte, 10), make([]byte, 8))
	require.ErrorIs(t, err, os.ErrNotExist)
}
