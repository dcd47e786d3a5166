package e2e

import (
	"bytes"
	"encoding/json"
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
	b, err := os.ReadFile(filepath.Join(mnt, ".vhdfs", "daemon.json"))
	require.NoError(t, err)
	var daemon struct{ PID int }
	require.NoError(t, json.Unmarshal(b, &daemon))
	out, err = Command(t, dir, "umount", mnt)
	require.NoError(t, err, out)
	// A daemon whose starter has ended may stay as a zombie where nobody waits for it.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", daemon.PID))
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
