package fs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/need"
)

// mountLine is the mount's line in /proc/self/mountinfo.
func mountLine(t *testing.T, mnt string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " "+mnt+" ") {
			return line
		}
	}
	return ""
}

func TestMountOptions(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	line := mountLine(t, m.mnt)
	for _, want := range []string{"nosuid", "nodev", "default_permissions", "max_read=1048576", " fuse.vhdfs vhdfs "} {
		require.Contains(t, line, want)
	}
	require.NotContains(t, line, "allow_other")
	m.end(t)
	require.Empty(t, mountLine(t, m.mnt))

	m = serveFlat(t, terms{AllowOther: true}, "a", mib)
	require.Contains(t, mountLine(t, m.mnt), "allow_other")
	require.Contains(t, mountLine(t, m.mnt), "default_permissions")
}

func TestMountTunesWriteBackAsRoot(t *testing.T) {
	need.Root(t)
	m := serveFlat(t, terms{}, "a", mib)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(m.mnt, &st))
	bdi := "/sys/class/bdi/0:" + itoa(unix.Minor(st.Dev)) + "/"
	for name, want := range map[string]string{"read_ahead_kb": "4096\n", "strict_limit": "0\n"} {
		b, err := os.ReadFile(bdi + name)
		if err != nil {
			t.Skip("needs: write-back parameters in sysfs")
		}
		require.Equal(t, want, string(b), name)
	}
}

func itoa(n uint32) string {
	s := ""
	for ; n > 0 || s == ""; n /= 10 {
		s = string(rune('0'+n%10)) + s
	}
	return s
}

func TestMountFails(t *testing.T) {
	need.Fuse(t)
	dir, err := host.OpenDir(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	_, err = Mount(context.Background(), Options{
		Library:    ops.NewLibrary(ops.LibraryOptions{Top: dir}),
		MountPoint: filepath.Join(t.TempDir(), "nothing"),
		Log:        logrus.New(),
	})
	require.ErrorContains(t, err, "nothing")
}

// An unmount from outside ends the service, with every image closed.
func TestUnmountFromOutside(t *testing.T) {
	need.Root(t)
	m := serveFlat(t, terms{}, "a", mib)
	f, err := os.Open(m.path("a.flat", "raw"))
	require.NoError(t, err)
	require.ErrorIs(t, unix.Unmount(m.mnt, 0), syscall.EBUSY)
	require.NoError(t, f.Close())
	require.Eventually(t, func() bool { return unix.Unmount(m.mnt, 0) == nil }, 5*time.Second, 10*time.Millisecond)
	select {
	case err := <-m.exited:
		require.NoError(t, err)
		m.exited <- nil
	case <-time.After(10 * time.Second):
		t.Fatal("the child goes on")
	}
}

// A shutdown does not wait for those who have files open.
func TestShutdownWhileInUse(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	f, err := os.Open(m.path("a.flat", "raw"))
	require.NoError(t, err)
	defer f.Close()
	m.end(t)
	_, err = f.ReadAt(make([]byte, 512), 512<<10)
	require.Error(t, err)
}

// The mount point may lie in the image folder: nothing in there is an image, and
// nobody waits for himself.
func TestMountPointInsideTheFolder(t *testing.T) {
	m := serve(t, terms{MountPoint: "mnt"}, func(dir string) { flatFile(t, filepath.Join(dir, "a.flat"), "a", mib) })
	done := make(chan []string, 1)
	go func() {
		var seen []string
		_ = filepath.WalkDir(m.mnt, func(p string, _ os.DirEntry, _ error) error {
			seen = append(seen, strings.TrimPrefix(p, m.mnt))
			return nil
		})
		done <- seen
	}()
	select {
	case seen := <-done:
		require.Contains(t, seen, "/a.flat/raw")
		require.NotContains(t, seen, "/mnt/a.flat")
	case <-time.After(10 * time.Second):
		t.Fatal("waits for itself")
	}
}
