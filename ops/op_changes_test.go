package ops

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// A million ranges are written as they come, all of them.
func TestAMillionRangesAreWhole(t *testing.T) {
	const ranges, granule = 1 << 20, 64 << 10
	c := NewChanged(2*ranges*granule, granule)
	for i := range int64(ranges) {
		c.Add(2*i + 1)
	}
	var b bytes.Buffer
	require.NoError(t, changedList{c, Range{0, c.Size}, func(r Range) int64 { return r.Off }}.WriteJSON(&b))
	var list []int64
	require.NoError(t, json.Unmarshal(b.Bytes(), &list))
	require.Len(t, list, ranges)
	for i, off := range list {
		if want := (2*int64(i) + 1) * granule; off != want {
			t.Fatalf("range %d is at %d, want %d", i, off, want)
		}
	}
	b.Reset()
	require.NoError(t, changedList{c, Range{0, granule}, nil}.WriteJSON(&b))
	require.Equal(t, "[]", b.String())
}
