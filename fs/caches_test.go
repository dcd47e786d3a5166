package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// serveSized mounts one disk whose size can change.
func serveSized(t *testing.T, o terms, text string, size int64) *mounted {
	return serve(t, o, func(dir string) { flatFile(t, dir+"/a.sized", text, size) })
}

// waysToGrow end with a disk of size bytes; each has told everybody when it
// returns, but for the first, which closes nothing.
var waysToGrow = map[string]func(t *testing.T, m *mounted, size int64){
	"truncate": func(t *testing.T, m *mounted, size int64) {
		require.NoError(t, unix.Truncate(m.path("a.sized/raw"), size))
	},
	"ftruncate": func(t *testing.T, m *mounted, size int64) {
		f, err := os.OpenFile(m.path("a.sized/raw"), os.O_WRONLY, 0)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(size))
		require.NoError(t, f.Close())
	},
	"resize": func(t *testing.T, m *mounted, size int64) { m.do(t, "a.sized", "resize", fmt.Sprint(size)) },
}

// Whoever has raw open sees its new size at once, and what was written before
// and not stored yet is not lost.
func TestGrowingIsSeen(t *testing.T) {
	for cache, mode := range cacheModes {
		for way, grow := range waysToGrow {
			t.Run(cache+" "+way, func(t *testing.T) {
				m := serveSized(t, terms{Cache: mode}, "old", mib)
				w, r := m.open(t, "a.sized/raw", os.O_RDWR), m.open(t, "a.sized/raw", os.O_RDONLY)
				_, err := w.WriteAt([]byte("dirty"), mib-5)
				require.NoError(t, err)
				_, err = r.ReadAt(make([]byte, 1), mib)
				require.Error(t, err, "the end")
				grow(t, m, 3*mib)
				for _, f := range []*os.File{w, r} {
					st, err := f.Stat()
					require.NoError(t, err)
					require.Equal(t, int64(3*mib), st.Size())
				}
				st, err := os.Stat(m.path("a.sized/raw"))
				require.NoError(t, err)
				require.Equal(t, int64(3*mib), st.Size())
				require.Equal(t, int64(3*mib), size(t, m.image("a.sized")))
				b := make([]byte, 10)
				_, err = r.ReadAt(b, mib-5)
				require.NoError(t, err)
				require.Equal(t, "dirty\x00\x00\x00\x00\x00", string(b))
				_, err = w.WriteAt([]byte("new"), 3*mib-3)
				require.NoError(t, err)
				require.NoError(t, w.Sync())
				require.Equal(t, "new", string(m.hostBytesOf(t, "a.sized", 3*mib-3, 3)))
				require.Equal(t, "dirty", string(m.hostBytesOf(t, "a.sized", mib-5, 5)))
				answer, err := os.ReadFile(m.path("a.sized/resize"))
				require.NoError(t, err)
				require.Contains(t, string(answer), `"MaxInternalSize":3145728`)
			})
		}
	}
}

func size(t *testing.T, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	require.NoError(t, err)
	return st.Size()
}

// The kernel takes the size from the answer, also where nobody has raw open.
func TestGrowingWithoutAHandle(t *testing.T) {
	m := serveSized(t, terms{}, "old", mib)
	fd, err := unix.Open(m.path("a.sized/raw"), unix.O_PATH, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Truncate(fmt.Sprintf("/proc/self/fd/%d", fd), 2*mib-100))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.Equal(t, int64(2*mib), st.Size, "whole sectors")
}

// What is cut off is not seen any more, nor when the disk grows again.
func TestShrinkingIsSeen(t *testing.T) {
	for cache, mode := range cacheModes {
		t.Run(cache, func(t *testing.T) {
			m := serveSized(t, terms{Cache: mode}, "old", 2*mib)
			f := m.open(t, "a.sized/raw", os.O_RDWR)
			_, err := f.WriteAt(bytes.Repeat([]byte("x"), 2*mib), 0)
			require.NoError(t, err)
			m.do(t, "a.sized", "resize", "1M unsafe=true")
			st, err := f.Stat()
			require.NoError(t, err)
			require.Equal(t, int64(mib), st.Size())
			n, _ := f.ReadAt(make([]byte, 2*mib), 0)
			require.Equal(t, mib, n)
			require.NoError(t, f.Sync(), "nothing was lost that was not cut off")
			m.do(t, "a.sized", "resize", "2M")
			b := make([]byte, 2*mib)
			_, err = f.ReadAt(b, 0)
			require.NoError(t, err)
			require.Equal(t, byte('x'), b[mib-1])
			require.True(t, bytes.Equal(make([]byte, mib), b[mib:]))
		})
	}
}

