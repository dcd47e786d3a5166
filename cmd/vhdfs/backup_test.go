package main

import (
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"

	"vhdfs/ops"
	"vhdfs/ops/backup"
)

// trackedDisk is a new disk with change tracking, and a function that writes to it.
func trackedDisk(t *testing.T, name string) (string, func(off int64, text string)) {
	t.Helper()
	image := filepath.Join(t.TempDir(), name)
	for _, args := range [][]string{{"create", image, "size=64M"}, {"tracking", image, "on"}} {
		exit, _, stderr := command(t, args...)
		require.Zero(t, exit, stderr)
	}
	return image, func(off int64, text string) {
		t.Helper()
		f, err := openFolders(cli.NewContext(newApp(io.Discard, io.Discard), flag.NewFlagSet("", flag.ContinueOnError), nil), filepath.Dir(image), 0, nil)
		require.NoError(t, err)
		h, err := f.lib.Open(f.lib.Top(name), ops.Write)
		require.NoError(t, err)
		_, err = h.WriteAt([]byte(text), off)
		require.NoError(t, err)
		require.NoError(t, h.Close())
		require.NoError(t, f.Close())
	}
}

// makeBackup runs a backup that has to succeed, and gives its answer.
func makeBackup(t *testing.T, args ...string) backupAnswer {
	t.Helper()
	exit, out, stderr := command(t, append([]string{"backup", "--json"}, args...)...)
	require.Zero(t, exit, stderr)
	var a backupAnswer
	require.NoError(t, json.Unmarshal([]byte(out), &a))
	return a
}

func TestBackupAndRestore(t *testing.T) {
	image, write := trackedDisk(t, "d.vhdx")
	to := func(name string) string { return filepath.Join(filepath.Dir(image), name) }
	write(5<<20, "monday")
	full := makeBackup(t, image, "to="+to("full"))
	require.Equal(t, int64(64<<20), full.Size)
	write(9<<20, "tuesday")
	inc := makeBackup(t, image, "since="+full.ID, "to="+to("inc"))
	require.Equal(t, full.ID, inc.Since)
	require.Equal(t, []int64{1, 64 << 10}, []int64{inc.Ranges, inc.Bytes})
	exit, out, stderr := command(t, "restore", "to="+to("r"), to("full"), to("inc"))
	require.Zero(t, exit, stderr)
	require.Contains(t, out, inc.ID)
	raw, err := os.ReadFile(to("r"))
	require.NoError(t, err)
	require.Len(t, raw, 64<<20)
	require.Equal(t, "monday", string(raw[5<<20:5<<20+6]))
	require.Equal(t, "tuesday", string(raw[9<<20:9<<20+7]))
}

// Snapshots of a set, by label: each is what it was, while the disk goes on.
func TestBackupOfSnapshots(t *testing.T) {
	image, write := trackedDisk(t, "d.vhds")
	to := func(name string) string { return filepath.Join(filepath.Dir(image), name) }
	write(5<<20, "monday")
	exit, _, stderr := command(t, "snapshot", image, "mon")
	require.Zero(t, exit, stderr)
	write(9<<20, "tuesday")
	exit, _, stderr = command(t, "snapshot", image, "tue")
	require.Zero(t, exit, stderr)
	write(13<<20, "wednesday")
	full := makeBackup(t, image, "snapshot=mon", "to="+to("full"))
	inc := makeBackup(t, image, "snapshot=tue", "since=mon", "to="+to("inc"))
	require.Equal(t, full.ID, inc.Since)
	exit, _, stderr = command(t, "restore", "to="+to("r"), to("full"), to("inc"))
	require.Zero(t, exit, stderr)
	raw, err := os.ReadFile(to("r"))
	require.NoError(t, err)
	require.Equal(t, "monday", string(raw[5<<20:5<<20+6]))
	require.Equal(t, "tuesday", string(raw[9<<20:9<<20+7]))
	require.Zero(t, raw[13<<20])
	exit, _, stderr = command(t, "backup", image, "snapshot=sun", "to="+to("x"))
	require.Equal(t, 8, exit, stderr)
}

// The copy of a disk that is written ends at the next time it asks, at what was copied.
func TestBackupOfABusyDiskEndsSoon(t *testing.T) {
	image, write := trackedDisk(t, "d.vhdx")
	write(5<<20, "monday")
	c := cli.NewContext(newApp(io.Discard, io.Discard), flag.NewFlagSet("", flag.ContinueOnError), nil)
	b := &backupRun{ctx: t.Context(), c: c, image: image}
	id, err := b.id()
	require.NoError(t, err)
	d, err := b.openContent()
	require.NoError(t, err)
	require.NoError(t, d.Close()) // another program writes
	h := backup.Head{ID: id, Size: d.Size()}
	w := &watched{content: zeroContent{d}, every: 2 << 20, still: func(off, n int64) error { return b.still(zeroContent{d}, h, ops.Range{Off: off, Len: n}) }}
	p := make([]byte, 1<<20)
	for off := int64(4 << 20); off < 9<<20; off += 1 << 20 {
		_, err := w.ReadAt(p, off)
		require.NoError(t, err)
	}
	write(5<<20, "was asked about")
	write(20<<20, "will be")
	_, err = w.ReadAt(p, 9<<20)
	require.NoError(t, err)
	write(9<<20, "tuesday")
	_, err = w.ReadAt(p, 20<<20)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.ErrorContains(t, err, "was written while it was copied, in 1 places")
}

