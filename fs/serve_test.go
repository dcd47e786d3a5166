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
		readers string
		want    int
	}{
		{"iiii", 0},
		{"mmmm", 0},
		{"bmmm", 1},
		{"ssss", 4},
		{"ssssmmmm", 0},
		{"ssbbmm", 2},
		{"lliiii", 0},
		{"lliii", 1},
		{"", 4},
		{many(maxBulk, bulk), 4},
		{many(maxBulk+3, bulk), 1},
		{many(maxBulk+4, bulk), 0},
		{many(maxBulk+40, bulk), 0},
		{many(maxBulk+4, bulk) + "s", 0},
		{many(1000, small), 4},
	} {
		t.Run(tt.readers, func(t *testing.T) {
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
			require.Equal(t, tt.want, missing(readers))
			for r, before := range readers {
				require.Equal(t, r.serving.Load(), before)
			}
		})
	}
}

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
