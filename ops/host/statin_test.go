package host_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
)

// Names of one folder are looked at as each alone would be.
func TestStatIn(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "top", "sub", "folder"), 0o700))
	for name, size := range map[string]int{"top/sub/a": 3, "top/sub/b": 5, "top/up": 7, "outside": 9} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o640))
	}
	for link, to := range map[string]string{"inside": "../up", "out": "../../outside", "nowhere": "none", "absolute": dir + "/top/up"} {
		require.NoError(t, os.Symlink(to, filepath.Join(dir, "top/sub", link)))
	}
	d, err := host.OpenDir(filepath.Join(dir, "top"))
	require.NoError(t, err)
	defer d.Close()
	names := []string{"b", "none", "a", "inside", "out", "nowhere", "absolute", "folder"}
	stats, errs := d.StatIn("sub", names)
	for i, name := range names {
		st, err := d.Stat("sub/" + name)
		require.Equal(t, st, stats[i], name)
		if err == nil {
			require.NoError(t, errs[i], name)
		} else {
			require.EqualError(t, errs[i], err.Error(), name)
		}
	}
	require.EqualValues(t, 5, stats[0].Size)
	require.EqualValues(t, 7, stats[3].Size, "a link that stays beneath")
	require.ErrorIs(t, errs[1], fs.ErrNotExist)
	require.ErrorIs(t, errs[4], ops.ErrForbidden)
	_, errs = d.StatIn("gone", []string{"a", "b"})
	require.ErrorIs(t, errs[0], fs.ErrNotExist)
	require.ErrorIs(t, errs[1], fs.ErrNotExist)

	d.Refuse(stats[0].ID.Dev)
	stats, errs = d.StatIn("sub", []string{"a"})
	require.ErrorIs(t, errs[0], ops.ErrForbidden)
	require.Zero(t, stats[0])
	_, err = d.Stat("sub/a")
	require.ErrorIs(t, err, ops.ErrForbidden)
}
