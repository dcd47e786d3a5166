package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

func TestDaemonReturnsWhenTheMountIsReady(t *testing.T) {
	need.Fuse(t)
	dir, mnt := t.TempDir(), t.TempDir()
	chainOfTwo(t, dir)
	out, err := Command(t, dir, "mount", "--daemon", dir, mnt)
	require.NoError(t, err, out)
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }) // a failed umount below
	require.FileExists(t, filepath.Join(mnt, "child.avhdx", "raw"))
	pid := daemonOf(t, mnt)
	out, err = Command(t, dir, "umount", mnt)
	require.NoError(t, err, out)
	// A daemon whose starter has ended may stay as a zombie where nobody waits for it.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.True(t, err != nil || bytes.Contains(status, []byte("State:\tZ")), "umount waits for the daemon's end")
	require.NoFileExists(t, filepath.Join(mnt, "child.avhdx", "raw"))
}

func TestDaemonThatCannotMountSaysWhy(t *testing.T) {
	need.Fuse(t)
	dir := t.TempDir()
	out, err := Command(t, dir, "mount", "--daemon", dir, filepath.Join(dir, "none"))
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.NotZero(t, exit.ExitCode())
	require.Contains(t, out, "none")
}

func TestSignalsUnmount(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			chainOfTwo(t, dir)
			m := Start(t, dir)
			m.Shell(t, "cat child.avhdx/raw > /dev/null")
			require.NoError(t, m.cmd.Process.Signal(sig))
			log := m.end()
			require.True(t, m.cmd.ProcessState.Success(), log)
			require.Contains(t, log, "unmounted")
		})
	}
}

// The first signal leaves a mount alone that is in use, the second one does not.
func TestASecondSignalForcesTheUnmount(t *testing.T) {
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	f, err := os.Open(m.Path("child.avhdx", "raw"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, m.cmd.Process.Signal(unix.SIGTERM))
	b := make([]byte, 4096)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_ = m.cmd.Process.Signal(unix.SIGTERM) // until one comes after the first was handled
		_, err := os.Stat(m.Path("child.avhdx"))
		return err != nil
	}, patience, 50*time.Millisecond)
	log := m.end()
	require.Contains(t, log, "in use")
}

func TestUmountOfABusyMountFails(t *testing.T) {
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	f, err := os.Open(m.Path("child.avhdx", "raw"))
	require.NoError(t, err)
	out, err := Command(t, dir, "umount", m.Dir)
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 6, exit.ExitCode(), out)
	require.NoError(t, f.Close())
}

// A mount whose daemon was killed is taken away; so is one at a name that the
// kernel's table escapes.
func TestUmountOfADeadMount(t *testing.T) {
	need.Fuse(t)
	dir, mnt := t.TempDir(), filepath.Join(t.TempDir(), `a b\c`)
	chainOfTwo(t, dir)
	require.NoError(t, os.Mkdir(mnt, 0o700))
	out, err := Command(t, dir, "mount", "--daemon", dir, mnt)
	require.NoError(t, err, out)
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }) // a failed umount below
	out, err = Command(t, dir, "umount", filepath.Join(mnt, "child.avhdx"))
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 2, exit.ExitCode(), out)
	require.NoError(t, unix.Kill(daemonOf(t, mnt), unix.SIGKILL))
	require.Eventually(t, func() bool {
		_, err := os.ReadDir(mnt)
		return errors.Is(err, unix.ENOTCONN)
	}, patience, 10*time.Millisecond)
	out, err = Command(t, dir, "umount", mnt)
	require.NoError(t, err, out)
	require.Empty(t, mountsBelow(filepath.Dir(mnt)))
}

// daemonOf is the process id of a mount's daemon.
func daemonOf(t *testing.T, mnt string) int {
	t.Helper()
	var daemon struct{ PID int }
	decode(t, filepath.Join(mnt, ".vhdfs", "daemon.json"), &daemon)
	return daemon.PID
}
