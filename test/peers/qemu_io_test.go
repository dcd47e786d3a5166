package peers

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/need"
)

// sameAsQEMU asks qemu-io for sectors at both ends of every run that h has, and
// in and around the places that were written. Each has to be of one byte value:
// qemu-io compares what it reads with a pattern.
func sameAsQEMU(t *testing.T, h *ops.Handle, format, path string, places [][2]int64) {
	t.Helper()
	args := []string{"-r", "-f", format, path}
	sector := make([]byte, 512)
	asked := 0
	ask := func(off int64) {
		if off < 0 || off >= h.Size() {
			return
		}
		_, err := h.ReadAt(sector, off)
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat(sector[:1], 512), sector, "at %#x", off)
		args = append(args, "-c", fmt.Sprintf("read -P %d %d 512", sector[0], off))
		asked++
	}
	for at := int64(0); at < h.Size(); {
		e, err := h.Extent(at, h.Size()-at)
		require.NoError(t, err)
		for _, off := range []int64{0, 512, 1024, 1536, 2048, 2560} {
			ask(at + off)
			ask(at + e.Len - 512 - off)
		}
		at += e.Len
	}
	for _, p := range places {
		for _, off := range []int64{-512, 0, p[1] - 512, p[1]} {
			ask(p[0] + off)
		}
	}
	require.Less(t, asked, 1000)
	out := run(t, need.Tool(t, "qemu-io"), args...)
	require.NotContains(t, string(out), "verification failed")
	require.Equal(t, asked, bytes.Count(out, []byte("read 512/512")))
}
