// Package guest uses disks as guests and other programs do: file systems on a
// loop device over raw, fio, fstrim, QEMU taking turns with us on one file, and
// the readers that know differencing disks. It proves that what we write is what
// others read, and that an image stays small and sound under long use.
//
// Nothing here is random but fio's and the last test's choices, which follow
// from their fixed seeds; a failure shows again when its test is run again.
package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/e2e"
	"vhdfs/test/fixture"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

func TestMain(m *testing.M) { os.Exit(mount.Main(m)) }

const mib = 1 << 20

// guestDisk is large enough for xfs.
const guestDisk = 512 * mib

// disks are images of 512 MiB: name and maker.
var disks = []struct {
	file, qemu string
	make       func(path string) error
}{
	{"dynamic.vhdx", "vhdx", func(p string) error { return fixture.VHDX{Size: guestDisk, BlockSize: 2 * mib}.WriteFile(p) }},
	{"dynamic.vhd", "vpc", func(p string) error { return fixture.VHD{Size: guestDisk}.WriteFile(p) }},
	{"fixed.vhd", "vpc", func(p string) error { return fixture.VHD{Size: guestDisk, Type: 2}.WriteFile(p) }},
	{"child.vhdx", "", func(p string) error {
		parent := fixture.VHDX{Size: guestDisk, DataWriteGUID: [16]byte{0xba, 15: 1}, Writes: []fixture.Write{noise(3*mib+512, 9*mib, 1)}}
		if err := parent.WriteFile(filepath.Join(filepath.Dir(p), "base.vhdx")); err != nil {
			return err
		}
		return fixture.VHDX{Size: guestDisk, Parent: &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", "{ba000000-0000-0000-0000-000000000001}"}, {"relative_path", `.\base.vhdx`}}}}.WriteFile(p)
	}},
}

// Four jobs of fio write at random, through the page cache and past it, and read
// back what they wrote.
func TestFioVerifies(t *testing.T) {
	fio := need.Tool(t, "fio")
	for _, k := range mount.Disks {
		t.Run(k.Name, func(t *testing.T) {
			dir := t.TempDir()
			k.Make(t, dir, nil)
			m := e2e.Start(t, dir)
			for _, direct := range []string{"0", "1"} {
				mount.Tool(t, fio, "--name=verify", "--filename="+k.Raw(m), "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512",
					"--bs_unaligned=0", "--size=8m", "--offset_increment=8m", "--numjobs=4", "--group_reporting", "--direct="+direct,
					"--allow_file_create=0", "--randseed=7", "--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0")
			}
			m.Stop(t)
			mount.Check(t, filepath.Join(dir, k.File))
			if k.QEMU != "" {
				mount.CheckQEMU(t, k.QEMU, filepath.Join(dir, k.File))
			}
		})
	}
}

// A file system is made on a loop device over raw, a tree of sources copied into
// it, and everything is there after the image was closed and opened again.
func TestFileSystemsKeepATree(t *testing.T) {
	need.Fuse(t)
	need.Loop(t)
	tree := filepath.Join(strings.TrimSpace(mount.Tool(t, "go", "env", "GOROOT")), "src", "cmd", "go")
	want := mount.Tool(t, "bash", "-c", treeHash, "bash", tree)
	require.Greater(t, strings.Count(mount.Tool(t, "find", tree), "\n"), 1000, "files in the tree")
	for _, d := range disks {
		for _, fs := range []struct{ kind, check string }{
			{"ext4", "e2fsck -fn"},
			{"xfs", "xfs_repair -n"},
		} {
			t.Run(d.file+" "+fs.kind, func(t *testing.T) {
				dir := t.TempDir()
				image := filepath.Join(dir, d.file)
				require.NoError(t, d.make(image))
				m := e2e.Start(t, dir)
				dev := mount.Loop(t, m.Path(d.file, "raw"))
				mount.Tool(t, "mkfs."+fs.kind, "-q", dev)
				guest := mount.MountFS(t, dev, t.TempDir(), fs.kind, "")
				mount.Tool(t, "cp", "-r", tree, filepath.Join(guest.Dir, "tree"))
				mount.Tool(t, "sync", "-f", guest.Dir)
				guest.Unmount(t)
				fsck(t, fs.check, dev)
				mount.Unloop(t, dev)
				m.Stop(t)
				mount.Check(t, image)
				if d.qemu != "" {
					mount.CheckQEMU(t, d.qemu, image)
				}

				m = e2e.Start(t, dir)
				dev = mount.Loop(t, m.Path(d.file, "raw"), "--read-only")
				fsck(t, fs.check, dev)
				guest = mount.MountFS(t, dev, t.TempDir(), fs.kind, "ro")
				require.Equal(t, want, mount.Tool(t, "bash", "-c", treeHash, "bash", filepath.Join(guest.Dir, "tree")))
				guest.Unmount(t)
				mount.Unloop(t, dev)
			})
		}
	}
}

// treeHash prints one hash of all names and contents below a folder.
const treeHash = `cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`

func fsck(t *testing.T, command, dev string) {
	t.Helper()
	words := append(strings.Fields(command), dev)
	mount.Tool(t, words[0], words[1:]...)
}
