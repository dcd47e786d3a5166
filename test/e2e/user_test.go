package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/need"
)

// nobody is the user id of Debian's nobody.
const nobody = 65534

// asNobody lets an ordinary user run a program.
func asNobody(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// ordinary is nobody's own place: the program, a folder of images, a mount point.
type ordinary struct{ images, mnt, bin string }

// newOrdinary puts the program and what fill makes of a folder where nobody has it.
func newOrdinary(t *testing.T, fill func(dir string)) *ordinary {
	t.Helper()
	need.Root(t)
	need.Fuse(t)
	need.Tool(t, "fusermount3")
	st, err := os.Stat("/dev/fuse")
	require.NoError(t, err)
	if st.Mode().Perm()&0o006 != 0o006 {
		require.NoError(t, os.Chmod("/dev/fuse", 0o666)) // Debian's default
		t.Cleanup(func() { require.NoError(t, os.Chmod("/dev/fuse", st.Mode().Perm())) })
	}
	top, err := os.MkdirTemp("", "TestUser") // t.TempDir's parents are root's alone
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	u := &ordinary{images: filepath.Join(top, "images"), mnt: filepath.Join(top, "mnt"), bin: filepath.Join(top, "vhdfs")}
	for _, dir := range []string{u.images, u.mnt} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	fill(u.images)
	b, err := os.ReadFile(program)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(u.bin, b, 0o755))
	require.NoError(t, filepath.WalkDir(top, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}))
	return u
}

// run runs a program as nobody.
func (u *ordinary) run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	asNobody(cmd)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "IMAGES="+u.images, "MNT="+u.mnt, "VHDFS="+u.bin, "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mount mounts the folder in the background, to be unmounted by the test or at its end.
func (u *ordinary) mount(t *testing.T) {
	t.Helper()
	out, err := u.run(u.bin, "mount", "--daemon", u.images, u.mnt)
	require.NoError(t, err, out)
	t.Cleanup(func() { _, _ = u.run("fusermount3", "-u", "-z", u.mnt) }) // when the test has failed before its umount
}

// shell runs a script that must succeed, in the mount.
func (u *ordinary) shell(t *testing.T, script string) string {
	t.Helper()
	out, err := u.run("bash", "-euc", `cd "$MNT"; `+script)
	require.NoError(t, err, "%s\n%s", script, out)
	return strings.TrimSpace(out)
}

// An ordinary user mounts with fusermount3; other users, root among them, see
// nothing of it.
func TestAnOrdinaryUserMounts(t *testing.T) {
	var content []byte
	u := newOrdinary(t, func(dir string) { content = chainOfTwo(t, dir) })
	u.mount(t)
	require.Equal(t, sum(content), u.shell(t, "sha256sum child.avhdx/raw")[:64])
	require.Contains(t, u.shell(t, "echo > child.avhdx/validate && cat child.avhdx/validate"), `"ReturnValue":0`)
	_, err := os.ReadDir(u.mnt)
	require.ErrorIs(t, err, os.ErrPermission)
	out, err := Command(t, "/", "status")
	require.NoError(t, err, out)
	require.Contains(t, out, u.mnt+" shows "+u.images+", user 65534, only its user can look\n")
	out, err = u.run(u.bin, "status")
	require.NoError(t, err, out)
	require.Contains(t, out, u.mnt+" shows "+u.images+", user 65534, process ")
	out, err = u.run(u.bin, "umount", u.mnt)
	require.NoError(t, err, out)
	require.Empty(t, mountsBelow(filepath.Dir(u.mnt)))
}

