package need

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every packed image unpacks to the file that the manifest describes.
func TestCorpusUnpacksWhatTheManifestSays(t *testing.T) {
	rows := CorpusRows(t)
	require.GreaterOrEqual(t, len(rows), 40)
	seen := map[string]bool{}
	for _, r := range rows {
		folder := filepath.Dir(r.File)
		if seen[folder] {
			continue // one of each folder is enough
		}
		seen[folder] = true
		f, err := os.Open(Corpus(t, r.File))
		require.NoError(t, err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.Equal(t, r.ImageSHA256, hex.EncodeToString(h.Sum(nil)), r.File)
	}
}

func TestCorpusKeepsChildrenBesideTheirParents(t *testing.T) {
	child := Corpus(t, "log2timeline_dfvfs/ntfs-differential.vhd")
	require.FileExists(t, filepath.Join(filepath.Dir(child), "ntfs-parent.vhd"))
}

func TestCorpusIsRemovedAfterTheLastTest(t *testing.T) {
	var path string
	t.Run("user", func(t *testing.T) { path = Corpus(t, "rubiojr_go-vhd/qemu.vhd") })
	require.NoFileExists(t, path)
}

// A tool that is missing fails in CI and skips at a desk.
func TestMissingFailsInCI(t *testing.T) {
	for _, tt := range []struct{ ci, want string }{{"1", "failed"}, {"", "skipped"}} {
		t.Run("CI="+tt.ci, func(t *testing.T) {
			t.Setenv("CI", tt.ci)
			r := &recorder{TB: t}
			require.PanicsWithValue(t, tt.want, func() { Tool(r, "no-such-program-here") })
		})
	}
}

// recorder turns the two ways to end a test into panics that a test can see.
type recorder struct{ testing.TB }

func (*recorder) Helper()               {}
func (*recorder) Fatalf(string, ...any) { panic("failed") }
func (*recorder) Skipf(string, ...any)  { panic("skipped") }
