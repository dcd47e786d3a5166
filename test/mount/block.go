package mount

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// Loop makes a loop device on a file until the test ends.
func Loop(t testing.TB, file string, flags ...string) string {
	t.Helper()
	need.Loop(t)
	args := append([]string{"--find", "--show"}, append(flags, file)...)
	dev := strings.TrimSpace(Tool(t, "losetup", args...))
	t.Cleanup(func() { Unloop(t, dev) })
	return dev
}

// Unloop takes a loop device away, if it is still there.
func Unloop(t testing.TB, dev string) {
	t.Helper()
	if _, err := os.Stat("/sys/block/" + strings.TrimPrefix(dev, "/dev/") + "/loop"); err == nil {
		require.NoError(t, clearLoop(dev))
	}
}

// FS is a file system of a block device, mounted.
type FS struct {
	Dir  string
	Kind string // as mount -t has it
	opts string
	dev  string
}

// MountFS mounts a file system; the test's end unmounts it.
func MountFS(t testing.TB, dev, dir, kind, opts string) *FS {
	t.Helper()
	f := &FS{Dir: dir, Kind: kind, opts: opts, dev: dev}
	f.Mount(t)
	t.Cleanup(func() {
		if f.mounted() {
			f.Unmount(t)
		}
	})
	return f
}

// Mount mounts it again.
func (f *FS) Mount(t testing.TB) {
	t.Helper()
	require.NoError(t, unix.Mount(f.dev, f.Dir, f.Kind, 0, f.opts), "mount -t %s -o %q", f.Kind, f.opts)
}

// Unmount writes back what it can. A process that has just been killed, or that
// is being started, may hold a file for a moment longer.
func (f *FS) Unmount(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool { return unix.Unmount(f.Dir, 0) == nil }, 20*time.Second, 5*time.Millisecond, "unmount %s", f.Dir)
}

func (f *FS) mounted() bool {
	for _, m := range mountsBelow(os.TempDir()) {
		if m.path == f.Dir {
			return true
		}
	}
	return false
}

// goingDown is the ioctl FS_IOC_SHUTDOWN, _IOR('X', 125, __u32), of ext4 and
// xfs. With noLogFlush nothing more reaches the device, the journal neither.
const (
	goingDown  = 0x8004587d
	noLogFlush = 2
)

// Cut is a power cut: from now on the file system writes nothing.
func (f *FS) Cut(t testing.TB) {
	t.Helper()
	fd, err := unix.Open(f.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	err = unix.IoctlSetPointerInt(fd, goingDown, noLogFlush)
	require.NoError(t, err, "shutdown of %s", f.Kind)
	require.NoError(t, unix.Close(fd))
}

// Tool runs a program that must succeed and gives its output.
func Tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(need.Tool(t, name), args...).CombinedOutput()
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), out)
	return string(out)
}
