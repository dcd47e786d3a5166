package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// Requests that wait, for a job or for a host, keep nobody else from being
// served, however many there are; and all of them end.
func TestRequestsThatWaitAreOutOfTheWay(t *testing.T) {
	const waiting = 5 * steadyReaders
	m := serve(t, terms{}, func(dir string) {
		for i := range waiting {
			flatFile(t, filepath.Join(dir, fmt.Sprintf("a%d.flat", i)), "a", mib)
			flatFile(t, filepath.Join(dir, fmt.Sprintf("b%d.flat", i)), "b", mib)
		}
		flatFile(t, filepath.Join(dir, "a.flat"), "a", mib)
	})
	var writers []*writer
	for i := range waiting {
		writers = append(writers, m.startWriter(t, m.path(fmt.Sprintf("a%d.flat", i), "slow"), "1"))
	}
	m.do(t, "a.flat", "hold", "1")
	var held sync.WaitGroup
	errs := make([]error, waiting)
	for i := range waiting {
		f := m.open(t, fmt.Sprintf("b%d.flat/raw", i), os.O_RDWR|unix.O_DIRECT)
		held.Go(func() {
			b := aligned(4096)
			copy(b, pattern(4096, 3))
			_, err := f.WriteAt(b, 4096)
			errs[i] = errors.Join(err, f.Close())
		})
	}
	b, err := os.ReadFile(m.path("a0.flat", "raw"))
	require.NoError(t, err)
	require.True(t, len(b) == mib && b[0] == 'a')
	require.Eventually(t, func() bool { return m.metric(t, "vhdfs_raw_writes_total") == waiting }, 10*time.Second, time.Millisecond)
	m.do(t, "a.flat", "hold", "1")
	held.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	for _, w := range writers {
		require.NoError(t, w.cmd.Process.Signal(unix.SIGTERM))
		require.Error(t, <-w.exited)
	}
	for i := range waiting {
		require.Equal(t, pattern(4096, 3), m.hostBytesOf(t, fmt.Sprintf("b%d.flat", i), 4096, 4096))
	}
}

// A connection that was cut off ends what its requests began, and the service.
func TestAbortEndsTheService(t *testing.T) {
	need.Root(t)
	m := serveFlat(t, terms{}, "a", mib)
	w := m.startWriter(t, m.path("a.flat", "slow"), "1")
	_ = unix.Unmount(m.mnt, unix.MNT_FORCE) // in use; but nobody is answered any more
	require.Error(t, <-w.exited)
	out, _ := io.ReadAll(w.out)
	require.Contains(t, string(out), "connection abort")
	require.NoError(t, unix.Unmount(m.mnt, 0))
	select {
	case err := <-m.exited:
		require.NoError(t, err)
		m.exited <- nil
	case <-time.After(10 * time.Second):
		t.Fatal("the child goes on")
	}
}

func TestMissingReaders(t *testing.T) {
	const idle, moving, bulk, small, left = 'i', 'm', 'b', 's', 'l'
	many := func(n int, kind rune) string { return string(bytes.Repeat([]byte{byte(kind)}, n)) }
	for _, tt := range []struct {
		steady  int
		readers string
		want    int
	}{
		{calmReaders, "i", 0},
		{calmReaders, "m", 0},
		{calmReaders, "s", 1},
		{calmReaders, "b", 1},
		{calmReaders, "l", 1},
		{calmReaders, "ssi", 0},
		{steadyReaders, "iiii", 0},
		{steadyReaders, "mmmm", 0},
		{steadyReaders, "bmmm", 1},
		{steadyReaders, "ssss", 4},
		{steadyReaders, "ssssmmmm", 0},
		{steadyReaders, "ssbbmm", 2},
		{steadyReaders, "lliiii", 0},
		{steadyReaders, "lliii", 1},
		{steadyReaders, "", 4},
		{steadyReaders, many(maxBulk, bulk), 4},
		{steadyReaders, many(maxBulk+3, bulk), 1},
		{steadyReaders, many(maxBulk+4, bulk), 0},
		{steadyReaders, many(maxBulk+40, bulk), 0},
		{steadyReaders, many(maxBulk+4, bulk) + "s", 0},
		{steadyReaders, many(1000, small), 4},
	} {
		t.Run(fmt.Sprint(tt.steady, tt.readers), func(t *testing.T) {
			readers := map[*devReader]uint64{}
			for i, kind := range tt.readers {
				r, before := &devReader{}, uint64(i+1)
				r.left.Store(kind == left)
				r.bulk.Store(kind == bulk)
				if kind != idle {
					r.serving.Store(uint64(i + 1))
				}
				if kind == moving {
					before = 0
				}
				readers[r] = before
			}
			require.Equal(t, tt.want, missing(readers, tt.steady))
			for r, before := range readers {
				require.Equal(t, r.serving.Load(), before)
			}
		})
	}
}

