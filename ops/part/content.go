package part

import (
	"bytes"
	"fmt"
	"io"
)

// contentWindow reaches the furthest magic looked at: that of btrfs.
const contentWindow = 0x10048

// magics are looked at in order: what encrypts or manages volumes stands first,
// because it may leave an older file system's magic in place.
var magics = []struct {
	name  string
	off   int
	magic string
}{
	{"luks", 0, "LUKS\xba\xbe"},
	{"bitlocker", 3, "-FVE-FS-"},
	{"lvm2", 536, "LVM2 001"},
	{"lvm2", 24, "LVM2 001"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"xfs", 0, "XFSB"},
	{"ntfs", 3, "NTFS    "},
	{"refs", 3, "ReFS\x00\x00\x00\x00"},
	{"exfat", 3, "EXFAT   "},
	{"swap", 4086, "SWAPSPACE2"},
	{"swap", 65526, "SWAPSPACE2"},
	{"udf", 34817, "NSR02"},
	{"udf", 34817, "NSR03"},
	{"iso9660", 32769, "CD001"},
	{"squashfs", 0, "hsqs"},
	{"hfsplus", 1024, "H+\x00\x04"},
	{"hfsplus", 1024, "HX\x00\x05"},
	{"hfs", 1024, "BD\x00"},
}

// Content names the file system or container that starts at offset 0 of r, by
// its magic and in the words of blkid(8); "" when none of them is known. It reads
// 64 KiB once, less when r is shorter.
func Content(r io.ReaderAt) (string, error) {
	b := make([]byte, contentWindow)
	n, err := r.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("part: content at offset 0: %w", err)
	}
	b = b[:n]
	for _, m := range magics {
		if end := m.off + len(m.magic); end <= len(b) && string(b[m.off:end]) == m.magic {
			return m.name, nil
		}
	}
	if name := extName(b); name != "" {
		return name, nil
	}
	if len(b) >= bootSize && isFAT(b) {
		return "vfat", nil
	}
	return "", nil
}

// extName tells ext2, ext3 and ext4 apart by their feature words, or answers "".
func extName(b []byte) string {
	const super = 1024
	if len(b) < super+0x68 || le.Uint16(b[super+0x38:]) != 0xef53 {
		return ""
	}
	const (
		journal      = 0x4
		ext3Incompat = 0x2 | 0x4 | 0x10 // file types, recovery, meta block groups
		ext3ROCompat = 0x1 | 0x2 | 0x4  // sparse super, large files, tree directories
	)
	compat, incompat, ro := le.Uint32(b[super+0x5c:]), le.Uint32(b[super+0x60:]), le.Uint32(b[super+0x64:])
	switch {
	case incompat&^ext3Incompat != 0 || ro&^ext3ROCompat != 0:
		return "ext4"
	case compat&journal != 0:
		return "ext3"
	}
	return "ext2"
}

// bootSectorFS names the file system whose boot sector b is, or answers "".
// Such a sector ends in 0x55 0xaa as a partition table does.
func bootSectorFS(b []byte) string {
	switch string(b[3:11]) {
	case "NTFS    ":
		return "ntfs"
	case "EXFAT   ":
		return "exfat"
	case "-FVE-FS-":
		return "bitlocker"
	}
	if isFAT(b) {
		return "vfat"
	}
	return ""
}

// isFAT tells whether b starts with a FAT BIOS parameter block: a jump, and
// numbers that fit each other. The file system's type text is optional.
func isFAT(b []byte) bool {
	if b[0] != 0xeb && b[0] != 0xe9 || b[510] != 0x55 || b[511] != 0xaa {
		return false
	}
	sector, cluster, media := le.Uint16(b[11:]), b[13], b[21]
	powers := sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 && cluster != 0 && cluster&(cluster-1) == 0
	if !powers || le.Uint16(b[14:]) == 0 || b[16] != 1 && b[16] != 2 || media != 0xf0 && media < 0xf8 {
		return false
	}
	small, big := le.Uint16(b[22:]), le.Uint32(b[36:]) // sectors of a FAT: FAT12/16, FAT32
	return small != 0 || big != 0 && bytes.HasPrefix(b[82:], []byte("FAT32"))
}
