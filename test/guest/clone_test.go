package guest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/e2e"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

// onXFS is a folder on an XFS of its own, made with these metadata options.
func onXFS(t *testing.T, options string) string {
	t.Helper()
	need.Loop(t)
	need.Tool(t, "mkfs.xfs")
	top := t.TempDir()
	device, dir := filepath.Join(top, "device"), filepath.Join(top, "host")
	require.NoError(t, os.WriteFile(device, nil, 0o600))
	require.NoError(t, os.Truncate(device, 512<<20))
	require.NoError(t, os.Mkdir(dir, 0o700))
	mount.Tool(t, "mkfs.xfs", "-q", "-m", options, device)
	mount.MountFS(t, mount.Loop(t, device), dir, "xfs", "")
	return dir
}

// On a host that is nearly full what is shared is not asked for; one that cannot
// share asks for all of it, and begins nothing.
func TestSpaceOfConversionsThatShare(t *testing.T) {
	for options, shares := range map[string]bool{"reflink=1": true, "reflink=0": false} {
		t.Run(options, func(t *testing.T) {
			dir := onXFS(t, options)
			data := noise(0, 128*mib, 5)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "disk.raw"), data.Data, 0o600))
			said, err := e2e.Command(t, dir, "create", "fixed.vhd", "type=fixed", "source=disk.raw")
			require.NoError(t, err, said)
			var st unix.Statfs_t
			require.NoError(t, unix.Statfs(dir, &st))
			mount.Tool(t, "fallocate", "-l", strconv.FormatInt(int64(st.Bavail)*st.Bsize-64*mib, 10), filepath.Join(dir, "full"))
			said, err = e2e.Command(t, dir, "convert", "fixed.vhd", "copy.raw")
			if !shares {
				require.Error(t, err)
				require.Regexp(t, `copy.raw needs \d+ bytes, the host has \d+ left`, said)
				require.NoFileExists(t, filepath.Join(dir, "copy.raw"))
				return
			}
			require.NoError(t, err, said)
			got, err := os.ReadFile(filepath.Join(dir, "copy.raw"))
			require.NoError(t, err)
			same(t, data.Data, got)
		})
	}
}

// Where the host can let files share space a raw file shares what the image itself
// stores, and neither sees what is written to the other later.
func TestConversionsShareSpace(t *testing.T) {
	need.Tool(t, "filefrag")
	dir := onXFS(t, "reflink=1")
	const size = 32 * mib
	data := noise(0, size, 5)
	clear(data.Data[3*mib : 4*mib])
	require.NoError(t, os.WriteFile(filepath.Join(dir, "disk.raw"), data.Data, 0o600))
	for _, tt := range []struct {
		command string
		shares  bool
	}{
		{"create fixed.vhd type=fixed source=disk.raw", false}, // its space is its own
		{"convert fixed.vhd from.raw", true},
		{"create dynamic.vhdx type=dynamic source=disk.raw", false},
		{"convert dynamic.vhdx again.raw", true},
		{"create child.vhdx type=differencing parent=dynamic.vhdx", false},
	} {
		t.Run(tt.command, func(t *testing.T) {
			said, err := e2e.Command(t, dir, strings.Fields(tt.command)...)
			require.NoError(t, err, said)
			words := strings.Fields(tt.command)
			out := filepath.Join(dir, words[1])
			if words[0] == "convert" {
				out = filepath.Join(dir, words[2])
			}
			require.Equal(t, tt.shares, strings.Contains(mount.Tool(t, "filefrag", "-v", out), "shared"))
			if filepath.Ext(out) == ".raw" {
				got, err := os.ReadFile(out)
				require.NoError(t, err)
				same(t, data.Data, got)
			}
		})
	}
	t.Run("of a child its own data alone", func(t *testing.T) { // a parent may be compacted meanwhile
		m := e2e.Start(t, dir)
		with(t, m.Path("child.vhdx", "raw"), func(f *os.File) {
			_, err := f.WriteAt(data.Data[size/2:], size/2)
			require.NoError(t, err)
		})
		m.Stop(t)
		said, err := e2e.Command(t, dir, "convert", "child.vhdx", "above.raw")
		require.NoError(t, err, said)
		above := filepath.Join(dir, "above.raw")
		require.Contains(t, mount.Tool(t, "filefrag", "-v", above), "shared")
		got, err := os.ReadFile(above)
		require.NoError(t, err)
		same(t, data.Data, got)
	})
	with(t, filepath.Join(dir, "from.raw"), func(f *os.File) {
		_, err := f.WriteAt(make([]byte, mib), 0)
		require.NoError(t, err)
	})
	said, err := e2e.Command(t, dir, "convert", "fixed.vhd", "unharmed.raw")
	require.NoError(t, err, said)
	got, err := os.ReadFile(filepath.Join(dir, "unharmed.raw"))
	require.NoError(t, err)
	same(t, data.Data, got)
}