// A truncation that is refused says why where the operation's answers are.
func TestGrowingIsRefused(t *testing.T) {
	m := serveSized(t, terms{}, "old", mib)
	require.ErrorIs(t, unix.Truncate(m.path("a.sized/raw"), mib-512), syscall.EPERM)
	_, err := os.ReadFile(m.path("a.sized/resize"))
	require.NoError(t, err)
	m.do(t, "a.sized", "resize", "2M")
	require.NoError(t, unix.Truncate(m.path("a.sized/raw"), 2*mib), "equal: nothing")
	f := m.open(t, "a.sized/raw", os.O_RDONLY)
	require.ErrorIs(t, f.Truncate(3*mib), syscall.EINVAL, "not open for writing")
	ro := serveSized(t, terms{ReadOnly: true}, "old", mib)
	require.ErrorIs(t, unix.Truncate(ro.path("a.sized/raw"), 2*mib), syscall.EROFS)
	require.NoError(t, unix.Truncate(ro.path("a.sized/raw"), mib))
}

// A loop device over raw has its size when the program that changed it is done,
// and shows bytes that an operation changed underneath.
func TestLoopDeviceOverRaw(t *testing.T) {
	need.Loop(t)
	for way, grow := range waysToGrow {
		t.Run(way, func(t *testing.T) {
			m := serveSized(t, terms{}, "old", mib)
			device := loopOver(t, m.path("a.sized/raw"))
			grow(t, m, 3*mib)
			if way == "truncate" { // returns before anybody can be told
				require.Eventually(t, func() bool { return deviceSize(t, device) == 3*mib }, 10*time.Second, time.Millisecond)
			}
			require.Equal(t, int64(3*mib), deviceSize(t, device))
			m.do(t, "a.sized", "resize", "2M unsafe=true")
			require.Equal(t, int64(2*mib), deviceSize(t, device))

			d, err := os.OpenFile(device, os.O_RDWR, 0)
			require.NoError(t, err)
			defer d.Close()
			_, err = d.WriteAt([]byte("dirty"), mib)
			require.NoError(t, err)
			b := make([]byte, 5)
			_, err = d.ReadAt(b, 0)
			require.NoError(t, err)
			require.Equal(t, "old", string(b[:3]))
			m.do(t, "a.sized", "caches", "launder")
			require.Equal(t, "dirty", string(m.hostBytesOf(t, "a.sized", mib, 5)), "written back from the device")
			m.do(t, "a.sized", "caches", "other")
			_, err = d.ReadAt(b, 0)
			require.NoError(t, err)
			require.Equal(t, "other", string(b))
		})
	}
}

func loopOver(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command(need.Tool(t, "losetup"), "--find", "--show", name).Output()
	require.NoError(t, err)
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "-d", device).Run()) })
	return device
}

func deviceSize(t *testing.T, device string) int64 {
	t.Helper()
	f, err := os.Open(device)
	require.NoError(t, err)
	defer f.Close()
	n, err := f.Seek(0, 2)
	require.NoError(t, err)
	return n
}

