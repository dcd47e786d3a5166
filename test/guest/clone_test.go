package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/e2e"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

// Where the host can let files share space a conversion copies nothing that stands
// in one piece in both.
func TestConversionsShareSpace(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "mkfs.xfs")
	need.Tool(t, "filefrag")
	top := t.TempDir()
	device, dir := filepath.Join(top, "device"), filepath.Join(top, "host")
	require.NoError(t, os.WriteFile(device, nil, 0o600))
	require.NoError(t, os.Truncate(device, 512<<20))
	require.NoError(t, os.Mkdir(dir, 0o700))
	mount.Tool(t, "mkfs.xfs", "-q", "-m", "reflink=1", device)
	mount.MountFS(t, mount.Loop(t, device), dir, "xfs", "")

	const size = 32 * mib
	data := noise(0, size, 5)
	clear(data.Data[3*mib : 4*mib])
	raw := filepath.Join(dir, "disk.raw")
	require.NoError(t, os.WriteFile(raw, data.Data, 0o600))
	for _, tt := range []struct {
		command string
		shares  bool
	}{
		{"create fixed.vhd type=fixed source=disk.raw", true},
		{"create fixed.vhdx type=fixed source=disk.raw", true},
		{"convert fixed.vhd from.vhdx type=fixed", true},
		{"convert fixed.vhdx from.raw", true},
		{"create dynamic.vhdx type=dynamic source=disk.raw", false}, // blocks get their places as they come
		{"convert dynamic.vhdx again.raw", true},
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
			if filepath.Ext(out) != ".raw" {
				look := filepath.Join(dir, "look.raw")
				said, err = e2e.Command(t, dir, "convert", out, "path="+look)
				require.NoError(t, err, said)
				out = look
				defer func() { require.NoError(t, os.Remove(look)) }()
			}
			got, err := os.ReadFile(out)
			require.NoError(t, err)
			same(t, data.Data, got)
		})
	}
	// What is shared parts when it is written.
	f, err := os.OpenFile(filepath.Join(dir, "from.raw"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, mib), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	got, err := os.ReadFile(raw)
	require.NoError(t, err)
	same(t, data.Data, got)
}
