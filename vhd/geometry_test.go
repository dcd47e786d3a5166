package vhd

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The vectors of the sheet's section 5.
func TestGeometry(t *testing.T) {
	for _, tt := range []struct {
		sectors int64
		want    geometry
		chs     int64
	}{
		{3 << 11, geometry{90, 4, 17}, 6120},
		{32 << 11, geometry{963, 4, 17}, 65484},
		{34 << 11, geometry{140, 16, 31}, 69440},
		{128 << 11, geometry{963, 16, 17}, 261936},
		{248 << 11, geometry{503, 16, 63}, 507024},
		{504 << 11, geometry{1024, 16, 63}, 1032192},
		{1 << 21, geometry{2080, 16, 63}, 2096640},
		{66059279, geometry{65534, 16, 63}, 66058272},
		{66059280, geometry{16191, 16, 255}, 66059280},
		{40 << 21, geometry{20560, 16, 255}, 83884800},
		{127 << 21, geometry{65278, 16, 255}, 266334240},
		{128 << 21, geometry{65535, 16, 255}, 267382800},
		{2040 << 21, geometry{65535, 16, 255}, 267382800},
	} {
		g := geometryFor(tt.sectors * 512)
		require.Equal(t, tt.want, g, "%d sectors", tt.sectors)
		require.Equal(t, tt.chs*512, g.bytes())
	}
	require.Zero(t, geometry{}.bytes())
}

// T18: seconds since 2000 in UTC, both ways; 0 is no time.
func TestTrapT18Timestamps(t *testing.T) {
	day := time.Date(2011, 10, 15, 12, 30, 5, 0, time.UTC)
	require.EqualValues(t, 371997005, unstamp(day))
	require.Equal(t, day, stamp(371997005))
	require.Zero(t, unstamp(time.Time{}))
	require.Zero(t, unstamp(time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)))
	require.Zero(t, unstamp(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)))
	require.True(t, stamp(0).IsZero())
	require.Equal(t, 2136, stamp(0xffffffff).Year())
}
