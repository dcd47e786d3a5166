package tracking_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// What a compaction drops because no partition has it counts as changed; nothing
// else does, neither what it leaves of blocks that are in part outside of all
// partitions, nor what has no data.
func TestSpaceThatIsGivenUpChanges(t *testing.T) {
	w, _, _ := tracked(t, small)
	for _, i := range []int64{7, 190, 191, 200, 201, 320, 325} {
		require.NoError(t, w.write(i, 9))
	}
	require.NoError(t, w.zero(210, 1, false))
	id, was, err := w.seal()
	require.NoError(t, err)
	require.NoError(t, w.stop())
	w.free = free{ops.Range{Off: 11<<20 + 15*granule, Len: 8<<20 + 3*granule}}
	w.start()
	a, err := w.do("compact", w.name, "mode=full")
	require.NoError(t, err)
	require.EqualValues(t, 1, a["BlocksDropped"])
	require.NoError(t, w.covers(w.name, id, was))
	told, err := w.changes(w.name, "since="+id)
	require.NoError(t, err)
	want := make([]int64, 16) // the granules of block 12
	for i := range want {
		want[i] = 12*16 + int64(i)
	}
	require.Equal(t, want, slices.Sorted(maps.Keys(told)))
	require.NoError(t, w.stop())
}
