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
