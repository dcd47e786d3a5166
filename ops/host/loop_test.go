package host_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/need"
)

func TestLoopOn(t *testing.T) {
	need.Root(t)
	need.Tool(t, "losetup")
	dir := t.TempDir()
	for _, name := range []string{"used", "free"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600))
	}
	out, err := exec.Command("losetup", "--find", "--show", filepath.Join(dir, "used")).Output()
	require.NoError(t, err)
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "-d", device).Run()) })

	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	defer d.Close()
	used, err := d.Stat("used")
	require.NoError(t, err)
	free, err := d.Stat("free")
	require.NoError(t, err)
	err = host.LoopOn(used.ID)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.ErrorContains(t, err, device+" lies on the file")
	require.NoError(t, host.LoopOn(free.ID))
}

// Devices over a file take its size, write back what they hold, and forget what
// was changed underneath; others are left alone.
func TestLoopCaches(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "losetup")
	dir := t.TempDir()
	name, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	device, left := loop(t, name), loop(t, other)
	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	defer d.Close()
	st, err := d.Stat("file")
	require.NoError(t, err)
	var c host.LoopCaches

	for _, n := range []string{name, other} {
		require.NoError(t, os.Truncate(n, 3<<20))
	}
	require.NoError(t, c.Resized(st.ID))
	require.Equal(t, int64(3<<20), end(t, device))
	require.Equal(t, int64(1<<20), end(t, left))

	f, err := os.OpenFile(device, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("dirty"), 4096)
	require.NoError(t, err)
	require.NoError(t, c.Launder(st.ID))
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, "dirty", string(b[4096:4101]))

	below, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer below.Close()
	_, err = below.WriteAt([]byte("other"), 4096)
	require.NoError(t, err)
	require.NoError(t, c.Replaced(st.ID))
	_, err = f.ReadAt(b[:5], 4096)
	require.NoError(t, err)
	require.Equal(t, "other", string(b[:5]))
	require.NoError(t, c.Resized(ops.FileID{Dev: st.ID.Dev, Ino: 1}), "a file without devices")
}

// loop makes a file of 1 MiB and a device over it.
func loop(t *testing.T, name string) string {
	t.Helper()
	require.NoError(t, os.WriteFile(name, make([]byte, 1<<20), 0o600))
	out, err := exec.Command("losetup", "--find", "--show", name).Output()
	require.NoError(t, err)
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "-d", device).Run()) })
	return device
}

func end(t *testing.T, device string) int64 {
	t.Helper()
	f, err := os.Open(device)
	require.NoError(t, err)
	defer f.Close()
	n, err := f.Seek(0, 2)
	require.NoError(t, err)
	return n
}
