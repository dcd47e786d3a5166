package hostile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/hostile/folder"
	"vhdfs/test/need"
)

// A parent that is recorded as a file of the mount that shows the child: to open
// it the daemon would have to answer itself. The mount point lies in the folder.
func TestH42ParentInOwnMount(t *testing.T) {
	need.Fuse(t)
	dir := folder.Make(t, folder.Files{
		"p.vhdx":    rootX(2),
		"good.vhdx": childX(10, 2, "relative_path", `.\p.vhdx`),
		"a.vhdx":    childX(11, 3, "relative_path", `.\mnt\p.vhdx\raw`),
		"b.vhdx":    childX(12, 3, "relative_path", `.\mnt\a.vhdx\raw`),
		"c.vhdx":    childX(13, 3, "relative_path", `.\mnt\p.vhdx\partitions\p1`),
		"d.vhd":     childV(14, 3, "W2ru", `.\mnt\d.vhd\raw`),
	})
	mnt := filepath.Join(dir, "mnt")
	require.NoError(t, os.Mkdir(mnt, 0o755))
	folder.Add(t, dir, folder.Files{"e.vhdx": childX(15, 3, "absolute_win32_path", filepath.Join(mnt, "e.vhdx", "raw"))})
	program := filepath.Join(t.TempDir(), "vhdfs")
	out, err := exec.Command("go", "build", "-o", program, "vhdfs/cmd/vhdfs").CombinedOutput()
	require.NoError(t, err, "%s", out)
	folder.Watch(t)
	serve(t, program, dir, mnt)
	b, err := os.ReadFile(filepath.Join(mnt, "good.vhdx", "raw"))
	require.NoError(t, err)
	require.Equal(t, string(base[0].Data), string(b[:512]))
	for _, name := range []string{"a.vhdx", "b.vhdx", "c.vhdx", "d.vhd", "e.vhdx"} {
		_, err := os.ReadFile(filepath.Join(mnt, name, "raw"))
		require.ErrorIs(t, err, syscall.ENOLINK, name)
		chain, err := os.ReadFile(filepath.Join(mnt, name, "chain.json"))
		require.NoError(t, err)
		require.True(t, bytes.Contains(chain, []byte("ENOLINK")), "%s: %s", name, chain)
	}
	_, err = os.ReadDir(filepath.Join(mnt, "mnt")) // listing its own folder is no trap either
	if err != nil {
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
}

// serve mounts dir at mnt in a process of its own until the test ends.
func serve(t *testing.T, program, dir, mnt string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(program, "mount", dir, mnt)
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		out, err := exec.Command(program, "umount", mnt).CombinedOutput()
		require.NoError(t, errors.Join(err, cmd.Wait()), "%s%s", out, log.Bytes())
	})
	for {
		if _, err := os.Stat(filepath.Join(mnt, ".vhdfs")); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond) // the watch ends a wait without end
	}
}
