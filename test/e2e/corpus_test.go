package e2e

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops/view"
	"vhdfs/test/need"
)

// wholeReads is the size up to which a disk is read to its last zero.
const wholeReads = 512 << 20

// Every image that another system wrote reads as that system meant it, and
// stays as it was to the last byte and time stamp.
func TestImagesOfOtherSystems(t *testing.T) {
	rows := need.CorpusRows(t)
	require.NotEmpty(t, rows)
	var root string
	for _, r := range rows {
		root = filepath.Dir(filepath.Dir(need.Corpus(t, r.File)))
	}
	foreign := renamed(t, root, rows)
	before := map[string]fileState{}
	for _, r := range rows {
		before[r.File] = stateOf(t, filepath.Join(root, r.File))
	}
	disks, others := Start(t, root), Start(t, foreign)
	for _, r := range rows {
		t.Run(r.File, func(t *testing.T) {
			m, dir := disks, r.File
			if filepath.Ext(r.File) == ".img" {
				m, dir = others, otherName(r)
			}
			switch {
			case r.Format == "vhds":
				setWithoutItsLeaf(t, m.Path(dir))
			default:
				readsAs(t, m.Path(dir), r)
			}
		})
	}
	disks.Stop(t)
	for _, r := range rows {
		require.Equal(t, before[r.File], stateOf(t, filepath.Join(root, r.File)), r.File)
		require.Equal(t, r.ImageSHA256, SHA256(t, filepath.Join(root, r.File)), r.File)
	}
}

// fileState is what reading must not change.
type fileState struct {
	size, blocks        int64
	atime, mtime, ctime unix.Timespec
}

func stateOf(t *testing.T, path string) fileState {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return fileState{st.Size, st.Blocks, st.Atim, st.Mtim, st.Ctim}
}

// otherName is the name that a CD or floppy image needs to be looked at.
func otherName(r need.Row) string {
	ext := ".iso"
	if r.Format == "vfd" {
		ext = ".vfd"
	}
	return strings.ReplaceAll(r.File, "/", "_") + ext
}

// renamed is a folder with those images that have another extension.
func renamed(t *testing.T, root string, rows []need.Row) string {
	dir := t.TempDir()
	for _, r := range rows {
		if filepath.Ext(r.File) != ".img" {
			continue
		}
		in, err := os.Open(filepath.Join(root, r.File))
		require.NoError(t, err)
		out, err := os.Create(filepath.Join(dir, otherName(r)))
		require.NoError(t, err)
		_, err = io.Copy(out, in)
		require.NoError(t, err)
		require.NoError(t, in.Close())
		require.NoError(t, out.Close())
	}
	return dir
}

func readsAs(t *testing.T, dir string, r need.Row) {
	raw := filepath.Join(dir, "raw")
	var settings view.SettingData
	decode(t, filepath.Join(dir, "settings.json"), &settings)
	st, err := os.Stat(raw)
	require.NoError(t, err)
	require.Equal(t, r.VirtualSize, st.Size())
	require.Equal(t, r.VirtualSize, settings.MaxInternalSize)
	require.Equal(t, map[string]uint16{"vhd": 2, "vhdx": 3, "iso": 1, "vfd": 0}[r.Format], settings.Format)
	require.Equal(t, map[string]uint16{"fixed": 2, "dynamic": 3, "differencing": 4}[r.Type], settings.Type)
	if r.VirtualSize <= wholeReads {
		require.Equal(t, r.RawSHA256, SHA256(t, raw))
	}
	if r.SparseDigest != "" && r.SparseDigest != "-" {
		require.Equal(t, r.SparseDigest, SparseDigest(t, raw))
	}
	var chain view.Chain
	decode(t, filepath.Join(dir, "chain.json"), &chain)
	require.True(t, chain.Whole, chain.Error)
	require.Len(t, chain.Images, map[bool]int{true: 2, false: 1}[r.Type == "differencing"])
}

// The one set of the corpus came without the disk that it names.
func setWithoutItsLeaf(t *testing.T, dir string) {
	var state view.State
	decode(t, filepath.Join(dir, "state.json"), &state)
	require.Equal(t, "ENOLINK", state.Errno)
	require.Contains(t, state.Error, "rsvd_9ac15b72-2a6d-44b2")
	_, err := os.ReadFile(filepath.Join(dir, "raw"))
	require.ErrorIs(t, err, unix.ENOLINK)
}

func decode(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, v), "%s: %s", path, b)
}
