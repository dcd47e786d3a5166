package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/fixture"
	"vhdfs/test/need"
)

const mib = 1 << 20

var baseID = [16]byte{0xba, 15: 1}

// chainOfTwo writes base.vhdx and child.avhdx with known bytes between holes,
// and gives the content of the child.
func chainOfTwo(t *testing.T, dir string) []byte {
	t.Helper()
	r := rand.NewChaCha8([32]byte{1})
	noise := func(n int) []byte {
		b := make([]byte, n)
		_, _ = r.Read(b) // never fails
		return b
	}
	base := []fixture.Write{{Off: 0, Data: noise(4096)}, {Off: 5 * mib, Data: noise(mib)}, {Off: 40 * mib, Data: noise(8192)}}
	child := []fixture.Write{{Off: 4096, Data: noise(512)}, {Off: 5*mib + 4096, Data: noise(4096)}, {Off: 63 * mib, Data: noise(mib)}}
	require.NoError(t, fixture.VHDX{Size: 64 * mib, DataWriteGUID: baseID, Writes: base}.WriteFile(filepath.Join(dir, "base.vhdx")))
	require.NoError(t, fixture.VHDX{Size: 64 * mib, Writes: child, Parent: &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", "{ba000000-0000-0000-0000-000000000001}"}, {"relative_path", `.\base.vhdx`}}},
	}.WriteFile(filepath.Join(dir, "child.avhdx")))
	content := make([]byte, 64*mib)
	for _, w := range append(base, child...) {
		copy(content[w.Off:], w.Data)
	}
	return content
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func TestOrdinaryToolsReadTheMount(t *testing.T) {
	dir := t.TempDir()
	content := chainOfTwo(t, dir)
	want := sum(content)
	m := Start(t, dir)
	for _, tt := range []struct{ name, tool, script string }{
		{"sha256sum", "sha256sum", `sha256sum < child.avhdx/raw`},
		{"cat", "cat", `cat child.avhdx/raw | sha256sum`},
		{"dd", "dd", `dd if=child.avhdx/raw bs=1000 status=none | sha256sum`},
		{"dd direct", "dd", `dd if=child.avhdx/raw bs=1M iflag=direct status=none | sha256sum`},
		{"cp", "cp", `cp --sparse=always child.avhdx/raw $TMP/copy; [ $(du -k $TMP/copy | cut -f1) -lt 8192 ]; sha256sum < $TMP/copy`},
		{"cp by holes", "cp", `cp --sparse=auto child.avhdx/raw $TMP/copy; [ $(du -k $TMP/copy | cut -f1) -lt 8192 ]; sha256sum < $TMP/copy`},
		{"qemu-img", "qemu-img", `qemu-img convert -f raw -O raw child.avhdx/raw $TMP/copy; sha256sum < $TMP/copy`},
		{"qemu-img compare", "qemu-img", `qemu-img convert -f raw -O qcow2 child.avhdx/raw $TMP/copy.qcow2; qemu-img compare -q -f raw -F qcow2 child.avhdx/raw $TMP/copy.qcow2; sha256sum < child.avhdx/raw`},
		{"tar", "tar", `tar cf - child.avhdx/raw | tar xOf - | sha256sum`},
		{"tar sparse", "tar", `tar cSf $TMP/t.tar child.avhdx/raw; [ $(stat -c %s $TMP/t.tar) -lt 8388608 ]; tar xOf $TMP/t.tar | sha256sum`},
		{"rsync-like blocks", "cmp", `cat child.avhdx/raw > $TMP/copy; cmp child.avhdx/raw $TMP/copy; sha256sum < $TMP/copy`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			need.Tool(t, tt.tool)
			tmp := t.TempDir()
			out := m.Shell(t, "TMP="+tmp+"; "+tt.script)
			require.Equal(t, want, strings.Fields(out)[0], out)
		})
	}
}

