package fs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/fixture"
)

// pattern is n bytes that tell their place.
func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], seed<<32|uint64(i))
	}
	return b
}

// age sets the times of a file back, so that they prove that it has not changed.
func age(t *testing.T, name string) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(name, old, old))
	time.Sleep(2 * settled) // the change time cannot be set
}

// aligned is a buffer for O_DIRECT.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	return b[4096-int(uintptr(unsafe.Pointer(&b[0]))%4096):][:n]
}

func TestReadRaw(t *testing.T) {
	want := make([]byte, 9*mib)
	writes := []fixture.Write{
		{Off: 0, Data: pattern(4096, 1)},
		{Off: 2*mib - 512, Data: pattern(1024, 2)},
		{Off: 7 * mib, Data: pattern(2*mib, 3)},
	}
	for _, w := range writes {
		copy(want[w.Off:], w.Data)
	}
	m := serve(t, terms{}, func(dir string) {
		require.NoError(t, fixture.VHDX{Size: 9 * mib, Writes: writes}.WriteFile(filepath.Join(dir, "a.vhdx")))
	})
	got, err := os.ReadFile(m.path("a.vhdx", "raw"))
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(want), sha256.Sum256(got))

	f, err := os.OpenFile(m.path("a.vhdx", "raw"), os.O_RDONLY|unix.O_DIRECT, 0)
	require.NoError(t, err)
	defer f.Close()
	b := aligned(2 * mib)
	n, err := f.ReadAt(b, 8*mib)
	require.Equal(t, io.EOF, err)
	require.Equal(t, mib, n, "a reply is never longer than the disk")
	require.Equal(t, want[8*mib:], b[:n])
	n, err = f.ReadAt(b[:4096], 9*mib)
	require.Equal(t, io.EOF, err)
	require.Zero(t, n)
}

func TestStatRaw(t *testing.T) {
	m := serve(t, terms{}, func(dir string) {
		flatFile(t, filepath.Join(dir, "a.flat"), "a", 8*mib)
		require.NoError(t, os.Chmod(filepath.Join(dir, "a.flat"), 0o640))
		require.NoError(t, os.Link(filepath.Join(dir, "a.flat"), filepath.Join(dir, "hard.flat")))
		require.NoError(t, os.Chtimes(filepath.Join(dir, "a.flat"), time.Unix(1, 0), time.Unix(1_000_000, 500)))
	})
	var host, raw unix.Stat_t
	require.NoError(t, unix.Stat(m.image("a.flat"), &host))
	require.NoError(t, unix.Stat(m.path("a.flat", "raw"), &raw))
	require.Equal(t, int64(8*mib), raw.Size)
	require.Equal(t, host.Blocks, raw.Blocks)
	require.Less(t, raw.Blocks, int64(8*mib/512))
	require.Equal(t, host.Mtim, raw.Mtim)
	require.Equal(t, host.Ino, raw.Ino)
	require.Equal(t, uint32(unix.S_IFREG|0o640), raw.Mode)
	require.Equal(t, uint32(os.Getuid()), raw.Uid)
	require.Equal(t, raw.Ino, inode(t, m.path("hard.flat", "raw")), "one file, one node")
	require.NoError(t, unix.Stat(m.path("a.flat"), &raw))
	require.Equal(t, uint32(unix.S_IFDIR|0o750), raw.Mode)
}

