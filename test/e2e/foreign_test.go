package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/need"
)

// What Hyper-V knows of changes is renamed before the first write: through raw, a
// device over it, one on the file itself, and a command without a mount. The log
// says so.
func TestForeignTrackingIsRetired(t *testing.T) {
	dir := t.TempDir()
	m := Start(t, dir)
	m.Shell(t, `for n in raw dev direct cmd still; do echo path=$n.vhdx size=8M type=fixed > .vhdfs/create; done
		echo path=old.vhd size=8M type=fixed > .vhdfs/create`)
	images := []string{"raw.vhdx", "dev.vhdx", "direct.vhdx", "old.vhd", "cmd.vhdx", "still.vhdx"}
	for _, name := range images {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".rct"), nil, 0o600))
	}
	m.Shell(t, `exec 3<>raw.vhdx/raw 4<>still.vhdx/raw; [ -e $IMAGES/raw.vhdx.rct ]
		cat <&4 > /dev/null; echo hello >&3`)
	need.Loop(t)
	device := attach(t, m, "dev.vhdx", "1")
	shell(t, `dd if=/dev/zero of=$1 bs=4k count=1 oflag=direct status=none`, device)
	attach(t, m, "direct.vhdx", "direct=true")
	attach(t, m, "old.vhd", "direct=true")
	for _, name := range images[1:4] {
		detach(t, m, name)
	}
	m.Stop(t)
	out, err := Command(t, dir, "resize", "cmd.vhdx", "16M")
	require.NoError(t, err, out)
	log := readFile(t, filepath.Join(dir, ".vhdfs-state", "log"))
	for i, name := range images {
		path := filepath.Join(dir, name+".rct")
		if i == len(images)-1 {
			require.FileExists(t, path)
			continue
		}
		require.NoFileExists(t, path)
		require.FileExists(t, path+".stale-by-vhdfs")
		require.Contains(t, log, path+" does not know of it, and is "+path+".stale-by-vhdfs now")
	}
}
