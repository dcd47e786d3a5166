package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// The daemon is killed while a program writes to the device of a dynamic disk and
// syncs each write: none of those is lost, and with the next mount the device is gone.
func TestAttachedDeviceKilledUnderLoad(t *testing.T) {
	need.Loop(t)
	const blocks, block = 16384, 4096
	content := func(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", n), block/8) }
	place := func(n int) int64 { return int64(n*7919%blocks) * block } // far from the one before
	dir := t.TempDir()
	m := Start(t, dir)
	require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte("path=d.vhdx size=64M"), 0))
	device, err := os.OpenFile(attach(t, m, "d.vhdx", "1"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer device.Close()
	kill := time.AfterFunc(time.Second, func() { _ = m.cmd.Process.Kill() })
	defer kill.Stop()
	synced := 0
	for ; synced < blocks; synced++ {
		if _, err = device.WriteAt(content(synced), place(synced)); err == nil {
			err = device.Sync()
		}
		if err != nil {
			break
		}
	}
	m.end()
	require.NoError(t, device.Close())
	shell(t, "umount -l $1", m.Dir)
	require.NotZero(t, synced)

	again := Start(t, dir)
	require.NotContains(t, shell(t, "losetup -a"), m.Dir)
	raw, err := os.Open(again.Path("d.vhdx", "raw"))
	require.NoError(t, err)
	defer raw.Close()
	b := make([]byte, block)
	for n := range synced {
		_, err := raw.ReadAt(b, place(n))
		require.NoError(t, err)
		require.Equal(t, content(n), b, "write %d of %d", n, synced)
	}
	require.NoError(t, raw.Close())
	require.NoError(t, os.WriteFile(again.Path("d.vhdx", "check"), []byte("run"), 0))
}

// A device over the raw file of a killed daemon cannot say what it is as soon as the
// kernel has forgotten the attributes of that file. It is taken away all the same by
// the next mount, of another folder here; what somebody else laid over such a file
// stays, whoever laid a device of that number before.
func TestDeadDevicesAreKnown(t *testing.T) {
	need.Loop(t)
	m := Start(t, t.TempDir())
	for _, request := range []string{"path=d.vhdx size=64M", "path=other.vhdx size=64M", "path=once.vhdx size=64M"} {
		require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte(request), 0))
	}
	ours, was := attach(t, m, "d.vhdx", "1"), attach(t, m, "once.vhdx", "1")
	detach(t, m, "once.vhdx")
	theirs := []string{strings.TrimSpace(shell(t, "losetup --find --show $1", m.Path("other.vhdx", "raw")))}
	if lies(was) == "" { // nobody took it meanwhile
		shell(t, "losetup $1 $2", was, m.Path("once.vhdx", "raw"))
		theirs = append(theirs, was)
	}
	t.Cleanup(func() {
		for _, device := range theirs {
			shell(t, "losetup -d $1", device)
		}
	})
	require.NoError(t, m.cmd.Process.Kill())
	m.end()
	for _, device := range append(theirs, ours) {
		f, err := os.Open(device)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			_, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
			return err == unix.ENOTCONN
		}, patience, 20*time.Millisecond)
		require.NoError(t, f.Close())
	}
	shell(t, "umount -l $1", m.Dir)

	Start(t, t.TempDir())
	require.Eventually(t, func() bool { return !strings.HasSuffix(lies(ours), "/d.vhdx/raw") }, patience, 10*time.Millisecond)
	for _, device := range theirs {
		require.Contains(t, lies(device), "/raw", "of somebody else")
	}
}

// lies is the path that the kernel shows of the file under a device; "" where there
// is none.
func lies(device string) string {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop", "backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
