package ops_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

func TestLook(t *testing.T) {
	t.Run("beside a writer of another program", func(t *testing.T) {
		w := newWorld(t)
		leaf := w.line(3)
		other := w.lockOutside("/vms/"+leaf, true)
		_, err := w.lib.Open(w.lib.Top(leaf), ops.Read)
		require.ErrorIs(t, err, ops.ErrBusy)
		h, err := w.lib.Look(w.lib.Top(leaf))
		require.NoError(t, err)
		require.Len(t, h.Layers(), 3)
		require.NoError(t, h.Close())
		require.NoError(t, other.Close())
	})
	t.Run("takes no lock", func(t *testing.T) {
		w := newWorld(t)
		leaf := w.line(2)
		h, err := w.lib.Look(w.lib.Top(leaf))
		require.NoError(t, err)
		for _, path := range []string{"/vms/" + leaf, "/vms/1.vhdx"} {
			require.NoError(t, w.lockOutside(path, true).Close(), path)
		}
		require.NoError(t, h.Close())
	})
	t.Run("sees what a writer here has not flushed", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/p.vhdx", parent)
		own := w.open("p.vhdx", ops.Write)
		want := []byte("not flushed yet")
		_, err := own.WriteAt(want, 700)
		require.NoError(t, err)
		h, err := w.lib.Look(w.lib.Top("p.vhdx"))
		require.NoError(t, err)
		got := make([]byte, len(want))
		_, err = h.ReadAt(got, 700)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, h.Close())
	})
}
