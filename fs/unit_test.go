package fs

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

func TestPendingSignals(t *testing.T) {
	for _, tt := range []struct {
		name, status string
		fatal        bool
	}{
		{"nothing", "Name:\tsh\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n", false},
		{"window size", "SigPnd:\t0000000000000000\nShdPnd:\t0000000008000000\n", false},
		{"preemption of a Go program", "SigPnd:\t0000000000400000\nShdPnd:\t0000000000000000\n", false},
		{"terminate", "SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\n", true},
		{"kill of the thread", "SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true},
		{"interrupt", "ShdPnd:\t0000000000000002\n", true},
		{"hang up", "ShdPnd:\t0000000000000001\n", true},
		{"quit", "ShdPnd:\t0000000000000004\n", true},
		{"blocked or ignored only", "SigBlk:\t0000000000004000\nSigIgn:\t0000000000004000\n", false},
		{"not a number", "SigPnd:\tx\n", false},
		{"empty", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.fatal, pending(tt.status)&fatal != 0) })
	}
	require.False(t, dying(uint32(os.Getpid())))
	require.False(t, dying(0), "a writer in another PID namespace")
	require.True(t, dying(1<<22+1), "a writer that is gone")
}

func TestSpool(t *testing.T) {
	for _, size := range []int{0, 1, spoolMemory, spoolMemory + 1, 3 * spoolMemory} {
		want := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		var s spool
		for b := want; len(b) > 0; {
			n := min(len(b), 300_001)
			got, err := s.Write(b[:n])
			require.NoError(t, err)
			require.Equal(t, n, got)
			b = b[n:]
		}
		require.Equal(t, int64(size), s.size)
		require.Equal(t, size > spoolMemory, s.file != nil)
		got, err := io.ReadAll(io.NewSectionReader(&s, 0, int64(size)+10))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		_, err = s.ReadAt(make([]byte, 1), int64(size)+5)
		require.Equal(t, io.EOF, err)
		require.NoError(t, s.Close())
	}
}

func TestBaseName(t *testing.T) {
	for _, tt := range []struct{ stored, want string }{
		{`C:\vms\base.vhdx`, "base.vhdx"},
		{`..\x\base.vhdx`, "base.vhdx"},
		{"../../etc/passwd", "passwd"},
		{"base.vhdx", "base.vhdx"},
		{`\\server\share\`, "missing"},
		{"..", "missing"},
		{`a\..`, "missing"},
		{"a\x00b", "missing"},
		{"", "missing"},
	} {
		t.Run(tt.stored, func(t *testing.T) {
			require.Equal(t, tt.want, baseName([]ops.ParentPath{{Path: tt.stored}}))
		})
	}
}

func TestNodeIdentity(t *testing.T) {
	require.Equal(t, uint64(8<<20|1)<<32|7, nodeGen(unix.Mkdev(8, 1), 7))
	require.NotEqual(t, nodeGen(unix.Mkdev(0, 300), 1), nodeGen(unix.Mkdev(1, 44), 1), "minor numbers have 20 bits")
	require.Equal(t, uint64(5), nodeIno(5))
	require.NotZero(t, nodeIno(0))
	require.NotEqual(t, ^uint64(0), nodeIno(^uint64(0)))
}

func TestSearchable(t *testing.T) {
	for _, tt := range []struct{ image, dir uint32 }{
		{0o600, 0o700}, {0o644, 0o755}, {0o640, 0o750}, {0o400, 0o500}, {0o777, 0o755}, {0, 0},
	} {
		require.Equal(t, tt.dir, searchable(tt.image), "%o", tt.image)
	}
}

// Pages are kept only while every change would show in the times of the files.
func TestStampProves(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	at := func(ago time.Duration) ops.FileStat {
		return ops.FileStat{ID: ops.FileID{Dev: 1, Ino: 2}, Size: 3, Mtime: now.Add(-ago), Ctime: now.Add(-ago)}
	}
	require.True(t, stamp{at(time.Hour), at(settled)}.proves(now))
	require.False(t, stamp{at(time.Hour), at(settled - 1)}.proves(now), "a parent changed just now")
	require.False(t, stamp{at(-time.Hour)}.proves(now), "a clock that went back")
	require.False(t, stamp(nil).proves(now))

	for name, change := range map[string]func(*ops.FileStat){
		"inode": func(s *ops.FileStat) { s.ID.Ino++ },
		"size":  func(s *ops.FileStat) { s.Size++ },
		"mtime": func(s *ops.FileStat) { s.Mtime = s.Mtime.Add(1) },
		"ctime": func(s *ops.FileStat) { s.Ctime = s.Ctime.Add(1) },
	} {
		a, b := stamp{at(1), at(2)}, stamp{at(1), at(2)}
		require.True(t, a.same(b))
		change(&b[1])
		require.False(t, a.same(b), name)
	}
	require.False(t, stamp{at(1)}.same(stamp{at(1), at(2)}), "a parent more")
}

// A look-up answered while the kernel drops a node of the same generation leads to a
// view that is there; views that nobody looks up again go.
func TestForgottenViewsStayForAWhile(t *testing.T) {
	m := &mount{}
	m.mu.disks = map[ops.FileID]*disk{}
	st := ops.FileStat{ID: ops.FileID{Dev: 1, Ino: 2}}
	now := time.Unix(1_000_000, 0)
	c := &content{m: m, file: st.ID}
	look := func() { c.gen = m.look(st.ID, &st, c.window, names{}) }
	look()
	gen := c.gen
	m.forget(c, now)
	v, err := m.admit(c, false)
	require.NoError(t, err)

	m.forget(&content{m: m}, now.Add(2*remembered)) // of another file
	require.Contains(t, m.mu.disks, st.ID, "it is open")
	m.dismiss(v, false)

	m.forget(c, now)
	look()
	require.Equal(t, gen, c.gen)
	m.forget(&content{m: m}, now.Add(2*remembered))
	require.Contains(t, m.mu.disks, st.ID, "looked up since")

	m.forget(c, now)
	look()
	m.forget(c, now.Add(remembered))
	m.forget(&content{m: m}, now.Add(remembered+1))
	require.Contains(t, m.mu.disks, st.ID, "a minute from the last time on")
	m.forget(&content{m: m}, now.Add(2*remembered+1))
	require.Empty(t, m.mu.disks)
	require.Empty(t, m.mu.forgotten)
}

func TestParseCacheMode(t *testing.T) {
	for s, want := range map[string]CacheMode{"writeback": Writeback, "writethrough": Writethrough, "none": CacheNone} {
		got, err := ParseCacheMode(s)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := ParseCacheMode("unsafe")
	require.ErrorIs(t, err, ops.ErrUsage)
	require.ErrorContains(t, err, `cache="unsafe"`)
}