func TestSeekDataAndHole(t *testing.T) {
	m := serve(t, terms{}, func(dir string) {
		base := fixture.VHDX{Size: 64 * mib, DataWriteGUID: [16]byte{1, 2, 3}, Writes: []fixture.Write{{Off: 8 * mib, Data: pattern(512, 1)}}}
		require.NoError(t, base.WriteFile(filepath.Join(dir, "base.vhdx")))
		child := fixture.VHDX{Size: 64 * mib, Writes: []fixture.Write{{Off: 32 * mib, Data: pattern(2*mib, 1)}},
			Parent: &fixture.Locator{Entries: [][2]string{
				{"parent_linkage", "{01020300-0000-0000-0000-000000000000}"}, {"relative_path", `.\base.vhdx`}}}}
		require.NoError(t, child.WriteFile(filepath.Join(dir, "child.vhdx")))
	})
	f, err := os.Open(m.path("child.vhdx", "raw"))
	require.NoError(t, err)
	defer f.Close()
	for _, tt := range []struct {
		name   string
		off    int64
		whence int
		want   int64
		errno  error
	}{
		{"data from 0: the parent's block", 0, unix.SEEK_DATA, 8 * mib, nil},
		{"hole from 0", 0, unix.SEEK_HOLE, 0, nil},
		{"hole in the parent's block", 8 * mib, unix.SEEK_HOLE, 10 * mib, nil},
		{"data after it: the child's", 10 * mib, unix.SEEK_DATA, 32 * mib, nil},
		{"within data", 32*mib + 77, unix.SEEK_DATA, 32*mib + 77, nil},
		{"hole after it", 33 * mib, unix.SEEK_HOLE, 34 * mib, nil},
		{"no data any more", 34 * mib, unix.SEEK_DATA, 0, syscall.ENXIO},
		{"at the end", 64 * mib, unix.SEEK_DATA, 0, syscall.ENXIO},
		{"hole at the end", 64 * mib, unix.SEEK_HOLE, 0, syscall.ENXIO},
		{"past the end", 65 * mib, unix.SEEK_HOLE, 0, syscall.ENXIO},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := unix.Seek(int(f.Fd()), tt.off, tt.whence)
			if tt.errno != nil {
				require.ErrorIs(t, err, tt.errno)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// Pages are kept over a close while the file is provably unchanged, and not a
// moment longer: content and size are the new ones after any change.
func TestPagesAreKeptWhileUnchanged(t *testing.T) {
	m := serveFlat(t, terms{}, "first", 4*mib)
	age(t, m.image("a.flat"))
	read := func() []byte {
		b, err := os.ReadFile(m.path("a.flat", "raw"))
		require.NoError(t, err)
		return b
	}
	first := read()
	require.Equal(t, "first", string(first[:5]))
	require.Eventually(t, func() bool { // an open that overtakes the last RELEASE starts without pages
		before := m.metric(t, "vhdfs_raw_reads_total")
		require.True(t, bytes.Equal(first, read()))
		return before == m.metric(t, "vhdfs_raw_reads_total")
	}, 5*time.Second, time.Millisecond, "the second time it is in the cache")

	// The same size, other bytes.
	h, err := os.OpenFile(m.image("a.flat"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = h.WriteAt([]byte("other"), 0)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	require.Equal(t, "other", string(read()[:5]))

	// A new size.
	require.NoError(t, os.Truncate(m.image("a.flat"), 8*mib))
	st, err := os.Stat(m.path("a.flat", "raw"))
	require.NoError(t, err)
	require.Equal(t, int64(8*mib), st.Size())
	require.Len(t, read(), 8*mib)
}

// The content of a child is its parents' too: a parent that changed ends the
// promise of the child's pages, though no stat of the child shows it.
func TestPagesOfAChildFollowItsParent(t *testing.T) {
	link := &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", "{01020300-0000-0000-0000-000000000000}"}, {"relative_path", `.\base.vhdx`}}}
	base := fixture.VHDX{Size: 4 * mib, DataWriteGUID: [16]byte{1, 2, 3}, Writes: []fixture.Write{{Off: 0, Data: []byte("old")}}}
	m := serve(t, terms{}, func(dir string) {
		require.NoError(t, base.WriteFile(filepath.Join(dir, "base.vhdx")))
		require.NoError(t, fixture.VHDX{Size: 4 * mib, Parent: link}.WriteFile(filepath.Join(dir, "child.vhdx")))
	})
	age(t, m.image("base.vhdx"))
	age(t, m.image("child.vhdx"))
	read := func() string {
		b, err := os.ReadFile(m.path("child.vhdx", "raw"))
		require.NoError(t, err)
		return string(b[:3])
	}
	require.Equal(t, "old", read())
	require.Eventually(t, func() bool {
		before := m.metric(t, "vhdfs_raw_reads_total")
		require.Equal(t, "old", read())
		return before == m.metric(t, "vhdfs_raw_reads_total")
	}, 5*time.Second, time.Millisecond)
	base.Writes[0].Data = []byte("new")
	require.NoError(t, base.WriteFile(m.image("base.vhdx")))
	require.Equal(t, "new", read())
}

// mbr is a partition table: start and sectors of each partition.
func mbr(parts ...[2]uint32) []byte {
	b := make([]byte, 512)
	for i, p := range parts {
		e := b[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], p[0])
		binary.LittleEndian.PutUint32(e[12:], p[1])
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

func servePartitions(t *testing.T, o terms) *mounted {
	t.Helper()
	return serve(t, o, func(dir string) {
		disk := make([]byte, 8*mib)
		copy(disk, mbr([2]uint32{2048, 2048}, [2]uint32{8192, 4096}))
		copy(disk[1*mib:], "first partition")
		copy(disk[4*mib:], "second partition")
		copy(disk[2*mib:], "between")
		require.NoError(t, os.WriteFile(filepath.Join(dir, "a.flat"), disk, 0o644))
	})
}

func TestReadPartitions(t *testing.T) {
	m := servePartitions(t, terms{})
	require.Equal(t, []string{"p1", "p2"}, list(t, m.path("a.flat", "partitions")))
	for name, want := range map[string]struct {
		size int
		text string
	}{"p1": {mib, "first partition"}, "p2": {2 * mib, "second partition"}} {
		b, err := os.ReadFile(m.path("a.flat", "partitions", name))
		require.NoError(t, err)
		require.Len(t, b, want.size)
		require.Equal(t, want.text, string(b[:len(want.text)]))
		require.NotContains(t, string(b), "between")
		st, err := os.Stat(m.path("a.flat", "partitions", name))
		require.NoError(t, err)
		require.Equal(t, int64(want.size), st.Size())
	}
	f, err := os.OpenFile(m.path("a.flat", "partitions", "p1"), os.O_RDONLY|unix.O_DIRECT, 0)
	require.NoError(t, err)
	defer f.Close()
	n, err := f.ReadAt(aligned(mib), 512<<10)
	require.Equal(t, io.EOF, err)
	require.Equal(t, 512<<10, n)
	end, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	require.NoError(t, err)
	require.LessOrEqual(t, end, int64(mib))
}

// The kernel is told that there are no extended attributes, or it would ask for
// security.capability before every write.
func TestNoExtendedAttributes(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	_, err := unix.Getxattr(m.path("a.flat", "raw"), "user.x", nil)
	require.ErrorIs(t, err, unix.EOPNOTSUPP)
}

// cache=none keeps no page: each read(2) is a READ.
func TestNoneKeepsNoPages(t *testing.T) {
	m := serveFlat(t, terms{Cache: CacheNone}, "a", mib)
	f := m.open(t, "a.flat/raw", os.O_RDONLY)
	for range 3 {
		before := m.metric(t, "vhdfs_raw_reads_total")
		_, err := f.ReadAt(make([]byte, 4096), 0)
		require.NoError(t, err)
		require.Equal(t, before+1, m.metric(t, "vhdfs_raw_reads_total"))
	}
}

// Small writes are collected by the kernel.
func TestSmallWritesAreCached(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	f := m.open(t, "a.flat/raw", os.O_RDWR)
	_, err := f.ReadAt(make([]byte, 64<<10), 0)
	require.NoError(t, err)
	reads, writes := m.metric(t, "vhdfs_raw_reads_total"), m.metric(t, "vhdfs_raw_writes_total")
	for i := range int64(1000) {
		_, err := f.WriteAt([]byte("x"), i*16)
		require.NoError(t, err)
	}
	require.NoError(t, f.Sync())
	require.Equal(t, reads, m.metric(t, "vhdfs_raw_reads_total"))
	require.LessOrEqual(t, m.metric(t, "vhdfs_raw_writes_total"), writes+16)
}
