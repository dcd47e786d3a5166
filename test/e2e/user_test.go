package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
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

// An ordinary user mounts with fusermount3; other users, root among them, see
// nothing of it.
func TestAnOrdinaryUserMounts(t *testing.T) {
	need.Root(t)
	need.Fuse(t)
	need.Tool(t, "fusermount3")
	st, err := os.Stat("/dev/fuse")
	require.NoError(t, err)
	if st.Mode().Perm()&0o006 != 0o006 {
		require.NoError(t, os.Chmod("/dev/fuse", 0o666)) // Debian's default
	}
	top, err := os.MkdirTemp("", "TestUser") // t.TempDir's parents are root's alone
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	images, mnt, bin := filepath.Join(top, "images"), filepath.Join(top, "mnt"), filepath.Join(top, "vhdfs")
	for _, dir := range []string{images, mnt} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	content := chainOfTwo(t, images)
	b, err := os.ReadFile(program)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(bin, b, 0o755))
	for _, path := range []string{top, images, mnt, filepath.Join(images, "base.vhdx"), filepath.Join(images, "child.avhdx")} {
		require.NoError(t, os.Chown(path, nobody, nobody))
	}

	user := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		asNobody(cmd)
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := user(bin, "mount", "--daemon", images, mnt)
	require.NoError(t, err, out)
	t.Cleanup(func() { _, _ = user("fusermount3", "-u", "-z", mnt) }) // when the test has failed before its umount
	out, err = user("sha256sum", filepath.Join(mnt, "child.avhdx", "raw"))
	require.NoError(t, err, out)
	require.Equal(t, sum(content), out[:64])
	out, err = user("bash", "-c", "echo > "+mnt+"/child.avhdx/validate && cat "+mnt+"/child.avhdx/validate")
	require.NoError(t, err, out)
	require.Contains(t, out, `"ReturnValue":0`)
	_, err = os.ReadDir(mnt)
	require.ErrorIs(t, err, os.ErrPermission)
	out, err = user(bin, "umount", mnt)
	require.NoError(t, err, out)
}
