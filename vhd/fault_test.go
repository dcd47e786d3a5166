package vhd

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
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

// What could not be undone at once is undone by the close, durably, or the close
// fails.
func TestFailedGrowthEndsWithTheSession(t *testing.T) {
	h := disk(fixture.VHD{Size: 8 << 20}.Bytes())
	before := image(t, h)
	w := openWriter(t, h)
	h.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpWrite || c.Label == "vhd.undo" {
			return syscall.EIO
		}
		return nil
	})
	_, err := w.WriteAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, syscall.EIO)
	require.Greater(t, len(image(t, h)), len(before))
	require.ErrorIs(t, w.Flush(), syscall.EIO)
	h.SetFault(nil)
	synced := 0
	h.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpSync {
			require.Equal(t, before, image(t, h), "the sync comes after the cut")
			synced++
		}
		return nil
	})
	require.NoError(t, w.Close())
	require.Equal(t, 1, synced)
	require.Equal(t, before, image(t, h))
}

// A host that takes the new footer but not the zeros over the old one: the footer
// stays where it is now.
func TestGrowthThatCannotWipeTheOldFooter(t *testing.T) {
	h := disk(fixture.VHD{Size: 64 << 20}.Bytes())
	w := openWriter(t, h)
	write(t, w, 0, 1, 1) // the next growth is for more than one block
	require.NoError(t, w.Flush())
	synced := false
	h.SetFault(func(c sim.Call) error {
		synced = synced || c.Op == sim.OpSync && c.Label == "vhd.footer"
		if synced && c.Op == sim.OpWrite {
			return syscall.EFBIG
		}
		return nil
	})
	_, err := w.WriteAt(bytes.Repeat([]byte{2}, 512), 8<<20)
	require.ErrorIs(t, err, syscall.EFBIG)
	h.SetFault(nil)
	b := image(t, h)
	require.Equal(t, "conectix", string(b[len(b)-512:][:8]))
	require.NoError(t, w.Close())
	require.Empty(t, mustOpen(t, image(t, h)).Info().Anomalies)
}

// What a failed sync left of a resize is seen by who opens the image next. Until then
// no size is the disk's, not the one that it seems to have either.
func TestResizeAfterAFailedOne(t *testing.T) {
	for name, v := range map[string]fixture.VHD{"dynamic": {Size: 8 << 20}, "fixed": {Size: 8 << 20, Type: 2}} {
		t.Run(name, func(t *testing.T) {
			h := disk(v.Bytes())
			w := openWriter(t, h).(ops.Resizer)
			h.SetFault(func(c sim.Call) error {
				if c.Label == "vhd.switch.end" || c.Label == "vhd.fixed.size" {
					return syscall.EIO
				}
				return nil
			})
			require.ErrorIs(t, w.Resize(t.Context(), 16<<20, 0), syscall.EIO)
			h.SetFault(nil)
			for _, size := range []int64{8 << 20, 16 << 20} {
				require.ErrorIs(t, w.Resize(t.Context(), size, 0), ops.ErrPoisoned, size)
			}
		})
	}
}