// zeroContent reads as zeros.
type zeroContent struct{ content }

func (zeroContent) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (zeroContent) Settle() error                         { return nil }

func TestBackupsThatCannotBe(t *testing.T) {
	image, _ := trackedDisk(t, "d.vhdx")
	dir := filepath.Dir(image)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "taken"), nil, 0o600))
	gone := "rctX:5bfde23b:ce75:4303:b54f:6c18394f105c:00000001"
	for _, tt := range []struct {
		args   string
		exit   int
		stderr string
	}{
		{"backup IMAGE", 2, "want vhdfs backup IMAGE to=FILE"},
		{"backup to=DIR/x", 2, "want vhdfs backup IMAGE to=FILE"},
		{"backup IMAGE to=DIR/x other=1", 2, "want vhdfs backup IMAGE to=FILE"},
		{"backup IMAGE to=DIR/x to=DIR/y", 2, "to: want one value"},
		{"backup IMAGE to=DIR", 2, "is a folder"},
		{"backup IMAGE to=DIR/taken", 2, "nothing is ever overwritten"},
		{"backup IMAGE to=DIR/x since=" + gone, 8, "Make a full backup"},
		{"backup IMAGE to=DIR/x since=nonsense", 2, "want rctX:GUID:NUMBER"},
		{"backup IMAGE to=DIR/x snapshot=a", 2, "is not a set"},
		{"backup DIR/none to=DIR/x", 3, "no such file"},
		{"restore DIR/taken", 2, "want vhdfs restore to=FILE"},
		{"restore to=DIR/x", 2, "want vhdfs restore to=FILE"},
		{"restore to=DIR/x DIR", 2, "is a folder"},
		{"restore to=DIR/x DIR/taken", 3, "map of backup"},
		{"restore to=DIR/x DIR/none", 3, "no such file"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			args := strings.Fields(strings.NewReplacer("IMAGE", image, "DIR", dir).Replace(tt.args))
			exit, _, stderr := command(t, args...)
			require.Equal(t, tt.exit, exit, stderr)
			require.Contains(t, stderr, tt.stderr)
			require.NoFileExists(t, filepath.Join(dir, "x"))
			require.NoFileExists(t, filepath.Join(dir, "x.map"))
		})
	}
	exit, _, stderr := command(t, "tracking", image, "off")
	require.Zero(t, exit, stderr)
	exit, _, stderr = command(t, "backup", image, "to="+filepath.Join(dir, "x"))
	require.Equal(t, 8, exit)
	require.Contains(t, stderr, "tracking on begins it")
}

// A snapshot whose file is another's now is not asked for changes, and not copied.
func TestNoBackupOfAnotherFile(t *testing.T) {
	image, write := trackedDisk(t, "d.vhds")
	for _, label := range []string{"mon", "tue"} {
		write(5<<20, label)
		exit, _, stderr := command(t, "snapshot", image, label)
		require.Zero(t, exit, stderr)
	}
	exit, _, stderr := command(t, "apply", image, "mon") // tue is aside now
	require.Zero(t, exit, stderr)
	f, err := openFolders(cli.NewContext(newApp(io.Discard, io.Discard), flag.NewFlagSet("", flag.ContinueOnError), nil), filepath.Dir(image), 0, nil)
	require.NoError(t, err)
	found, err := f.lib.Inspect(f.lib.Top("d.vhds"))
	require.NoError(t, err)
	_, err = openHandle(f.lib, f.lib.Top("d.vhds"), "sun")
	require.ErrorIs(t, err, os.ErrNotExist)
	h, err := openHandle(f.lib, f.lib.Top("d.vhds"), "tue")
	require.NoError(t, err)
	require.NoError(t, h.Close())
	path := func(label string) string { return filepath.Join(filepath.Dir(image), found.Set.Snapshot(label).Path) }
	other, err := os.ReadFile(path("mon"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path("tue"), other, 0o600))
	_, err = openHandle(f.lib, f.lib.Top("d.vhds"), "tue")
	require.ErrorIs(t, err, ops.ErrChanged)
	require.NoError(t, f.Close())
	for _, args := range [][]string{
		{"changes", image, "since=mon", "target=tue"},
		{"backup", image, "snapshot=tue", "to=" + filepath.Join(filepath.Dir(image), "x")},
	} {
		exit, _, stderr := command(t, args...)
		require.NotZero(t, exit)
		require.Contains(t, stderr, "is not the file that its set had there")
	}
}
