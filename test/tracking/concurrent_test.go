package tracking_test

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Guests write while ids are given and what is known is written out: what a granule
// got after an id was answered is told.
func TestIdsWhileGuestsWrite(t *testing.T) {
	w, _, _ := tracked(t, small)
	stop := make(chan struct{})
	var guests sync.WaitGroup
	errs := make(chan error, 4)
	for g := range int64(4) {
		w.refs[g*90] = true
		guests.Go(func() {
			for n := uint64(1); ; n++ {
				select {
				case <-stop:
					errs <- nil
					return
				default:
				}
				if _, err := w.disk.WriteAt(binary.LittleEndian.AppendUint64(nil, n), g*90*granule); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	was := map[string][]uint64{}
	for k := range 20 {
		id, is, err := w.seal() // is was read later: no less than what the id stands for
		require.NoError(t, err)
		was[id] = is
		require.NoError(t, w.spy.settle(k%2 == 0))
	}
	close(stop)
	guests.Wait()
	for range 4 {
		require.NoError(t, <-errs)
	}
	for range 2 {
		for id, is := range was {
			require.NoError(t, w.covers(w.name, id, is))
		}
		require.NoError(t, w.stop())
		w.start()
	}
	require.NoError(t, w.stop())
}

// However many ranges there are, they are one answer.
func TestManyRanges(t *testing.T) {
	const ranges = 1 << 16
	w, id, _ := tracked(t, "size=8G type=dynamic block=32M")
	for i := range int64(ranges) {
		require.NoError(t, w.spy.live[len(w.spy.live)-1].Write(2*i*granule, 1))
	}
	require.NoError(t, w.stop())
	w.start()
	a, err := w.do("changes", w.name, "since="+id)
	require.NoError(t, err)
	require.Equal(t, float64(ranges), a["Ranges"])
	require.Equal(t, float64(8<<30), a["ProcessedByteLength"])
	offsets, lengths := a["ChangedByteOffsets"].([]any), a["ChangedByteLengths"].([]any)
	require.Len(t, offsets, ranges)
	require.Len(t, lengths, ranges)
	for i := range offsets {
		if offsets[i] != float64(i)*2*granule || lengths[i] != float64(granule) {
			t.Fatalf("range %d: %v of %v bytes", i, offsets[i], lengths[i])
		}
	}
	require.NoError(t, w.stop())
}
