package set_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// TestSnapshotsWhileWritten takes, deletes and optimizes while a guest writes. The
// guest stores a number at two ends of the disk and flushes, one number after the
// other: a snapshot has the same number at both ends or, cut between the writes, the
// next at the first, and never less than was flushed when it was asked for.
func TestSnapshotsWhileWritten(t *testing.T) {
	s, err := newScene()
	require.NoError(t, err)
	require.NoError(t, s.open())
	var flushed atomic.Uint64
	stop := make(chan struct{})
	var guests sync.WaitGroup
	guestErr := make(chan error, 2)
	var longest atomic.Int64
	guests.Go(func() {
		for n := uint64(1); ; n++ {
			select {
			case <-stop:
				guestErr <- nil
				return
			default:
			}
			b := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, n), 512)
			began := time.Now()
			_, err := s.disk.WriteAt(b, 0)
			if err == nil {
				_, err = s.disk.WriteAt(b, diskSize-4096)
			}
			longest.Store(max(longest.Load(), int64(time.Since(began))))
			if err == nil {
				err = s.disk.Flush()
			}
			if err != nil {
				guestErr <- err
				return
			}
			flushed.Store(n)
		}
	})
	for i := range 25 {
		least := flushed.Load()
		label := fmt.Sprintf("s%d", i)
		require.NoError(t, s.ask("snapshot", setName, label))
		require.NoError(t, numbered(s, label, least))
		if i > 2 {
			require.NoError(t, s.ask("delete", setName, fmt.Sprintf("s%d", i-3)))
		}
		if i%4 == 3 {
			require.NoError(t, s.ask("optimize", setName, ""))
		}
		require.NoError(t, numbered(s, label, least))
	}
	close(stop)
	require.NoError(t, <-guestErr)
	guests.Wait()
	last := flushed.Load()
	b := make([]byte, 8)
	for _, off := range []int64{0, diskSize - 4096} {
		_, err := s.disk.ReadAt(b, off)
		require.NoError(t, err)
		require.Equal(t, last, binary.LittleEndian.Uint64(b))
	}
	require.NoError(t, s.close())
	require.NoError(t, s.lib.Close())
	t.Logf("%d rounds, longest pair of writes %v", last, time.Duration(longest.Load()))
}

// numbered reads the numbers of a snapshot.
func numbered(s *scene, label string, least uint64) error {
	found, err := s.lib.Inspect(s.lib.Top(setName))
	if err != nil {
		return err
	}
	h, err := s.lib.Open(found.Beside(found.Set.Snapshot(label).Path), ops.Read)
	if err != nil {
		return err
	}
	b, err := all(h)
	if err != nil {
		return err
	}
	if err := h.Close(); err != nil {
		return err
	}
	first, last := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[diskSize-4096:])
	for i := 0; i < 4096; i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != first || binary.LittleEndian.Uint64(b[diskSize-4096+i:]) != last {
			return fmt.Errorf("%s: a torn number", label)
		}
	}
	if last < least || first != last && first != last+1 {
		return fmt.Errorf("%s: %d and %d, flushed was %d", label, first, last, least)
	}
	return nil
}
