package fs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// hostBytes is what the image's own file holds.
func (m *mounted) hostBytes(t *testing.T, off int64, n int) []byte {
	t.Helper()
	return m.hostBytesOf(t, "a.flat", off, n)
}

func (m *mounted) hostBytesOf(t *testing.T, image string, off int64, n int) []byte {
	t.Helper()
	f, err := os.Open(m.image(image))
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, off)
	require.NoError(t, err)
	return b
}

func (m *mounted) open(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(m.path(name), flags, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() }) // closed by the test already, or left open by a failure
	return f
}

func (m *mounted) fault(t *testing.T, e syscall.Errno) {
	t.Helper()
	m.do(t, "a.flat", "fault", fmt.Sprint(int(e)))
}

var cacheModes = map[string]CacheMode{"writeback": Writeback, "writethrough": Writethrough, "none": CacheNone}

func TestWriteInEachCacheMode(t *testing.T) {
	for name, mode := range cacheModes {
		t.Run(name, func(t *testing.T) {
			m := serveFlat(t, terms{Cache: mode}, "old bytes", 4*mib)
			f := m.open(t, "a.flat/raw", os.O_RDWR)
			data := pattern(700_000, 9)
			_, err := f.WriteAt(data, 12345)
			require.NoError(t, err)
			if mode != Writeback {
				require.Equal(t, data, m.hostBytes(t, 12345, len(data)), "write(2) returns when the image has it")
			}
			got := make([]byte, len(data))
			_, err = f.ReadAt(got, 12345)
			require.NoError(t, err)
			require.Equal(t, data, got)
			before := m.count(t, "a.flat", "Flushes")
			require.NoError(t, f.Sync())
			require.Greater(t, m.count(t, "a.flat", "Flushes"), before, "fsync reaches the image")
			require.Equal(t, data, m.hostBytes(t, 12345, len(data)))
			require.Equal(t, "old bytes", string(m.hostBytes(t, 0, 9)))
		})
	}
}

// The kernel reads the rest of a page before it changes it, on the handle that it
// has: one that was opened for writing only.
func TestReadOnAHandleForWritingOnly(t *testing.T) {
	m := serveFlat(t, terms{}, "0123456789", 4*mib)
	f := m.open(t, "a.flat/raw", os.O_WRONLY)
	_, err := f.WriteAt([]byte("xx"), 4)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.Equal(t, "0123xx6789", string(m.hostBytes(t, 0, 10)))
}

// Pages that one process dirtied are written on another's handle, also when that
// one has closed its own, and through mappings.
func TestSharedMapping(t *testing.T) {
	for name, mode := range cacheModes {
		t.Run(name, func(t *testing.T) {
			m := serveFlat(t, terms{Cache: mode}, "old", 4*mib)
			f := m.open(t, "a.flat/raw", os.O_RDWR)
			p, err := unix.Mmap(int(f.Fd()), 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			require.NoError(t, err)
			other := m.open(t, "a.flat/raw", os.O_RDWR)
			require.NoError(t, f.Close())
			copy(p[4096*3:], "mapped")
			require.NoError(t, unix.Msync(p, unix.MS_SYNC))
			require.Equal(t, "mapped", string(m.hostBytes(t, 4096*3, 6)))
			copy(p[4096*5:], "later")
			require.NoError(t, unix.Munmap(p))
			require.NoError(t, other.Sync())
			require.Equal(t, "later", string(m.hostBytes(t, 4096*5, 5)))
		})
	}
}

// fsync is of the file, not of the descriptor.
func TestFsyncOnAHandleForReading(t *testing.T) {
	m := serveFlat(t, terms{}, "", mib)
	w, r := m.open(t, "a.flat/raw", os.O_RDWR), m.open(t, "a.flat/raw", os.O_RDONLY)
	_, err := w.WriteAt([]byte("x"), 9)
	require.NoError(t, err)
	before := m.count(t, "a.flat", "Flushes")
	require.NoError(t, r.Sync())
	require.Greater(t, m.count(t, "a.flat", "Flushes"), before)
	require.Equal(t, "x", string(m.hostBytes(t, 9, 1)))
}

func TestTwoWritersOneCache(t *testing.T) {
	m := serveFlat(t, terms{}, "", 4*mib)
	a, b := m.open(t, "a.flat/raw", os.O_RDWR), m.open(t, "a.flat/raw", os.O_RDWR)
	_, err := a.WriteAt([]byte("a"), 100)
	require.NoError(t, err)
	_, err = b.WriteAt([]byte("b"), 101)
	require.NoError(t, err)
	require.NoError(t, a.Close())
	require.NoError(t, b.Sync())
	require.Equal(t, "ab", string(m.hostBytes(t, 100, 2)))
}

func TestWritePastTheEnd(t *testing.T) {
	const size = mib
	t.Run("at write in writethrough and none", func(t *testing.T) {
		for _, mode := range []CacheMode{Writethrough, CacheNone} {
			m := serveFlat(t, terms{Cache: mode}, "", size)
			f := m.open(t, "a.flat/raw", os.O_RDWR)
			_, err := f.WriteAt([]byte("x"), size)
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.NoError(t, f.Sync())
		}
	})
	t.Run("at write with O_DIRECT", func(t *testing.T) {
		m := serveFlat(t, terms{}, "", size)
		f := m.open(t, "a.flat/raw", os.O_RDWR|unix.O_DIRECT)
		_, err := f.WriteAt(aligned(4096), size)
		require.ErrorIs(t, err, syscall.ENOSPC)
	})
	t.Run("at fsync in writeback, and the size is right again", func(t *testing.T) {
		m := serveFlat(t, terms{}, "", size)
		f := m.open(t, "a.flat/raw", os.O_RDWR)
		_, err := f.WriteAt([]byte("inside"), size-6)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("past"), size)
		require.NoError(t, err, "the kernel takes it first")
		require.ErrorIs(t, f.Sync(), syscall.ENOSPC)
		require.Equal(t, "inside", string(m.hostBytes(t, size-6, 6)), "what lies before the end is stored")
		require.Eventually(t, func() bool {
			st, err := f.Stat()
			require.NoError(t, err)
			return st.Size() == size
		}, 5*time.Second, 5*time.Millisecond)
		st, err := os.Stat(m.image("a.flat"))
		require.NoError(t, err)
		require.Equal(t, int64(size), st.Size())
	})
}