func TestJSONFilesAreReadWhole(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	for _, tt := range []struct{ script, want string }{
		{`jq -r .Type child.avhdx/settings.json`, "4"},
		{`jq -r .ParentPath child.avhdx/settings.json`, dir + "/base.vhdx"},
		{`jq -r .MinInternalSize child.avhdx/state.json`, "null"},
		{`jq -r '.Children[]' base.vhdx/state.json`, dir + "/child.avhdx"},
		{`jq -r '.Images[1].FoundBy' child.avhdx/chain.json`, "relative path"},
		{`jq -r '[.Runs[].Length] | add' child.avhdx/map.json`, "67108864"},
		{`jq -r '[.Runs[] | select(.Kind=="data") | .Length] | add' child.avhdx/map.json`, "7340032"},
		{`jq -r .Scheme child.avhdx/partitions.json`, "none"},
		{`jq -r '.Started, (keys | length)' .vhdfs/service.json`, "true\n28"},
		{`jq -r '.Images | length' .vhdfs/graph.json`, "2"},
		{`jq -r .PID .vhdfs/daemon.json | xargs -I{} readlink /proc/{}/exe | xargs basename`, "vhdfs"},
		{`grep -c '^# TYPE' .vhdfs/metrics > /dev/null && echo metrics`, "metrics"},
		{`readlink child.avhdx/parent | xargs basename`, "base.vhdx"},
		{`cmp child.avhdx/parent/raw base.vhdx/raw && echo same`, "same"},
	} {
		t.Run(tt.script, func(t *testing.T) {
			require.Equal(t, tt.want, strings.TrimSpace(m.Shell(t, tt.script)))
		})
	}
}

// A disk with partitions made and filled by the system's own tools is seen, and
// mounted, through the image.
func TestPartitionsAndFileSystems(t *testing.T) {
	need.Loop(t)
	for _, tool := range []string{"sfdisk", "mkfs.ext4", "qemu-img", "fdisk", "mount"} {
		need.Tool(t, tool)
	}
	dir, tmp := t.TempDir(), t.TempDir()
	disk := filepath.Join(tmp, "disk")
	sh(t, tmp, `truncate -s 64M disk
printf 'label: gpt\nstart=2048,size=65536,name=system\nstart=67584,size=16384,name=data\n' | sfdisk -q disk
mkdir tree && echo inside > tree/hello
truncate -s 32M part && mkfs.ext4 -q -d tree part && dd if=part of=disk bs=1M seek=1 conv=notrunc status=none
qemu-img convert -f raw -O vhdx disk `+dir+`/disk.vhdx
qemu-img convert -f raw -O vpc -o subformat=dynamic,force_size=on disk `+dir+`/disk.vhd
qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on disk `+dir+`/fixed.vhd`)
	m := Start(t, dir)
	mnt := t.TempDir()
	for _, image := range []string{"disk.vhdx", "disk.vhd", "fixed.vhd"} {
		t.Run(image, func(t *testing.T) {
			require.Equal(t, SHA256(t, disk), SHA256(t, m.Path(image, "raw")))
			out := m.Shell(t, `fdisk -l `+image+`/raw`)
			require.Regexp(t, `raw1 +2048 +67583 +65536 +32M Linux filesystem`, out)
			require.Equal(t, "p1\np2\n", m.Shell(t, `ls `+image+`/partitions`))
			require.Equal(t, "system 1048576 33554432\ndata 34603008 8388608\n",
				m.Shell(t, `jq -r '.Partitions[] | "\(.Label) \(.Start) \(.Length)"' `+image+`/partitions.json`))
			require.Equal(t, "inside\n", m.Shell(t, `mount -o loop,ro,offset=1048576 `+image+`/raw `+mnt+`
trap 'umount `+mnt+`' EXIT; cat `+mnt+`/hello`))
			require.Equal(t, "inside\n", m.Shell(t, `mount -o loop,ro `+image+`/partitions/p1 `+mnt+`
trap 'umount `+mnt+`' EXIT; cat `+mnt+`/hello`))
			require.Equal(t, "43008512\n", m.Shell(t, `jq .MinInternalSize `+image+`/state.json`))
		})
	}
}

func TestExt4OnAWholeDisk(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "mkfs.ext4")
	need.Tool(t, "qemu-img")
	dir, tmp, mnt := t.TempDir(), t.TempDir(), t.TempDir()
	sh(t, tmp, `mkdir tree && head -c 3000000 /dev/urandom > tree/noise && sha256sum < tree/noise > sum
truncate -s 48M disk && mkfs.ext4 -q -d tree disk && qemu-img convert -f raw -O vhdx disk `+dir+`/ext4.vhdx`)
	want, err := os.ReadFile(filepath.Join(tmp, "sum"))
	require.NoError(t, err)
	m := Start(t, dir)
	require.Equal(t, string(want), m.Shell(t, `mount -o loop,ro ext4.vhdx/raw `+mnt+`
trap 'umount `+mnt+`' EXIT; sha256sum < `+mnt+`/noise`))
	require.Contains(t, m.Shell(t, `e2fsck -fn ext4.vhdx/raw`), "Pass 5")
}

