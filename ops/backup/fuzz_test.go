package backup_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// A map that is anything is restored from or refused; nothing is left of what was
// refused.
func FuzzMap(f *testing.F) {
	h := sim.New()
	h.Dir(folder)
	is := make([]byte, 3*4096)
	is[5000] = 1
	_, err := day{"", "a", is, []ops.Range{{Off: 0, Len: 512}, {Off: 4096, Len: 4096}}}.make(h, "a")
	require.NoError(f, err)
	text, err := h.ReadFile(folder + "/a.map")
	require.NoError(f, err)
	f.Add(text)
	f.Add(text[:len(text)-1])
	f.Fuzz(func(t *testing.T, text []byte) {
		c := h.Clone()
		c.Put(folder+"/a.map", text)
		got, err := restore(c, "r", "a")
		if err == nil {
			require.Len(t, got, len(is))
			return
		}
		if !errors.Is(err, ops.ErrBackup) && !errors.Is(err, ops.ErrUsage) {
			t.Fatalf("%v", err)
		}
		_, err = c.ReadFile(folder + "/r")
		require.Error(t, err)
	})
}