// Every operation that needs no block device is an ordinary user's too.
func TestAnOrdinaryUserOperates(t *testing.T) {
	need.Tool(t, "jq")
	u := newOrdinary(t, func(dir string) { chainOfTwo(t, dir) })
	u.mount(t)
	u.shell(t, `
		echo path=new.vhdx size=64M > .vhdfs/create
		echo path=f.vfd > .vhdfs/create-floppy
		printf content | dd of=new.vhdx/raw conv=notrunc,fsync status=none
		echo 128M > new.vhdx/resize
		echo 1 > new.vhdx/compact
		echo path=copy.vhd type=fixed > new.vhdx/convert
		echo path=kid.avhdx parent=new.vhdx > .vhdfs/create
		printf kid | dd of=kid.avhdx/raw conv=notrunc,fsync status=none
		echo 1 > kid.avhdx/validate
		echo repair=true > kid.avhdx/check
		echo new.vhdx > kid.avhdx/set-parent
		echo '{"PhysicalSectorSize":512}' > kid.avhdx/settings.json
		echo 1 > kid.avhdx/merge
		cat */*.json .vhdfs/*.json .vhdfs/log .vhdfs/metrics > /dev/null
		ls -lR . > /dev/null`)
	require.Equal(t, "kidtent\ncontent\n134217728", u.shell(t, `head -c 7 new.vhdx/raw; echo; head -c 7 copy.vhd/raw; echo; stat -c %s new.vhdx/raw`))
	require.Equal(t, "null\n32789", u.shell(t, `echo new.vhdx > .vhdfs/find 2>/dev/null || jq '.Image,.ReturnValue' .vhdfs/find`))
	// Below is a device that nobody may ask, or none.
	require.Equal(t, "EOPNOTSUPP", u.shell(t, `echo . > .vhdfs/validate-persistent-reservations 2>/dev/null || jq -r .Errno .vhdfs/validate-persistent-reservations`))
	for _, doc := range []string{"new.vhdx", "f.vfd", "copy.vhd"} {
		st, err := os.Stat(filepath.Join(u.images, doc))
		require.NoError(t, err)
		require.EqualValues(t, nobody, st.Sys().(*syscall.Stat_t).Uid, doc)
	}
	// The command of an operation goes through the mount; the service stops as asked.
	out, err := u.run(u.bin, "resize", filepath.Join(u.images, "new.vhdx"), "192M")
	require.NoError(t, err, out)
	require.Equal(t, "201326592", u.shell(t, "stat -c %s new.vhdx/raw"))
	out, err = u.run("bash", "-c", `exec 3< "$MNT/new.vhdx/raw"; "$VHDFS" stop "$MNT"; test $? = 6 && "$VHDFS" umount "$MNT"; test $? = 6`)
	require.NoError(t, err, out)
	require.NotEmpty(t, mountsBelow(filepath.Dir(u.mnt)))
	out, err = u.run(u.bin, "umount", u.mnt)
	require.NoError(t, err, out)
	require.Empty(t, mountsBelow(filepath.Dir(u.mnt)))
}

// An image whose file an ordinary user may only read opens
// for reading alone, and its folder takes no changes.
func TestAnOrdinaryUserReadsWhatIsRoots(t *testing.T) {
	u := newOrdinary(t, func(dir string) { chainOfTwo(t, dir) })
	for _, name := range []string{"base.vhdx", "child.avhdx", "."} {
		require.NoError(t, os.Chown(filepath.Join(u.images, name), 0, 0))
	}
	for _, name := range []string{"base.vhdx", "child.avhdx"} {
		require.NoError(t, os.Chmod(filepath.Join(u.images, name), 0o644))
	}
	u.mount(t)
	u.shell(t, `
		cat child.avhdx/raw child.avhdx/*.json > /dev/null
		echo 1 > child.avhdx/check
		{ printf x | dd of=child.avhdx/raw conv=notrunc status=none; } 2>/dev/null && exit 9
		echo 128M > child.avhdx/resize && exit 9
		echo path=new.vhdx size=64M > .vhdfs/create && exit 9
		true`)
	out, err := u.run(u.bin, "umount", u.mnt)
	require.NoError(t, err, out)
}

// An ordinary user's image is only kept open: with device=none, and, with a warning,
// where a device was asked for. Without a mount a service does that.
func TestAnOrdinaryUserAttaches(t *testing.T) {
	need.Tool(t, "jq")
	u := newOrdinary(t, func(dir string) { chainOfTwo(t, dir) })
	u.mount(t)
	for _, tt := range []struct{ request, warnings string }{{"device=none", "null"}, {"1", "1"}} {
		require.Equal(t, "0\nnone\n"+tt.warnings, u.shell(t, `
			echo `+tt.request+` > child.avhdx/attach
			jq -r '.ReturnValue,.Way,(.Warnings|if . then length else . end)' child.avhdx/attach`))
		require.Equal(t, u.images+"/child.avhdx", u.shell(t, `jq -r .Name .vhdfs/mounted/*.json`))
		u.shell(t, `
			echo 1 > child.avhdx/attach 2>/dev/null && exit 9
			printf pinned | dd of=child.avhdx/raw conv=notrunc,fsync status=none
			echo child.avhdx > .vhdfs/find
			echo 1 > child.avhdx/detach`)
		require.Equal(t, "", u.shell(t, "ls .vhdfs/mounted"))
	}
	out, err := u.run(u.bin, "umount", u.mnt)
	require.NoError(t, err, out)

	image := filepath.Join(u.images, "child.avhdx")
	for _, words := range [][]string{{"attach", image, "device=none"}, {"status"}, {"detach", image}} {
		out, err = u.run("env", append([]string{"XDG_RUNTIME_DIR=" + filepath.Dir(u.mnt), u.bin}, words...)...)
		require.NoError(t, err, out)
		if words[0] == "status" {
			require.Contains(t, out, "no device  read-write  "+image)
		}
	}
	out, err = u.run(u.bin, "status")
	require.NoError(t, err, out)
	require.NotContains(t, out, image)
}