func sh(t *testing.T, dir, script string) string {
	t.Helper()
	out, err := runScript(t, dir, script)
	require.NoError(t, err, out)
	return out
}

func runScript(t *testing.T, dir, script string) (string, error) {
	return run(t, dir, nil, "bash", "-euc", "set -o pipefail\n"+script)
}

// What changes in the image folder shows without a remount.
func TestImagesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	require.Equal(t, "base.vhdx\nchild.avhdx\n", m.Shell(t, "ls"))
	m.Shell(t, `mkdir $IMAGES/more; cp $IMAGES/base.vhdx $IMAGES/more/copy.vhdx; [ "$(ls)" = "base.vhdx
child.avhdx
more" ]; cmp base.vhdx/raw more/copy.vhdx/raw`)
	m.Shell(t, `mv $IMAGES/more/copy.vhdx $IMAGES/new.vhdx; cmp base.vhdx/raw new.vhdx/raw; ! ls more/copy.vhdx 2>/dev/null`)
	m.Shell(t, `rm $IMAGES/new.vhdx; ! ls -d new.vhdx 2>/dev/null; ls > /dev/null`)
}

// Mounting, listing and asking for attributes opens no image.
func TestListingOpensNoImage(t *testing.T) {
	dir := t.TempDir()
	chainOfTwo(t, dir)
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(watch)
	for _, name := range []string{"base.vhdx", "child.avhdx"} {
		_, err := unix.InotifyAddWatch(watch, filepath.Join(dir, name), unix.IN_OPEN)
		require.NoError(t, err)
	}
	opened := func() bool {
		n, err := unix.Read(watch, make([]byte, 4096))
		if err != nil {
			require.ErrorIs(t, err, unix.EAGAIN)
		}
		return n > 0
	}
	m := Start(t, dir)
	m.Shell(t, "ls; ls -la; stat base.vhdx; find . -maxdepth 1 -newer /etc/passwd")
	require.False(t, opened())
	m.Shell(t, "cat base.vhdx/settings.json")
	require.True(t, opened(), "the watch works")
}

// A file that is replaced under the same name shows the new content at the next
// open, not pages of the old one.
func TestAReplacedImageShowsItsNewContent(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, fill byte) {
		require.NoError(t, fixture.VHDX{Size: 8 * mib, Writes: []fixture.Write{{Off: 0, Data: bytes.Repeat([]byte{fill}, 4096)}}}.
			WriteFile(filepath.Join(dir, name)))
	}
	write("a.vhdx", 'x')
	m := Start(t, dir)
	require.Equal(t, "xxxx", m.Shell(t, "head -c4 a.vhdx/raw"))
	require.NoError(t, os.Remove(filepath.Join(dir, "a.vhdx")))
	write("a.vhdx", 'y')
	require.Equal(t, "yyyy", m.Shell(t, "head -c4 a.vhdx/raw"))
}

func TestABrokenImageKeepsItsDirectory(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	chainOfTwo(t, dir)
	require.NoError(t, os.Remove(filepath.Join(dir, "base.vhdx")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "junk.vhdx"), bytes.Repeat([]byte("junk"), 100_000), 0o600))
	m := Start(t, dir)
	_, err := os.Open(m.Path("child.avhdx", "raw"))
	require.ErrorIs(t, err, unix.ENOLINK)
	_, err = os.Open(m.Path("junk.vhdx", "raw"))
	require.ErrorIs(t, err, unix.EUCLEAN)
	require.Equal(t, "ENOLINK\n", m.Shell(t, `jq -r .Errno child.avhdx/state.json`))
	require.Equal(t, "EUCLEAN\n", m.Shell(t, `jq -r .Errno junk.vhdx/state.json`))
	require.Equal(t, "false\n", m.Shell(t, `jq -r .Whole child.avhdx/chain.json`))
	require.FileExists(t, m.Path("child.avhdx", "settings.json"))
	require.NoFileExists(t, m.Path("junk.vhdx", "settings.json"))
	m.Shell(t, `ls -l child.avhdx junk.vhdx > /dev/null`)
}

