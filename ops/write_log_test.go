package ops

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// What was noted comes back in runs that cover it, each granule once, in pieces
// of any size, and nothing else does.
func TestWriteLog(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		size := rapid.Int64Range(1, 40*writeLogGranule).Draw(r, "size")
		w := newWriteLog(size)
		want := map[int64]bool{}
		for range rapid.IntRange(0, 12).Draw(r, "writes") {
			off := rapid.Int64Range(0, size-1).Draw(r, "off")
			n := rapid.Int64Range(0, size-off).Draw(r, "n")
			w.note(off, n)
			for i := off; i < off+n; i += 512 {
				want[i/writeLogGranule] = true
			}
			if n > 0 {
				want[(off+n-1)/writeLogGranule] = true
			}
		}
		if rapid.Bool().Draw(r, "back") {
			w.back(w.take())
		}
		s := w.take()
		require.EqualValues(r, len(want)*writeLogGranule, w.bytes(s))
		got := map[int64]bool{}
		for s.count > 0 {
			before := s.count
			limit := rapid.Int64Range(1, 5*writeLogGranule).Draw(r, "limit")
			require.NoError(r, w.each(&s, limit, func(off, end int64) error {
				require.Less(r, off, end)
				require.LessOrEqual(r, end, size)
				for i := off / writeLogGranule; i*writeLogGranule < end; i++ {
					require.False(r, got[i])
					got[i] = true
				}
				return nil
			}))
			require.Less(r, s.count, before)
		}
		require.Equal(r, want, got)
		require.Zero(r, w.take().count)
	})
}

func TestWriteLogIsBounded(t *testing.T) {
	w := newWriteLog(64 << 40)
	require.LessOrEqual(t, len(w.take().bits), writeLogBits/64+1)
	w.note(64<<40-1, 1)
	s := w.take()
	require.NoError(t, w.each(&s, 1, func(off, end int64) error {
		require.EqualValues(t, 64<<40, end)
		return nil
	}))
}
