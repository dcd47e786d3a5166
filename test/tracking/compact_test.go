package tracking_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// What a compaction may drop because no partition has it counts as changed, whether
// it dropped it or not; nothing else does.
func TestSpaceThatMayBeGivenUpChanges(t *testing.T) {
	w, _, _ := tracked(t, small)
	require.NoError(t, w.write(200, 9))
	id, was, err := w.seal()
	require.NoError(t, err)
	require.NoError(t, w.stop())
	w.free = free{ops.Range{Off: 12 << 20, Len: 8 << 20}}
	w.start()
	_, err = w.do("compact", w.name, "mode=full")
	require.NoError(t, err)
	require.NoError(t, w.covers(w.name, id, was))
	told, err := w.changes(w.name, "since="+id)
	require.NoError(t, err)
	require.Contains(t, slices.Collect(maps.Keys(told)), int64(200))
	require.NotContains(t, told, int64(7))
	require.NoError(t, w.stop())
}
