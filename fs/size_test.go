package fs

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestSetSize(t *testing.T) {
	for _, discard := range []bool{false, true} {
		m := serve(t, terms{Discard: discard}, func(string) {})
		for _, tt := range []struct {
			name, text string
			size       int64
			want       error // without Discard
		}{
			{"equal", "data", mib, nil},
			{"smaller", "data", mib - 1, syscall.EPERM},
			{"one byte", "", 1, syscall.EPERM},
			{"larger", "data", mib + 1, syscall.EOPNOTSUPP},
			{"0 of zeros", "", 0, nil},
			{"0 of data", "data", 0, syscall.EEXIST},
		} {
			for way, set := range waysToSetSize {
				if way == "open" && tt.size != 0 {
					continue
				}
				t.Run(fmt.Sprintf("%s by %s, discard %v", tt.name, way, discard), func(t *testing.T) {
					image := tt.name + way + ".flat"
					flatFile(t, m.image(image), tt.text, mib)
					name := m.path(image, "raw")
					want, left := tt.want, []byte(tt.text + "\x00\x00\x00\x00")[:4]
					if discard && tt.size == 0 {
						want, left = nil, make([]byte, 4)
					}
					if err := set(t, name, tt.size); want == nil {
						require.NoError(t, err)
					} else {
						require.ErrorIs(t, err, want)
					}
					require.Eventually(t, func() bool {
						st, err := os.Stat(name)
						require.NoError(t, err)
						return st.Size() == mib
					}, 5*time.Second, time.Millisecond, "the disk keeps its size")
					b, err := os.ReadFile(name)
					require.NoError(t, err)
					require.Equal(t, left, b[:4])
					require.Equal(t, left, m.hostBytesOf(t, image, 0, 4))
				})
			}
		}
	}
}

var waysToSetSize = map[string]func(t *testing.T, name string, size int64) error{
	"truncate": func(_ *testing.T, name string, size int64) error { return unix.Truncate(name, size) },
	"ftruncate": func(t *testing.T, name string, size int64) error {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		return unix.Ftruncate(int(f.Fd()), size)
	},
	"open": func(_ *testing.T, name string, _ int64) error {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_TRUNC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	},
}

// Who has the disk open while it is discarded sees zeros, whatever the kernel
// had of it.
func TestDiscardDropsPages(t *testing.T) {
	for cache, mode := range cacheModes {
		t.Run(cache, func(t *testing.T) {
			m := serveFlat(t, terms{Discard: true, Cache: mode}, "data", mib)
			f := m.open(t, "a.flat/raw", os.O_RDWR)
			b := make([]byte, 4)
			_, err := f.ReadAt(b, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("dirty"), 4096)
			require.NoError(t, err)
			require.NoError(t, f.Truncate(0))
			require.Eventually(t, func() bool {
				st, err := f.Stat()
				require.NoError(t, err)
				return st.Size() == mib
			}, 5*time.Second, time.Millisecond)
			all := make([]byte, mib)
			_, err = f.ReadAt(all, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(make([]byte, mib), all))
			require.NoError(t, f.Sync())
			require.True(t, bytes.Equal(make([]byte, mib), m.hostBytes(t, 0, mib)))
		})
	}
}

// Another writer's dirty pages cannot be seen from a SETATTR: size 0 is refused
// beside one, though the map says zeros.
func TestSizeZeroBesideAnotherWriter(t *testing.T) {
	m := serveFlat(t, terms{}, "", mib)
	w := m.open(t, "a.flat/raw", os.O_RDWR)
	_, err := w.WriteAt([]byte("dirty"), 0)
	require.NoError(t, err)
	mine := m.open(t, "a.flat/raw", os.O_RDWR)
	require.ErrorIs(t, mine.Truncate(0), syscall.EEXIST)
	require.NoError(t, w.Close())
	require.ErrorIs(t, mine.Truncate(0), syscall.EEXIST, "now the map says data")
	require.NoError(t, unix.Fallocate(int(mine.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, mib))
	require.NoError(t, mine.Truncate(0))
}

func TestZeroRanges(t *testing.T) {
	const size = mib
	punch := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	m := serve(t, terms{}, func(string) {})
	for _, tt := range []struct {
		name   string
		mode   uint32
		off, n int64
		want   error
		zeroed [2]int64
	}{
		{"punch, aligned", punch, 8192, 16384, nil, [2]int64{8192, 24576}},
		{"punch, at any byte", punch, 8191, 8193, nil, [2]int64{8191, 16384}},
		{"punch, below a sector", punch, 700, 3, nil, [2]int64{700, 703}},
		{"punch over the end", punch, size - 100, 4096, nil, [2]int64{size - 100, size}},
		{"punch past the end", punch, size + 100, 4096, nil, [2]int64{0, 0}},
		{"zero range", unix.FALLOC_FL_ZERO_RANGE, 1000, 100_000, nil, [2]int64{1000, 101_000}},
		{"zero range over the end", unix.FALLOC_FL_ZERO_RANGE, size - 100, 101, syscall.ENOSPC, [2]int64{0, 0}},
		{"allocate inside", 0, 0, size, nil, [2]int64{0, 0}},
		{"allocate over the end", 0, 0, size + 1, syscall.ENOSPC, [2]int64{0, 0}},
		{"allocate past the end, keeping the size", unix.FALLOC_FL_KEEP_SIZE, size, 1, syscall.ENOSPC, [2]int64{0, 0}},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, syscall.EOPNOTSUPP, [2]int64{0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			flatFile(t, m.image(tt.name+".flat"), "", size)
			f := m.open(t, tt.name+".flat/raw", os.O_RDWR)
			want := bytes.Repeat([]byte("x"), size)
			_, err := f.WriteAt(want, 0) // dirty in the kernel when the range is zeroed
			require.NoError(t, err)
			err = unix.Fallocate(int(f.Fd()), tt.mode, tt.off, tt.n)
			if tt.want == nil {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, tt.want)
			}
			clear(want[tt.zeroed[0]:tt.zeroed[1]])
			got := make([]byte, size)
			_, err = f.ReadAt(got, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got), "through the mount")
			require.NoError(t, f.Sync())
			require.True(t, bytes.Equal(want, m.hostBytesOf(t, tt.name+".flat", 0, size)), "in the image")
			st, err := f.Stat()
			require.NoError(t, err)
			require.Equal(t, int64(size), st.Size())
		})
	}
}
