package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Another file comes in the place of one between the look-up of raw and its open, which
// an O_PATH descriptor holds apart. The open fails; who has raw open reads on.
func TestAnotherFileBetweenLookupAndOpen(t *testing.T) {
	inPlace := func(from, to string) error {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o600)
	}
	for _, tt := range []struct {
		name   string
		image  string // in the mount; of a snapshot its file is exchanged
		opened bool   // by somebody else all the time
		swap   func(from, to string) error
	}{
		{"snapshot, overwritten", "d.vhds/snapshots/a", false, inPlace},
		{"snapshot, renamed over", "d.vhds/snapshots/a", false, os.Rename},
		{"snapshot, renamed over while it is open", "d.vhds/snapshots/a", true, os.Rename},
		{"disk, renamed over while it is open", "p.vhdx", true, os.Rename},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := Start(t, t.TempDir())
			m.Shell(t, `echo path=d.vhds size=32M block=1M > .vhdfs/create
				printf old | dd of=d.vhds/raw conv=notrunc status=none
				mkdir d.vhds/snapshots/a
				echo path=p.vhdx size=32M block=1M source=`+filepath.Join(m.Images, "d.vhds")+` > .vhdfs/create
				echo path=o.vhdx size=32M block=1M > .vhdfs/create`)
			file := filepath.Join(m.Images, tt.image)
			if tt.image != "p.vhdx" {
				file = strings.TrimSpace(m.Shell(t, `jq -r .SnapshotPath d.vhds/snapshots/a/info.json`))
			}
			var other *os.File
			var err error
			if tt.opened {
				other, err = os.Open(m.Path(tt.image, "raw"))
				require.NoError(t, err)
			}
			fd, err := unix.Open(m.Path(tt.image, "raw"), unix.O_PATH, 0)
			require.NoError(t, err)
			require.NoError(t, tt.swap(filepath.Join(m.Images, "o.vhdx"), file))
			_, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
			require.ErrorIs(t, err, unix.ESTALE)
			require.NoError(t, unix.Close(fd))
			if other != nil {
				b := make([]byte, 3)
				_, err := other.ReadAt(b, 0)
				require.NoError(t, err)
				require.Equal(t, "old", string(b))
				require.NoError(t, other.Close())
			}
		})
	}
}
