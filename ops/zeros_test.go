package ops

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestZerosBeginAtAPage(t *testing.T) {
	z := Zeros(ZerosMax)
	require.Len(t, z, ZerosMax)
	require.Zero(t, uintptr(unsafe.Pointer(unsafe.SliceData(z)))%4096)
	require.Equal(t, 512, cap(Zeros(512)), "an append must not reach the others")
}
