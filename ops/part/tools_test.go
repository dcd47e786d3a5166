package part_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops/part"
	"vhdfs/test/need"
)

func blankFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

func run(t *testing.T, stdin, tool string, args ...string) string {
	t.Helper()
	c := exec.Command(need.Tool(t, tool), args...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s %v: %s", tool, args, out)
	return string(out)
}

func readFile(t *testing.T, path string, sector uint32) *part.Table {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	tab, err := part.Read(f, st.Size(), sector)
	require.NoError(t, err)
	return tab
}

// sfdisk's own words for the table that it wrote.
type sfdiskTable struct {
	Label, ID         string
	FirstLBA, LastLBA int64
	Partitions        []struct {
		Node, Type, UUID, Name string
		Start, Size            int64
		Bootable               bool
	}
}

func TestAgainstSfdisk(t *testing.T) {
	for _, tt := range []struct{ name, script string }{
		{"mbr", "label: dos\n,10M,7,*\n,20M,83\n,5M,82\n"},
		{"mbr with logicals", "label: dos\nstart=2048,size=8M,type=7\n,40M,5\n,10M,83\n,5M,82\n,6M,7\n,1M,b\n"},
		{"mbr empty", "label: dos\n"},
		{"gpt", "label: gpt\nsize=10M,type=U,name=\"EFI, system\"\nsize=20M,name=\"ro\u00f6t\"\nsize=5M,type=S,attrs=\"LegacyBIOSBootable\"\n"},
		{"gpt with a gap", "label: gpt\ntable-length: 200\n4: start=8192,size=4096\n2: start=4096,size=100\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := blankFile(t, 100<<20)
			run(t, tt.script, "sfdisk", "-q", path)
			var doc struct{ PartitionTable sfdiskTable }
			require.NoError(t, json.Unmarshal([]byte(run(t, "", "sfdisk", "--json", path)), &doc))
			want := doc.PartitionTable

			tab := readFile(t, path, 512)
			require.Empty(t, tab.Anomalies)
			require.Equal(t, map[string]part.Scheme{"dos": part.MBR, "gpt": part.GPT}[want.Label], tab.Scheme)
			require.Equal(t, strings.ToLower(strings.TrimPrefix(want.ID, "0x")), tab.ID)
			require.Len(t, tab.Partitions, len(want.Partitions))
			for i, w := range want.Partitions {
				p := tab.Partitions[i]
				require.Equal(t, w.Node, path+strconv.Itoa(p.Index))
				require.Equal(t, w.Start*512, p.Start)
				require.Equal(t, w.Size*512, p.Length)
				require.Equal(t, w.Name, p.Name)
				if tab.Scheme == part.GPT {
					require.Equal(t, strings.ToLower(w.Type), p.Type)
					require.Equal(t, strings.ToLower(w.UUID), p.UUID)
				} else {
					require.Equal(t, fmt.Sprintf("%02s", w.Type), p.Type)
					require.Equal(t, w.Bootable, p.Bootable)
				}
			}
			if tab.Scheme == part.GPT {
				require.Equal(t, want.FirstLBA*512, tab.FirstUsable)
				require.Equal(t, want.LastLBA*512+511, tab.LastUsable)
			}
		})
	}
}

// fdisk writes tables for disks of 4096-byte sectors.
func TestAgainstFdisk4096(t *testing.T) {
	line := regexp.MustCompile(`(?m)^\S+disk(\d+) +\*? *(\d+) +\d+ +(\d+) `)
	for _, tt := range []struct {
		name, keys string
		scheme     part.Scheme
		files      int
	}{
		{"mbr", "o\nn\np\n1\n\n+8M\nn\ne\n2\n\n\nn\n\n+4M\nn\n\n+5M\na\n1\nw\n", part.MBR, 3},
		{"gpt", "g\nn\n1\n\n+8M\nn\n5\n\n+16M\nw\n", part.GPT, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := blankFile(t, 100<<20)
			run(t, tt.keys, "fdisk", "-b", "4096", path)
			list := run(t, "", "fdisk", "-b", "4096", "-l", path)
			tab := readFile(t, path, 4096)
			require.Equal(t, tt.scheme, tab.Scheme)
			require.Empty(t, tab.Anomalies)
			rows := line.FindAllStringSubmatch(list, -1)
			require.Len(t, rows, len(tab.Partitions), list)
			files := 0
			for i, p := range tab.Partitions {
				if p.NoFile == "" {
					files++
				}
				require.Equal(t, rows[i][1:], []string{strconv.Itoa(p.Index), fmt.Sprint(p.Start / 4096), fmt.Sprint(p.Length / 4096)}, list)
			}
			require.Equal(t, tt.files, files)
		})
	}
}

func TestContentOfMkfs(t *testing.T) {
	for _, tt := range []struct {
		tool string
		args []string
		size int64
		want string
	}{
		{"mkfs.ext2", []string{"-q", "-F"}, 400 << 20, "ext2"},
		{"mkfs.ext3", []string{"-q", "-F"}, 400 << 20, "ext3"},
		{"mkfs.ext4", []string{"-q", "-F"}, 400 << 20, "ext4"},
		{"mkfs.vfat", []string{"-F", "12"}, 8 << 20, "vfat"},
		{"mkfs.vfat", []string{"-F", "16"}, 400 << 20, "vfat"},
		{"mkfs.vfat", []string{"-F", "32"}, 400 << 20, "vfat"},
		{"mkfs.ntfs", []string{"-q", "-F"}, 400 << 20, "ntfs"},
		{"mkfs.xfs", []string{"-q", "-f"}, 400 << 20, "xfs"},
		{"mkfs.btrfs", []string{"-q", "-f"}, 400 << 20, "btrfs"},
		{"mkswap", []string{"-q"}, 400 << 20, "swap"},
	} {
		t.Run(tt.tool+strings.Join(tt.args, ""), func(t *testing.T) {
			path := blankFile(t, tt.size)
			run(t, "", tt.tool, append(tt.args, path)...)
			f, err := os.Open(path)
			require.NoError(t, err)
			defer f.Close()
			got, err := part.Content(f)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			require.Equal(t, part.None, readFile(t, path, 512).Scheme)
		})
	}
}

func TestContent(t *testing.T) {
	at := func(off int, magic string) []byte { return append(make([]byte, off), magic...) }
	for want, b := range map[string][]byte{
		"luks":      at(0, "LUKS\xba\xbe\x00\x02"),
		"bitlocker": at(3, "-FVE-FS-"),
		"lvm2":      at(512, "LABELONE\x01\x00\x00\x00\x00\x00\x00\x00CCCC\x20\x00\x00\x00LVM2 001"),
		"exfat":     at(3, "EXFAT   "),
		"refs":      at(3, "ReFS\x00\x00\x00\x00"),
		"squashfs":  at(0, "hsqs"),
		"iso9660":   at(32769, "CD001"),
		"udf":       at(34817, "NSR03"),
		"hfs":       at(1024, "BD\x00"),
		"hfsplus":   at(1024, "H+\x00\x04"),
		"":          at(70000, "XFSB"),
	} {
		t.Run(want, func(t *testing.T) {
			got, err := part.Content(bytes.NewReader(b))
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
	for n := range 1200 { // no length of a short file is read past its end
		_, err := part.Content(bytes.NewReader(bytes.Repeat([]byte{0xeb}, n)))
		require.NoError(t, err)
	}
	failing := newImage(disk)
	failing.fail = 1
	_, err := part.Content(failing)
	require.ErrorIs(t, err, errDisk)
}
