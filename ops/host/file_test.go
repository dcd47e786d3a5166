package host

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/need"
)

func openTemp(t *testing.T) (*Dir, ops.File) {
	t.Helper()
	d, err := OpenDir(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	f, err := d.Create("a", 0o600)
	require.NoError(t, err)
	return d, f
}

func TestFileReadsWhatWasWritten(t *testing.T) {
	d, f := openTemp(t)
	n, err := f.WriteAt([]byte("hello"), 3)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	b := make([]byte, 10)
	n, err = f.ReadAt(b, 0)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "\x00\x00\x00hello", string(b[:n]))
	require.NoError(t, f.Truncate(100, "test"))
	require.NoError(t, f.Sync("test"))
	st, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(100), st.Size)
	r, err := d.Open("a", ops.Read)
	require.NoError(t, err)
	_, err = r.WriteAt(b, 0)
	require.ErrorIs(t, err, syscall.EBADF)
	require.NoError(t, r.Close())
	require.NoError(t, f.Close())
	for _, err := range []error{f.Sync(""), f.Truncate(0, ""), f.Punch(0, 1), f.Close()} {
		require.ErrorIs(t, err, fs.ErrClosed)
	}
}

func TestHoles(t *testing.T) {
	_, f := openTemp(t)
	defer f.Close()
	const block = 64 << 10
	_, err := f.WriteAt(bytes.Repeat([]byte{1}, 3*block), block)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(8*block, ""))
	require.NoError(t, f.Punch(2*block, block))
	next := func(off int64) []int64 {
		data, hole, err := f.NextData(off)
		require.NoError(t, err)
		return []int64{data, hole}
	}
	require.Equal(t, []int64{block, 2 * block}, next(0))
	require.Equal(t, []int64{3 * block, 4 * block}, next(2*block))
	_, _, err = f.NextData(4 * block)
	require.Equal(t, io.EOF, err)
	before, err := f.Stat()
	require.NoError(t, err)
	require.NoError(t, f.Allocate(6*block, 4*block))
	after, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(10*block), after.Size)
	require.Greater(t, after.Blocks, before.Blocks)
	require.NoError(t, f.Punch(0, 100*block), "past the end")
	after, err = f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(10*block), after.Size)
	require.NoError(t, f.Punch(5, 0))
	require.NoError(t, f.Allocate(5, 0))
}

// Reading an image leaves no trace in its times.
func TestAccessTimeStays(t *testing.T) {
	d, f := openTemp(t)
	_, err := f.WriteAt([]byte("a"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	old := time.Unix(1_000_000_000, 0)
	require.NoError(t, os.Chtimes(d.Path("a"), old, old.Add(time.Hour)))
	for _, a := range []ops.Access{ops.Read, ops.Write} {
		f, err = d.Open("a", a)
		require.NoError(t, err)
		_, err = f.ReadAt(make([]byte, 1), 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	st, err := os.Stat(d.Path("a"))
	require.NoError(t, err)
	require.Equal(t, old.Unix(), st.Sys().(*syscall.Stat_t).Atim.Sec)
}

func TestFullFileSystem(t *testing.T) {
	need.Root(t)
	at := t.TempDir() + "/small"
	tmpfs(t, at, "1m")
	d, err := OpenDir(at)
	require.NoError(t, err)
	defer d.Close()
	f, err := d.Create("a", 0o600)
	require.NoError(t, err)
	defer f.Close()
	n, err := f.WriteAt(make([]byte, 2<<20), 0)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 1<<20, n, "what fitted is stored")
	require.ErrorIs(t, f.Allocate(1<<20, 1<<20), syscall.ENOSPC)
	require.NoError(t, f.Punch(0, 1<<20))
	_, err = f.WriteAt(make([]byte, 4096), 5<<20)
	require.NoError(t, err)
}

func TestFileTooLarge(t *testing.T) {
	_, f := openTemp(t)
	defer f.Close()
	_, err := f.WriteAt([]byte{1}, 1<<62)
	require.True(t, errors.Is(err, syscall.EFBIG), "%v", err)
	require.Error(t, f.Truncate(-1, ""))
	_, err = f.ReadAt(make([]byte, 1), -1)
	require.Error(t, err)
}

// The seam's errors for what a host cannot do are recognised as such.
func TestUnsupportedIsRecognised(t *testing.T) {
	require.ErrorIs(t, &fs.PathError{Err: syscall.EOPNOTSUPP}, errors.ErrUnsupported)
}
