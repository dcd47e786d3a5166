package e2e

import (
	"encoding/json"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/ops/track"
	"vhdfs/test/need"
	"vhdfs/vhdx"
)

// marker marks granules in place of a guest that writes them.
type marker struct {
	track.Files
	ops.Tracker
}

func (m *marker) Open(r ops.Ref, d ops.TrackedDisk, write bool) (t ops.Tracker, err error) {
	t, err = m.Files.Open(r, d, write)
	if write && t != nil {
		m.Tracker = t
	}
	return t, err
}

// mark makes every second granule of a disk changed.
func mark(t *testing.T, dir, name string, ranges, granule int64) {
	t.Helper()
	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	m := &marker{}
	lib := ops.NewLibrary(ops.LibraryOptions{Top: d, Formats: []*ops.Format{vhdx.Format}, Tracking: m})
	h, err := lib.Open(lib.Top(name), ops.Write)
	require.NoError(t, err)
	_, err = h.WriteAt([]byte{1}, 0)
	require.NoError(t, err)
	for i := range ranges {
		require.NoError(t, m.Write(2*i*granule, 1))
	}
	require.NoError(t, h.Close())
	require.NoError(t, lib.Close())
	require.NoError(t, d.Close())
}

// However many ranges an answer has, it is whole: through the control file, and by
// the command.
func TestAMillionRanges(t *testing.T) {
	need.Fuse(t)
	const ranges, granule = 1_000_000, 64 << 10
	dir := t.TempDir()
	var out string
	for _, args := range [][]string{{"create", "d.vhdx", "size=128G"}, {"tracking", "d.vhdx", "on"}, {"tracking", "d.vhdx", "new", "--json"}} {
		var err error
		out, err = Command(t, dir, args...)
		require.NoError(t, err, out)
	}
	var given struct{ ResilientChangeTrackingID string }
	require.NoError(t, json.Unmarshal([]byte(out), &given))
	mark(t, dir, "d.vhdx", ranges, granule)
	m := Start(t, dir)
	f, err := os.OpenFile(m.Path("d.vhdx", "changes"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteString("since=" + given.ResilientChangeTrackingID)
	require.NoError(t, err)
	answer, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	out, err = Command(t, dir, "changes", "d.vhdx", "since="+given.ResilientChangeTrackingID, "--json")
	require.NoError(t, err)
	for _, text := range [][]byte{answer, []byte(out)} {
		var a struct {
			Ranges, ProcessedByteLength, ChangedBytes int64
			More                                      bool
			ChangedByteOffsets, ChangedByteLengths    []int64
		}
		require.NoError(t, json.Unmarshal(text, &a))
		require.Equal(t, int64(ranges), a.Ranges)
		require.Equal(t, int64(128<<30), a.ProcessedByteLength)
		require.Equal(t, int64(ranges*granule), a.ChangedBytes)
		require.False(t, a.More)
		require.Len(t, a.ChangedByteOffsets, ranges)
		require.Len(t, a.ChangedByteLengths, ranges)
		for i, off := range a.ChangedByteOffsets {
			if off != int64(2*i*granule) || a.ChangedByteLengths[i] != granule {
				t.Fatalf("range %d: %d bytes at %d", i, a.ChangedByteLengths[i], off)
			}
		}
	}
}
