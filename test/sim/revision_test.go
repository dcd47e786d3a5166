package sim

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// A file has another revision after each change of its bytes, and a clone the same
// one until either changes.
func TestRevisions(t *testing.T) {
	h := New()
	h.Put("/d/a", []byte("abc"))
	of := func(h *Host) uint64 {
		r, err := h.Revision("/d/a")
		require.NoError(t, err)
		return r
	}
	seen := map[uint64]bool{of(h): true}
	f, err := h.Dir("/d").Open("a", ops.Write)
	require.NoError(t, err)
	for name, change := range map[string]func() error{
		"write":    func() error { _, err := f.WriteAt([]byte("x"), 1); return err },
		"truncate": func() error { return f.Truncate(2, "cut") },
		"punch":    func() error { return f.Punch(0, 1) },
		"allocate": func() error { return f.Allocate(0, 8192) },
	} {
		c := h.Clone()
		require.Equal(t, of(h), of(c), name)
		require.NoError(t, change())
		require.True(t, seen[of(c)], name)
		require.False(t, seen[of(h)], name)
		seen[of(h)] = true
		c.Bytes("/d/a").Write(0, []byte("y"))
		require.False(t, seen[of(c)], name)
	}
	require.NoError(t, f.Sync("sync"))
	require.True(t, seen[of(h)], "a sync changes nothing")
	_, err = h.Revision("/d/b")
	require.Error(t, err)
}
