package e2e

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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
