package part_test

import (
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/ops/part"
	"vhdfs/test/need"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// What other systems wrote into the sample disks, as sfdisk and blkid saw it
// through other readers.
func TestSamples(t *testing.T) {
	disks := 0
	for _, r := range need.CorpusRows(t) {
		if r.Inner == "" || r.Format != "vhd" && r.Format != "vhdx" {
			continue
		}
		disks++
		t.Run(r.File, func(t *testing.T) {
			path := need.Corpus(t, r.File)
			dir, err := host.OpenDir(filepath.Dir(path))
			require.NoError(t, err)
			defer dir.Close()
			lib := ops.NewLibrary(ops.LibraryOptions{Top: dir, Formats: []*ops.Format{vhd.Format, vhdx.Format}})
			defer lib.Close()
			h, err := lib.Open(lib.Top(filepath.Base(path)), ops.Read)
			require.NoError(t, err)
			defer h.Close()
			require.Equal(t, inner(r.Inner), describe(t, h))
		})
	}
	require.Greater(t, disks, 20)
}

// label follows a content's name in the manifest: a colon and escaped text.
var label = regexp.MustCompile(`:(\\.|[^\\ ])*`)

// inner brings a line of the manifest into the words of describe.
func inner(s string) string {
	s = strings.NewReplacer("pt=dos", "mbr", "pt=", "", "=?", "=", " sfdisk: 'partitions'", "").Replace(s)
	if s == "(zeros/none)" {
		return ""
	}
	return label.ReplaceAllString(s, "")
}

// describe is the table of a disk, or what the whole disk holds without one.
func describe(t *testing.T, h *ops.Handle) string {
	tab, err := part.Read(h, h.Size(), 512)
	require.NoError(t, err)
	require.Empty(t, tab.Anomalies)
	if tab.Scheme == part.None {
		c, err := part.Content(h)
		require.NoError(t, err)
		return c
	}
	s := string(tab.Scheme)
	for _, p := range tab.Partitions {
		require.Empty(t, p.NoFile)
		c, err := part.Content(io.NewSectionReader(h, p.Start, p.Length))
		require.NoError(t, err)
		s += fmt.Sprintf(" p%d@%d+%d=%s", p.Index, p.Start/512, p.Length/512, c)
	}
	return s
}