// What programs wrote reaches the image without their asking, raw and mappings
// alike, and what changes underneath is seen.
func TestLaunderAndReplaced(t *testing.T) {
	for cache, mode := range cacheModes {
		t.Run(cache, func(t *testing.T) {
			m := serveSized(t, terms{Cache: mode}, "old", 4*mib)
			m.do(t, "a.sized", "caches", "launder") // nobody has it open
			f := m.open(t, "a.sized/raw", os.O_RDWR)
			_, err := f.WriteAt(bytes.Repeat([]byte("w"), 2*mib), 5)
			require.NoError(t, err)
			p, err := unix.Mmap(int(f.Fd()), 3*mib, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			require.NoError(t, err)
			copy(p, "mapped")
			m.do(t, "a.sized", "caches", "launder")
			require.True(t, bytes.Equal(bytes.Repeat([]byte("w"), 2*mib), m.hostBytesOf(t, "a.sized", 5, 2*mib)))
			require.Equal(t, "mapped", string(m.hostBytesOf(t, "a.sized", 3*mib, 6)))
			m.do(t, "a.sized", "caches", "other at=3145728")
			require.Equal(t, "otherd", string(p[:6]))
			require.NoError(t, unix.Munmap(p))
			b := make([]byte, 5)
			_, err = f.ReadAt(b, 3*mib)
			require.NoError(t, err)
			require.Equal(t, "other", string(b))
		})
	}
}

// A daemon that is killed while it waits for its own mount is gone at once, and
// so is the hold on its users: what waits there keeps the connection not open.
func TestKilledWhileItWaitsForItself(t *testing.T) {
	for name, wait := range map[string]func(m *mounted) error{
		"writing back": func(m *mounted) error { return os.WriteFile(m.path("a.sized/caches"), []byte("launder"), 0) },
		"telling the size": func(m *mounted) error { // the writer that hangs has the lock of the file
			return os.WriteFile(m.path("a.sized/resize"), []byte("5M"), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			mode := Writeback
			if name == "telling the size" {
				mode = Writethrough
			}
			m := serveSized(t, terms{Cache: mode}, "old", 4*mib)
			f := m.open(t, "a.sized/raw", os.O_RDWR)
			m.do(t, "a.sized", "stall", "1")
			ended := make(chan error, 2)
			go func() {
				_, err := f.WriteAt(bytes.Repeat([]byte("w"), mib), 0)
				if err == nil {
					err = f.Sync()
				}
				ended <- err
			}()
			time.Sleep(100 * time.Millisecond)
			go func() { ended <- wait(m) }()
			time.Sleep(300 * time.Millisecond) // there is nothing to see of a thread that waits
			require.NoError(t, m.cmd.Process.Kill())
			m.stdin = nil
			for range 2 {
				select {
				case err := <-ended:
					require.Error(t, err)
				case <-time.After(20 * time.Second):
					abort(t, m)
					t.Fatal("a user of the mount hangs")
				}
			}
			select {
			case <-m.exited:
			case <-time.After(20 * time.Second):
				abort(t, m)
				t.Fatal("the daemon hangs")
			}
			_ = f.Close() // nobody answers it
			require.NoError(t, unix.Unmount(m.mnt, unix.MNT_DETACH))
		})
	}
}

// abort ends a connection that nobody else ends, so that the test does.
func abort(t *testing.T, m *mounted) {
	require.NoError(t, unix.Unmount(m.mnt, unix.MNT_FORCE|unix.MNT_DETACH))
}

// A truncation by the daemon itself never resizes, whatever it asks for.
func TestOwnTruncationNeverResizes(t *testing.T) {
	c := &content{m: &mount{}, window: window{length: mib}}
	own := fuse.NewContext(context.Background(), &fuse.Caller{Pid: uint32(unix.Gettid())})
	for _, size := range []uint64{mib - 512, mib + 512} {
		_, no := c.truncate(own, nil, size)
		require.Equal(t, syscall.EAGAIN, no)
	}
	_, no := c.truncate(own, nil, mib)
	require.Zero(t, no)
	require.False(t, ownThread(1))
}

// What runs apart has no file of the process, and its thread does not stay.
func TestApart(t *testing.T) {
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer f.Close()
	for range 100 {
		err := apart(func() error {
			if unix.Gettid() == unix.Getpid() {
				return fmt.Errorf("on the first thread")
			}
			for _, fd := range ownFiles() {
				var b [64]byte
				n, err := unix.Readlink(threadFile(fd), b[:])
				if err == nil && !strings.HasPrefix(string(b[:n]), "anon_inode:[event") {
					return fmt.Errorf("%s is open", b[:n])
				}
			}
			return nil
		})
		require.NoError(t, err)
	}
	_, err = f.Stat()
	require.NoError(t, err, "the process has its files")
	require.Equal(t, syscall.EIO, apart(func() error { return syscall.EIO }))
}