// Requests that overlap, and one that waits while nobody is idle, make readers; when
// they come one at a time, or not at all, a single one is left, and nobody looks.
func TestReadersFollowTheRequests(t *testing.T) {
	for _, tt := range []struct {
		name     string
		steady   int32
		do       func(*testLoop)
		want     int32 // that are to wait
		readers  int
		overlaps bool
	}{
		{"nothing", calmReaders, func(*testLoop) {}, calmReaders, 1, false},
		{"one at a time", calmReaders, func(l *testLoop) { l.one(); l.one() }, calmReaders, 1, false},
		{"one at a time, among many", steadyReaders, func(l *testLoop) { l.one(); l.one() }, steadyReaders, 4, false},
		{"two at a time, among many", steadyReaders, func(l *testLoop) { l.enter(l.all[0], 7, false); l.one() }, steadyReaders, 4, true},
		{"the only reader moves", calmReaders, func(l *testLoop) { l.enter(l.all[0], 7, false) }, calmReaders, 1, false},
		{"and a request waits", calmReaders, func(l *testLoop) { l.enter(l.all[0], 7, false); l.wait() }, steadyReaders, 4, true},
		{"a request waits for one that comes", calmReaders, func(l *testLoop) { l.wait() }, calmReaders, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newTestLoop(t, tt.steady)
			tt.do(l)
			came := l.came.Load()
			require.Equal(t, came, len(l.wake) == 1)
			p := pace{quiet: 5, calm: 5}
			l.look(&p, l.readers, l.start)
			require.Equal(t, tt.want, l.steady.Load())
			require.Len(t, l.readers, tt.readers)
			require.Equal(t, tt.overlaps, p.calm == 0)
			require.Equal(t, came, p.quiet == 0)
			require.False(t, l.came.Load() || l.crowded.Load() || len(l.wake) > 0)
		})
	}
}

// A reader that makes no headway is replaced; when the others have been calm for
// long enough they are dismissed, down to one.
func TestReadersLeaveWhenAllIsCalm(t *testing.T) {
	l := newTestLoop(t, calmReaders)
	l.enter(l.all[0], 7, false)
	l.wait()
	var p pace
	l.look(&p, l.readers, l.start)
	require.Len(t, l.readers, steadyReaders)
	l.watch(l.readers, l.start)
	require.Len(t, l.readers, steadyReaders)
	require.EqualValues(t, calmReaders, l.steady.Load())
	require.EqualValues(t, steadyReaders-1, l.idle.Load())
	l.leave(l.all[0])
	for range steadyReaders - calmReaders {
		require.True(t, l.dismissed())
	}
	require.False(t, l.dismissed())
}

// A reader that hangs alone is replaced, though nothing else comes.
func TestTheOnlyReaderIsReplaced(t *testing.T) {
	l := newTestLoop(t, calmReaders)
	l.enter(l.all[0], 7, false)
	l.watch(l.readers, l.start)
	require.Len(t, l.readers, 2)
	require.EqualValues(t, calmReaders, l.idle.Load())
}

// testLoop is a loop whose readers do nothing, and whose device is a pipe.
type testLoop struct {
	*loop
	readers map[*devReader]uint64
	all     []*devReader
	kernel  *os.File
}

func newTestLoop(t *testing.T, steady int32) *testLoop {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, errors.Join(r.Close(), w.Close())) })
	conn, err := r.SyscallConn()
	require.NoError(t, err)
	l := &testLoop{loop: newLoop(&device{file: r, conn: conn}, nil, nil), readers: map[*devReader]uint64{}, kernel: w}
	l.steady.Store(steady)
	l.start(int(steady))
	return l
}

func (l *testLoop) start(n int) {
	for range n {
		r := &devReader{}
		l.all, l.readers[r] = append(l.all, r), 0
		l.idle.Add(1)
	}
}

// one is a request that ends.
func (l *testLoop) one() {
	r := l.all[len(l.all)-1]
	l.enter(r, 9, false)
	l.leave(r)
}

// wait is a request that nobody has read.
func (l *testLoop) wait() { _, _ = l.kernel.Write([]byte{0}) }

func TestInPlace(t *testing.T) {
	buf := []byte("abcdef")
	for name, to := range map[string][][]byte{
		"there":         {buf},
		"there, split":  {buf[:2], buf[2:]},
		"elsewhere":     {make([]byte, 6)},
		"in two places": {make([]byte, 2), nil, make([]byte, 4)},
		"more room":     {make([]byte, 6), make([]byte, 3)},
	} {
		n, status := inPlace(buf).Readv(to)
		require.Equal(t, fuse.OK, status, name)
		require.Equal(t, 6, n, name)
		require.Equal(t, "abcdef", string(bytes.Join(to, nil)[:6]), name)
	}
	n, _ := inPlace(nil).Readv(nil)
	require.Zero(t, n)
}
