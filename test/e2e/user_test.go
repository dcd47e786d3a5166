package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
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

// mount mounts the folder, to be unmounted by the test or at its end.
func (u *ordinary) mount(t *testing.T) {
	t.Helper()
	var log bytes.Buffer
	daemon := exec.Command(u.bin, "mount", u.images, u.mnt)
	asNobody(daemon)
	daemon.Dir, daemon.Stdout, daemon.Stderr = "/", &log, &log
	if err := startReady(t, daemon); err != nil {
		_ = daemon.Wait() // the first error says why
		t.Fatalf("%v\n%s", err, log.String())
	}
	t.Cleanup(func() {
		_, _ = u.run("fusermount3", "-u", "-z", u.mnt) // when the test has failed before its umount
		require.NoError(t, daemon.Wait(), "%s", &log)
	})
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

// asAnyone is a script for each operation, which an ordinary user may run. They run one
// after the other in one mount.
var asAnyone = []struct{ op, script string }{
	{"create", `echo path=new.vhdx size=64M > .vhdfs/create
		echo path=set.vhds size=64M > .vhdfs/create
		printf content | dd of=new.vhdx/raw conv=notrunc,fsync status=none`},
	{"create-floppy", `echo path=f.vfd > .vhdfs/create-floppy`},
	{"resize", `echo 128M > new.vhdx/resize; [ $(stat -c %s new.vhdx/raw) = 134217728 ]`},
	{"compact", `echo 1 > new.vhdx/compact`},
	{"convert", `echo path=copy.vhd type=fixed > new.vhdx/convert; [ "$(head -c 7 copy.vhd/raw)" = content ]`},
	{"tracking", `echo on > new.vhdx/tracking`},
	{"changes", `exec 3<> new.vhdx/tracking; echo new >&3; id=$(jq -r .ResilientChangeTrackingId <&3); echo $id > new.vhdx/changes
		jq -e '.ProcessedByteLength == 134217728' new.vhdx/changes`},
	{"attach", `echo device=none > new.vhdx/attach
		printf pinned! | dd of=new.vhdx/raw conv=notrunc,fsync status=none`},
	{"find", `echo new.vhdx > .vhdfs/find`},
	{"detach", `echo 1 > new.vhdx/detach
		echo new.vhdx > .vhdfs/find && exit 9; jq -e '.Image == null and .ReturnValue == 32789' .vhdfs/find`},
	{"snapshot", `mkdir set.vhds/snapshots/monday
		printf tuesday | dd of=set.vhds/raw conv=notrunc,fsync status=none
		echo tuesday > set.vhds/snapshot
		echo 1 > copy.vhd/snapshot; [ -e copy_*.avhd ]`},
	{"set-snapshot", `mv set.vhds/snapshots/monday set.vhds/snapshots/sunday
		echo '{"Label":"monday"}' > set.vhds/snapshots/sunday/info.json; [ "$(ls set.vhds/snapshots | xargs)" = "monday tuesday" ]`},
	{"apply", `echo keep=later > set.vhds/snapshots/monday/apply; [ "$(head -c 7 set.vhds/raw | tr -d '\\0')" = "" ]
		[ "$(head -c 7 set.vhds/snapshots/tuesday/raw)" = tuesday ]`},
	{"delete", `rmdir set.vhds/snapshots/later; echo 1 > set.vhds/snapshots/tuesday/delete`},
	{"optimize", `jq -e .OptimizeNeeded set.vhds/set.json; echo 1 > set.vhds/optimize; jq -e '.OptimizeNeeded | not' set.vhds/set.json`},
	{"set-parent", `echo path=kid.avhdx parent=new.vhdx > .vhdfs/create
		printf kid | dd of=kid.avhdx/raw conv=notrunc,fsync status=none
		echo new.vhdx > kid.avhdx/set-parent`},
	{"set", `echo '{"PhysicalSectorSize":512}' > kid.avhdx/settings.json`},
	{"validate", `echo 1 > kid.avhdx/validate`},
	{"check", `echo repair=true > kid.avhdx/check`},
	{"merge", `echo 1 > kid.avhdx/merge; [ "$(head -c 7 new.vhdx/raw)" = kidned! ]`},
	{"convert-to-set", `echo 1 > new.vhdx/convert-to-set; [ "$(head -c 7 new.vhds/raw)" = kidned! ]`},
	{"start", `echo > .vhdfs/start`},
	{"request-state-change", `echo enabled > .vhdfs/request-state-change`},
	// Below is a device that nobody may ask, or none.
	{"validate-persistent-reservations", `echo . > .vhdfs/validate-persistent-reservations && exit 9
		jq -e '.Errno == "EOPNOTSUPP"' .vhdfs/validate-persistent-reservations`},
	{"stop", `exec 3< copy.vhd/raw; echo 1 > .vhdfs/stop && exit 9; exec 3<&-; echo dryrun=true > .vhdfs/stop`},
}

// Every operation but the block device is an ordinary user's too, and so are jobs.
func TestAnOrdinaryUserOperates(t *testing.T) {
	need.Tool(t, "jq")
	u := newOrdinary(t, func(dir string) { bigDisk(t, dir) })
	u.mount(t)
	for _, o := range ops.All {
		require.True(t, slices.ContainsFunc(asAnyone, func(r struct{ op, script string }) bool { return r.op == o.Name }), "no script of %s", o.Name)
	}
	for _, r := range asAnyone {
		t.Log(r.op)
		u.shell(t, r.script)
	}
	u.shell(t, `cat */*.json .vhdfs/*.json .vhdfs/log .vhdfs/metrics > /dev/null; ls -lR . > /dev/null`)
	require.Equal(t, "8", u.shell(t, `
		echo path=n.vhdx wait=false > big.vhd/convert
		job=.vhdfs/jobs/$(jq -r .Job big.vhd/convert)
		echo 1 > $job/cancel
		jq .JobState $job/wait
		[ ! -e n.vhdx ]`))
	for _, name := range []string{"new.vhds", "f.vfd", "copy.vhd"} {
		st, err := os.Stat(filepath.Join(u.images, name))
		require.NoError(t, err)
		require.EqualValues(t, nobody, st.Sys().(*syscall.Stat_t).Uid, name)
	}
	// The command of an operation goes through the mount; the service stops as asked.
	out, err := u.run(u.bin, "resize", filepath.Join(u.images, "new.vhds"), "192M")
	require.NoError(t, err, out)
	require.Equal(t, "201326592", u.shell(t, "stat -c %s new.vhds/raw"))
	out, err = u.run("bash", "-c", `exec 3< "$MNT/new.vhds/raw"; "$VHDFS" stop "$MNT"; test $? = 6 && "$VHDFS" umount "$MNT"; test $? = 6`)
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
