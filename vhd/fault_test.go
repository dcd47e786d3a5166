package vhd

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// F02, F03: a growth that fails leaves the file as it was, footer and length,
// and the same write succeeds when there is room.
func TestFailedGrowthIsUndone(t *testing.T) {
	for name, v := range map[string]fixture.VHD{"sound": {Size: 8 << 20}, "no tail": {Size: 8 << 20, NoTail: true}} {
		for _, op := range []sim.Op{sim.OpTruncate, sim.OpWrite} {
			t.Run(fmt.Sprintf("%s %s", name, op), func(t *testing.T) {
				h := disk(v.Bytes())
				before := image(t, h)
				w := openWriter(t, h)
				failed := false
				h.SetFault(func(c sim.Call) error {
					if c.Op == op && !failed {
						failed = true
						return syscall.ENOSPC
					}
					return nil
				})
				_, err := w.WriteAt(make([]byte, 512), 0)
				require.ErrorIs(t, err, syscall.ENOSPC)
				require.True(t, bytes.Equal(before, image(t, h)))
				write(t, w, 0, 1, 1)
				require.NoError(t, w.Close())
				require.Empty(t, mustOpen(t, image(t, h)).Info().Anomalies)
			})
		}
	}
}
