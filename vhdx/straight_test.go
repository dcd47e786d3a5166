package vhdx_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhdx"
)

// Only a fixed disk whose blocks are all stored, in order, stands in its file in
// one piece.
func TestStraight(t *testing.T) {
	fixed := fixture.VHDX{Size: 16 << 20, Fixed: true}
	for _, tt := range []struct {
		name   string
		change func(v *fixture.VHDX)
		err    string // "": in one piece
	}{
		{"in order", func(*fixture.VHDX) {}, ""},
		{"the end is no whole block", func(v *fixture.VHDX) { v.Size = 15 << 20 }, ""},
		{"two blocks swapped", func(v *fixture.VHDX) { v.Order = []int64{0, 1, 3, 2} }, "bat entry 2: state 6"},
		{"a block of zeros", func(v *fixture.VHDX) { v.States = map[int64]uint8{3: 2} }, "bat entry 3: state 2"},
		{"the first block is not there", func(v *fixture.VHDX) { v.States = map[int64]uint8{0: 0} }, "bat entry 0: state 0"},
		{"dynamic", func(v *fixture.VHDX) { v.Fixed = false }, "a dynamic disk"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := fixed
			tt.change(&v)
			h := sim.New()
			h.Put("/d/a.vhdx", v.Bytes())
			h.Freeze()
			f, err := h.Dir("/d").Open("a.vhdx", ops.Read)
			require.NoError(t, err)
			l, err := vhdx.Format.Open(f, ops.OpenOptions{Ext: ".vhdx", Cache: ops.NewCache(1 << 20)})
			require.NoError(t, err)
			defer l.Close()
			off, err := l.(ops.Straight).Straight()
			if tt.err != "" {
				require.ErrorIs(t, err, errors.ErrUnsupported)
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			x, err := l.Extent(0, 1)
			require.NoError(t, err)
			require.Equal(t, x.Pos, off)
		})
	}
}