// Control files work from both shells, and the answer stands beside the errno.
func TestControlFilesFromShells(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	for _, shell := range []string{"bash", "dash"} {
		t.Run(shell, func(t *testing.T) {
			need.Tool(t, shell)
			try := func(script string) string {
				out, err := m.Try(t, shell, script)
				require.NoError(t, err, out)
				return strings.TrimSpace(out)
			}
			require.Equal(t, "0", try(`echo > child.avhdx/validate && jq .ReturnValue child.avhdx/validate`))
			require.Equal(t, "0", try(`echo 1 > child.avhdx/check && jq .Images[0].Errors child.avhdx/check`))
			require.Equal(t, "", try(`: > child.avhdx/validate`))
			require.Equal(t, "32773", try(`echo nonsense=1 > child.avhdx/check 2>/dev/null || jq .ReturnValue child.avhdx/check`))
			require.Contains(t, try(`exec 3<>child.avhdx/check; echo nonsense=1 >&3 2>/dev/null || cat <&3`), `unknown argument \"nonsense\"`)
			require.NoError(t, os.Rename(filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "gone")))
			require.Equal(t, "32779", try(`echo run > child.avhdx/validate 2>/dev/null || jq .ReturnValue child.avhdx/validate`))
			require.NoError(t, os.Rename(filepath.Join(dir, "gone"), filepath.Join(dir, "base.vhdx")))
		})
	}
}

// state.json tells what only the mount knows.
func TestStateKnowsHandlesAndTheLastOperation(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	require.Equal(t, "0 null\n", m.Shell(t, `jq -r '"\(.OpenHandles) \(.LastOperation)"' base.vhdx/state.json`))
	require.Equal(t, "2 ValidateVirtualHardDisk 0\n", m.Shell(t, `echo > base.vhdx/validate
exec 3<base.vhdx/raw 4<base.vhdx/raw
jq -r '"\(.OpenHandles) \(.LastOperation.Operation) \(.LastOperation.ReturnValue)"' base.vhdx/state.json`))
}

func TestASingleImageCanBeMounted(t *testing.T) {
	dir := t.TempDir()
	content := chainOfTwo(t, dir)
	m := Start(t, filepath.Join(dir, "child.avhdx"))
	require.Equal(t, "child.avhdx\n", m.Shell(t, "ls"))
	require.Equal(t, sum(content), SHA256(t, m.Path("child.avhdx", "raw")))
}

// The command line says of an image in a mount what it says of the file, whoever
// does the work.
func TestCommandsOnAMountAndOnTheFile(t *testing.T) {
	dir := t.TempDir()
	chainOfTwo(t, dir)
	commands := []string{"info", "info --json", "chain", "chain --json", "map", "map --json", "partitions", "validate", "check", "check --json"}
	file := filepath.Join(dir, "child.avhdx")
	say := func(args, image string) string {
		out, err := Command(t, dir, append(strings.Fields(args), image)...)
		require.NoError(t, err, out)
		return regexp.MustCompile(` *"Job": "\d+",\n`).ReplaceAllString(out, "")
	}
	unmounted := map[string]string{}
	for _, args := range commands {
		unmounted[args] = say(args, file)
	}
	list := say("ls", dir)
	m := Start(t, dir)
	for _, args := range commands {
		t.Run(args, func(t *testing.T) {
			require.Equal(t, unmounted[args], say(args, file))
			if args != "info --json" { // handles and the last operation are the mount's own
				require.Equal(t, unmounted[args], say(args, m.Path("child.avhdx")))
			}
		})
	}
	require.Equal(t, list, say("ls", m.Dir))
}

// Nothing in the mount can be taken away by a recursive delete.
func TestRecursiveDeleteDestroysNothing(t *testing.T) {
	dir := t.TempDir()
	chainOfTwo(t, dir)
	before := SHA256(t, filepath.Join(dir, "child.avhdx"))
	m := Start(t, dir)
	_, err := m.Try(t, "bash", "rm -rf -- *")
	require.Error(t, err)
	require.Equal(t, before, SHA256(t, filepath.Join(dir, "child.avhdx")))
	require.FileExists(t, filepath.Join(dir, "base.vhdx"))
	require.Equal(t, "base.vhdx\nchild.avhdx\n", m.Shell(t, "ls"))
}

func TestCompletion(t *testing.T) {
	out, err := Command(t, ".", "--generate-bash-completion")
	require.NoError(t, err)
	for _, name := range []string{"mount", "info", "validate", "check"} {
		require.Contains(t, strings.Fields(out), name)
	}
}