// Bytes that another program has written and the kernel still holds are data.
func TestSeekSeesUnwrittenData(t *testing.T) {
	m := serveFlat(t, terms{}, "", 8*mib)
	w := m.open(t, "a.flat/raw", os.O_RDWR)
	_, err := w.WriteAt(pattern(4096, 1), 4*mib)
	require.NoError(t, err)
	r := m.open(t, "a.flat/raw", os.O_RDONLY)
	got, err := unix.Seek(int(r.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.Equal(t, int64(4*mib), got)
}

// The kernel tells of a lost page once. The image's fsync goes on failing: for
// good after EIO, until it has been told after ENOSPC.
func TestLostWritesAreTold(t *testing.T) {
	lose := func(t *testing.T, e syscall.Errno) (*mounted, *os.File) {
		m := serveFlat(t, terms{}, "", mib)
		f := m.open(t, "a.flat/raw", os.O_RDWR)
		m.fault(t, e)
		_, err := f.WriteAt(pattern(4096, 7), 8192)
		require.NoError(t, err)
		require.ErrorIs(t, f.Sync(), e, "told by the kernel")
		m.fault(t, 0)
		return m, f
	}
	t.Run("EIO", func(t *testing.T) {
		m, f := lose(t, syscall.EIO)
		for range 3 {
			require.ErrorIs(t, f.Sync(), syscall.EIO)
		}
		require.Error(t, f.Close())
		require.Eventually(t, func() bool { return m.metric(t, "vhdfs_open_handles") == 0 }, 5*time.Second, time.Millisecond)
		f = m.open(t, "a.flat/raw", os.O_RDWR)
		require.NoError(t, f.Sync(), "a reopen starts afresh")
		got := make([]byte, 4096)
		_, err := f.ReadAt(got, 8192)
		require.NoError(t, err)
		require.Equal(t, make([]byte, 4096), got, "nothing shows that was not stored")
	})
	t.Run("ENOSPC", func(t *testing.T) {
		m, f := lose(t, syscall.ENOSPC)
		require.Eventually(t, func() bool { return f.Sync() == nil }, time.Second, time.Millisecond)
		require.NoError(t, f.Sync())
		require.Eventually(t, func() bool { // the pages that were lost are dropped beside the request
			got := make([]byte, 4096)
			_, err := f.ReadAt(got, 8192)
			require.NoError(t, err)
			return bytes.Equal(make([]byte, 4096), got)
		}, 5*time.Second, time.Millisecond)
		_, err := f.WriteAt(pattern(4096, 8), 8192)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.Equal(t, pattern(4096, 8), m.hostBytes(t, 8192, 4096))
	})
}

// The second fsync after a loss is the one that the kernel would let succeed.
func TestSecondFsyncAfterALossFailsToo(t *testing.T) {
	m := serveFlat(t, terms{}, "", mib)
	f := m.open(t, "a.flat/raw", os.O_RDWR)
	m.fault(t, syscall.ENOSPC)
	_, err := f.WriteAt(pattern(4096, 7), 8192)
	require.NoError(t, err)
	require.ErrorIs(t, f.Sync(), syscall.ENOSPC, "by the kernel")
	m.fault(t, 0)
	require.ErrorIs(t, f.Sync(), syscall.ENOSPC, "by us")
	require.NoError(t, f.Sync())
}

func TestRawBesideItsPartitions(t *testing.T) {
	m := servePartitions(t, terms{})
	p1, raw := m.path("a.flat", "partitions", "p1"), m.path("a.flat", "raw")
	open := func(name string, flags int) error {
		f, err := os.OpenFile(name, flags, 0)
		if err == nil {
			require.NoError(t, f.Close())
		}
		return err
	}
	w := m.open(t, "a.flat/raw", os.O_RDWR)
	require.ErrorIs(t, open(p1, os.O_RDONLY), syscall.EBUSY)
	time.AfterFunc(100*time.Millisecond, func() { _ = w.Close() })
	require.NoError(t, open(p1, os.O_RDONLY), "a RELEASE that comes late is waited for")

	r := m.open(t, "a.flat/partitions/p1", os.O_RDONLY)
	require.NoError(t, open(raw, os.O_RDONLY), "readers do not mind each other")
	require.ErrorIs(t, open(raw, os.O_RDWR), syscall.EBUSY)
	require.NoError(t, open(m.path("a.flat", "partitions", "p2"), os.O_RDWR), "partitions share nothing")
	require.NoError(t, r.Close())
}

// What was written through one view shows in the other, whatever it had cached.
func TestPartitionsFollowRaw(t *testing.T) {
	m := servePartitions(t, terms{})
	age(t, m.image("a.flat"))
	p1, raw := m.path("a.flat", "partitions", "p1"), m.path("a.flat", "raw")
	read := func(name string, off int64) string {
		f, err := os.Open(name)
		require.NoError(t, err)
		defer f.Close()
		b := make([]byte, 5)
		_, err = f.ReadAt(b, off)
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, "first", read(p1, 0))
	require.Equal(t, "first", read(raw, mib))
	w := m.open(t, "a.flat/raw", os.O_RDWR)
	_, err := w.WriteAt([]byte("RAW  "), mib)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.Equal(t, "RAW  ", read(p1, 0))

	w = m.open(t, "a.flat/partitions/p1", os.O_RDWR)
	_, err = w.WriteAt([]byte("PART "), 0)
	require.NoError(t, err)
	_, err = w.WriteAt([]byte("x"), mib-1)
	require.NoError(t, err)
	require.NoError(t, w.Sync())
	_, err = w.WriteAt([]byte("x"), mib)
	require.NoError(t, err)
	require.ErrorIs(t, w.Sync(), syscall.ENOSPC, "the end of the partition is the end")
	require.Error(t, w.Close())
	require.Equal(t, "PART ", read(raw, mib))
	require.Equal(t, "betwe", read(raw, 2*mib), "what follows the partition is untouched")
	require.Equal(t, "PART ", string(m.hostBytes(t, mib, 5)))
}

func TestReadOnlyMount(t *testing.T) {
	m := serveFlat(t, terms{ReadOnly: true}, "a", mib)
	_, err := os.OpenFile(m.path("a.flat", "raw"), os.O_RDWR, 0)
	require.ErrorIs(t, err, syscall.EROFS)
	require.ErrorIs(t, unix.Truncate(m.path("a.flat", "raw"), 0), syscall.EROFS)
	st, err := os.Stat(m.path("a.flat", "raw"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o444), st.Mode())
	_, err = os.ReadFile(m.path("a.flat", "raw"))
	require.NoError(t, err)
	require.Equal(t, float64(0), m.do(t, "a.flat", "validate", "1")["ReturnValue"])
	for _, request := range []string{
		`echo path=n.vhdx size=1G > "$F/.vhdfs/create"`, `echo path=n.raw > "$F/a.flat/convert"`,
	} {
		out, err := shell(t, "bash", m.mnt, request)
		require.Error(t, err)
		require.Contains(t, out, "Read-only file system", request)
	}
}

// Shutting down fetches what the kernel still holds of written bytes.
func TestShutdownKeepsWhatWasWritten(t *testing.T) {
	m := serveFlat(t, terms{}, "", 4*mib)
	f := m.open(t, "a.flat/raw", os.O_RDWR)
	_, err := f.WriteAt(pattern(mib, 3), mib)
	require.NoError(t, err)
	m.end(t)
	require.Equal(t, pattern(mib, 3), m.hostBytes(t, mib, mib))
}

// Writers, readers, seekers and flushers of one disk do not wait for each other
// for ever, and what each wrote is there.
func TestManyAtOnce(t *testing.T) {
	m := serveFlat(t, terms{}, "", 16*mib)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			f, err := os.OpenFile(m.path("a.flat", "raw"), os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			mine := int64(i) * 2 * mib
			for j := range 8 {
				if _, err := f.WriteAt(pattern(100_000, uint64(100*i+j)), mine+int64(j)*100_001); err != nil {
					t.Error(err)
				}
				if _, err := unix.Seek(int(f.Fd()), mine, unix.SEEK_DATA); err != nil {
					t.Error(err)
				}
				if err := f.Sync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		for j := range 8 {
			require.Equal(t, pattern(100_000, uint64(100*i+j)), m.hostBytes(t, int64(i)*2*mib+int64(j)*100_001, 100_000))
		}
	}
	_, err := io.Copy(io.Discard, m.open(t, "a.flat/raw", os.O_RDONLY))
	require.NoError(t, err)
}
