package iso_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/need"
	"vhdfs/test/sim"
)

// sample opens an image through the host in memory.
func sample(t *testing.T, b []byte) ops.Layer {
	t.Helper()
	h := sim.New()
	h.Put("/d/f.iso", b)
	f, err := h.Dir("/d").Open("f.iso", ops.Read)
	require.NoError(t, err)
	l, err := iso.Format.Open(f, ops.OpenOptions{Ext: ".iso"})
	require.NoError(t, err)
	return l
}

func creators(t *testing.T) map[string]string {
	m := map[string]string{}
	for _, r := range need.CorpusRows(t) {
		m[r.File] = r.Creator
	}
	return m
}

// The labels are those of blkid; only the sample that is cut has an anomaly.
func TestSamples(t *testing.T) {
	for _, tt := range []struct {
		name, label, anomaly string
	}{
		{"libcdio/copying.iso", "CDROM", ""},
		{"libcdio/copying-rr.iso", "Rock Ridge Copy test", ""},
		{"libcdio/joliet.iso", "K3b data project", ""},
		{"libcdio/udf102.iso", "F\u00e9\u0436\u0398vrier", ""},
		{"libcdio/multi_extent_8k.iso", "ISOIMAGE", ""},
		{"KBNLresearch_isolyzer/iso9660.iso", "ISO9660 only", ""},
		{"KBNLresearch_isolyzer/iso9660_udf.iso", "UDF Bridge", ""},
		{"KBNLresearch_isolyzer/udf.iso", "LinuxUDF", ""},
		{"KBNLresearch_isolyzer/iso9660_trunc.iso", "ISO9660 only", "iso.truncated"},
		{"libarchive/test_read_format_iso_zisofs.iso", "CDROM", ""},
		{"libarchive/test_read_format_iso_joliet_rockridge.iso", "CDROM", ""},
		{"util-linux_util-linux/udf-hdd-win7.img", "My volume label", ""},
		{"target_strelka/test.iso", "NEW_VOLUME", ""},
		{"onekey-sec_unblob/fruits.iso", "CDROM", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			creators := creators(t)
			b, err := os.ReadFile(need.Corpus(t, tt.name))
			require.NoError(t, err)
			l := sample(t, b)
			info := l.Info()
			require.Equal(t, tt.label, info.Label)
			if c := creators[tt.name]; c != "-" {
				require.True(t, strings.HasPrefix(info.Creator, c), "%q, want %q", info.Creator, c)
			}
			first := ""
			if len(info.Anomalies) > 0 {
				first = info.Anomalies[0].Name
			}
			require.Equal(t, tt.anomaly, first, "%v", info.Anomalies)
			require.NoError(t, l.Close())
			if len(b)%512 == 0 {
				conformance.Layer(t, func(t *testing.T) ops.Layer { return sample(t, b) }, model(b))
			}
		})
	}
}

func TestXorriso(t *testing.T) {
	tool := need.Tool(t, "xorriso")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	require.NoError(t, os.Mkdir(tree, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "file"), []byte("content"), 0o600))
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"iso9660", []string{"-V", "PLAIN"}, "PLAIN"},
		{"joliet", []string{"-J", "-joliet-long", "-V", "Gr\u00fc\u00dfe"}, "Gr\u00fc\u00dfe"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.name+".iso")
			out, err := exec.Command(tool, append(append([]string{"-as", "mkisofs", "-o", path}, tt.args...), tree)...).CombinedOutput()
			require.NoError(t, err, "%s", out)
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			info := sample(t, b).Info()
			require.Equal(t, tt.want, info.Label)
			require.True(t, strings.HasPrefix(info.Creator, "XORRISO"), "%q", info.Creator)
			require.Empty(t, info.Anomalies)
		})
	}
}
