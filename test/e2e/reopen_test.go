package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/fixture"
)

// Another program writes the file of an image, without asking for its lock, while a
// reader has raw open. Who opens raw when the reader has gone reads what is there, not
// what the kernel kept of it.
func TestReopenReadsWhatWasWrittenBelow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "d.vhd")
	require.NoError(t, fixture.VHD{Size: 8 * mib, Type: 2}.WriteFile(image))
	m := Start(t, dir)
	below, err := os.OpenFile(image, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer below.Close()
	const late = 100 * time.Millisecond // by when times of files tell changes apart
	for i := range byte(4) {
		time.Sleep(late)
		before, after := make([]byte, 1), make([]byte, 1)
		raw, err := os.Open(m.Path("d.vhd", "raw"))
		require.NoError(t, err)
		_, err = raw.ReadAt(before, 64<<10)
		require.NoError(t, err)
		require.Equal(t, i, before[0])
		_, err = below.WriteAt([]byte{i + 1}, 64<<10)
		require.NoError(t, err)
		time.Sleep(late)
		require.NoError(t, raw.Close())
		time.Sleep(late) // until the daemon has closed it
		raw, err = os.Open(m.Path("d.vhd", "raw"))
		require.NoError(t, err)
		_, err = raw.ReadAt(after, 64<<10)
		require.NoError(t, err)
		require.NoError(t, raw.Close())
		require.Equal(t, i+1, after[0])
	}
}

// A look-up of raw sees the image's own file. That a parent was written while nobody had
// raw open shows when it is opened.
func TestReopenReadsWhatWasWrittenInAParent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base := filepath.Join(dir, "base.vhd")
	require.NoError(t, fixture.VHD{Size: 8 * mib, Type: 2}.WriteFile(base))
	m := Start(t, dir)
	m.Shell(t, `echo path=child.vhd parent=base.vhd > .vhdfs/create`)
	below, err := os.OpenFile(base, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer below.Close()
	const late = 100 * time.Millisecond // by when times of files tell changes apart
	for i := range byte(4) {
		time.Sleep(late)
		b := make([]byte, 1)
		raw, err := os.Open(m.Path("child.vhd", "raw"))
		require.NoError(t, err)
		_, err = raw.ReadAt(b, 64<<10)
		require.NoError(t, err)
		require.NoError(t, raw.Close())
		require.Equal(t, i, b[0])
		time.Sleep(late) // until the daemon has closed it
		_, err = below.WriteAt([]byte{i + 1}, 64<<10)
		require.NoError(t, err)
	}
}
