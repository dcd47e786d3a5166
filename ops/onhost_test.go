package ops_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/ops/host"
)

// onHost is a library of fake images in a directory of the real host.
func onHost(t *testing.T) (*ops.Library, string) {
	t.Helper()
	path := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(path, "vms"), 0o700))
	dir, err := host.OpenDir(filepath.Join(path, "vms"))
	require.NoError(t, err)
	lib := ops.NewLibrary(ops.LibraryOptions{Top: dir, Formats: []*ops.Format{fakeFormat("fakex", ops.FormatVHDX, ".vhdx", ".avhdx")}})
	t.Cleanup(func() {
		require.NoError(t, lib.Close())
		require.NoError(t, dir.Close())
	})
	return lib, path
}

func store(t *testing.T, path string, im fakeImage) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, im.bytes(), 0o600))
}

// The upgrade in place, its locks and what remains open, on the real host.
func TestWriteOnHost(t *testing.T) {
	lib, path := onHost(t)
	store(t, path+"/vms/base/P.vhdx", parent)
	store(t, path+"/vms/c.avhdx", recorded(`C:\Base\p.vhdx`))
	before := descriptors(t)
	reader, err := lib.Open(lib.Top("c.avhdx"), ops.Read)
	require.NoError(t, err)
	writer, err := lib.Open(lib.Top("c.avhdx"), ops.Write)
	require.NoError(t, err)
	_, err = lib.Open(lib.Top("base/P.vhdx"), ops.Write)
	require.ErrorIs(t, err, ops.ErrReadOnly)

	other, err := host.OpenDir(path + "/vms")
	require.NoError(t, err)
	f, err := other.Open("c.avhdx", ops.Read)
	require.NoError(t, err)
	require.ErrorIs(t, f.Lock(false), ops.ErrBusy)
	_, err = writer.WriteAt([]byte("hello"), 3*512+10)
	require.NoError(t, err)
	require.NoError(t, writer.Flush())
	b := make([]byte, 512)
	_, err = reader.ReadAt(b, 3*512)
	require.NoError(t, err)
	require.Equal(t, "\a\ahello\a", string(b[8:16]))
	require.NoError(t, writer.Close())
	require.NoError(t, reader.Close())
	require.NoError(t, f.Lock(true))
	require.NoError(t, f.Close())
	require.NoError(t, other.Close())
	require.Equal(t, before, descriptors(t))
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

// S04: a name that turns into a symbolic link again and again never leads
// outside, nor through the link to a file inside.
func TestSymlinkRace(t *testing.T) {
	lib, path := onHost(t)
	store(t, path+"/secret/p.vhdx", fakeImage{ID: guid(1), blocks: map[int64]byte{3: 0xCA}})
	store(t, path+"/vms/c.avhdx", recorded("p.vhdx"))
	store(t, path+"/vms/p.vhdx", parent)
	require.NoError(t, os.Symlink("../secret/p.vhdx", path+"/vms/link"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, path+"/vms/p.vhdx", unix.AT_FDCWD, path+"/vms/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	read := 0
	for range 1000 {
		h, err := lib.Open(lib.Top("c.avhdx"), ops.Read)
		if err != nil {
			require.False(t, strings.Contains(err.Error(), "secret"), "%v", err)
			continue
		}
		b := make([]byte, 1)
		_, err = h.ReadAt(b, 3*512)
		require.NoError(t, errors.Join(err, h.Close()))
		require.Equal(t, byte(7), b[0])
		read++
	}
	close(stop)
	wg.Wait()
	require.NotZero(t, read)
}

// Who opens an image while others write and close it opens it: only what somebody else
// changed is a change.
func TestOpensBesideWritersOnHost(t *testing.T) {
	lib, path := onHost(t)
	store(t, path+"/vms/a.vhdx", parent)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 3000 {
				h, err := lib.Open(lib.Top("a.vhdx"), ops.Write)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = h.WriteAt([]byte{byte(i)}, int64(i)*512)
				if err := errors.Join(err, h.Close()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
