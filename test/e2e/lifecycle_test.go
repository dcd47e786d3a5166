package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// A signal ends a mount that is in use: a service manager asks once and kills
// then. The image is closed, not left as a crash would leave it.
func TestSignalWhileInUse(t *testing.T) {
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	f, err := os.OpenFile(m.Path("child.avhdx", "raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	want := []byte("written and never flushed by its program")
	_, err = f.WriteAt(want, 1<<20)
	require.NoError(t, err)
	require.NoError(t, m.cmd.Process.Signal(unix.SIGTERM))
	log := m.end()
	require.True(t, m.cmd.ProcessState.Success(), log)

	out, err := Command(t, dir, "info", "--json", "child.avhdx")
	require.NoError(t, err, out)
	require.Contains(t, out, `"LogState": "clean"`)
	again := Start(t, dir)
	require.Equal(t, string(want), again.Shell(t, "dd if=child.avhdx/raw bs=1 skip=1048576 count=40 status=none"))
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

// A daemon that does not answer is cut off, and ends when it runs again.
func TestUmountByForceOfAHungDaemon(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	// Another process keeps raw open. This one must not: what it starts would
	// close raw on exec, and wait for the daemon's answer.
	f, err := os.Open(m.Path("child.avhdx", "raw"))
	require.NoError(t, err)
	user := exec.Command("sleep", "1000")
	user.Stdin = f
	require.NoError(t, user.Start())
	t.Cleanup(func() { _, _ = user.Process.Kill(), user.Wait() }) // it ends by that signal
	require.NoError(t, f.Close())
	require.NoError(t, m.cmd.Process.Signal(unix.SIGSTOP))
	out, err := Command(t, dir, "umount", "--force", m.Dir)
	require.NoError(t, m.cmd.Process.Signal(unix.SIGCONT))
	require.NoError(t, err, out)
	require.Empty(t, mountsBelow(filepath.Dir(m.Dir)))
	log := m.end()
	require.True(t, m.cmd.ProcessState.Success(), log)
}

// daemonOf is the process id of a mount's daemon.
func daemonOf(t *testing.T, mnt string) int {
	t.Helper()
	var daemon struct{ PID int }
	decode(t, filepath.Join(mnt, ".vhdfs", "daemon.json"), &daemon)
	return daemon.PID
}

// Whoever writes through a loop device on the image file does so past every lock.
func TestALoopDeviceOnTheFileKeepsWritersOut(t *testing.T) {
	need.Loop(t)
	dir := t.TempDir()
	chainOfTwo(t, dir)
	out, err := exec.Command("losetup", "--find", "--show", filepath.Join(dir, "child.avhdx")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	detach := func() error { return exec.Command("losetup", "-d", strings.TrimSpace(string(out))).Run() }
	detached := false
	t.Cleanup(func() {
		if !detached {
			require.NoError(t, detach())
		}
	})
	m := Start(t, dir)
	raw := m.Path("child.avhdx", "raw")
	_, err = os.OpenFile(raw, os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EBUSY)
	f, err := os.Open(raw)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, detach())
	detached = true
	f, err = os.OpenFile(raw, os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
