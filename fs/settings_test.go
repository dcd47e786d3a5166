package fs

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/fixture"
)

// settings is settings.json of an image, and what it says.
func (m *mounted) settings(t *testing.T, image string) (string, map[string]any) {
	t.Helper()
	b, err := os.ReadFile(m.path(image, "settings.json"))
	require.NoError(t, err)
	return string(b), answerOf(t, b)
}

func serveDisks(t *testing.T, o terms) *mounted {
	return serve(t, o, func(dir string) {
		require.NoError(t, fixture.VHDX{Size: 4 * mib}.WriteFile(filepath.Join(dir, "a.vhdx")))
		require.NoError(t, fixture.VHD{Size: 4 * mib, Type: 2}.WriteFile(filepath.Join(dir, "v.vhd")))
	})
}

const newID = "0123ABCD-0000-4000-8000-000000000001"

func TestWriteSettings(t *testing.T) {
	m := serveDisks(t, terms{})
	name := m.path("a.vhdx", "settings.json")
	st, err := os.Stat(name)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), st.Mode())

	out, err := shell(t, "bash", name, `echo '{"VirtualDiskId":"{`+newID+`}"}' > "$F"`)
	require.NoError(t, err, out)
	text, doc := m.settings(t, "a.vhdx")
	require.Equal(t, newID, doc["VirtualDiskId"])

	// The whole document, edited, in one piece and byte by byte.
	edited := strings.Replace(text, `"PhysicalSectorSize": 4096`, `"PhysicalSectorSize": 512`, 1)
	require.NotEqual(t, text, edited)
	file := filepath.Join(t.TempDir(), "edited.json")
	require.NoError(t, os.WriteFile(file, []byte(edited), 0o600))
	out, err = shell(t, "bash", name, `dd if=`+file+` of="$F" bs=1 status=none`)
	require.NoError(t, err, out)
	_, doc = m.settings(t, "a.vhdx")
	require.Equal(t, float64(512), doc["PhysicalSectorSize"])
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	out, err = shell(t, "bash", name, `cat `+file+` > "$F"`)
	require.NoError(t, err, out)
	_, doc = m.settings(t, "a.vhdx")
	require.Equal(t, float64(4096), doc["PhysicalSectorSize"])

	// As it is: a success, and nothing written.
	before, err := os.Stat(m.image("a.vhdx"))
	require.NoError(t, err)
	out, err = shell(t, "bash", name, `exec 3<>"$F"; cat `+file+` >&3; cat <&3`)
	require.NoError(t, err, out)
	require.Equal(t, `{"Operation":"SetVirtualHardDiskSettingData","ReturnValue":0,"Changed":false}`+"\n", out)
	after, err := os.Stat(m.image("a.vhdx"))
	require.NoError(t, err)
	require.Equal(t, before.ModTime(), after.ModTime())

	out, err = shell(t, "dash", name, `echo physical=512 > "$F"`)
	require.NoError(t, err, out)
	_, doc = m.settings(t, "a.vhdx")
	require.Equal(t, float64(512), doc["PhysicalSectorSize"])
}

// The answer is on the handle that wrote; a fresh open shows the document.
func TestWriteSettingsRefuses(t *testing.T) {
	m := serveDisks(t, terms{})
	for _, tt := range []struct {
		image, text string
		no          syscall.Errno
		code        float64
		want        string
	}{
		{"a.vhdx", `{"MaxInternalSize":1}`, unix.EINVAL, 32773, "MaxInternalSize is 4194304 and cannot be changed to 1"},
		{"a.vhdx", `{"PhysicalSectorSize":512,"VirtualDiskId":"` + newID + `"}`, unix.EINVAL, 32773, "at once"},
		{"a.vhdx", `{"VirtualDiskId":"00000000-0000-0000-0000-000000000000"}`, unix.EINVAL, 32773, "not all zeros"},
		{"a.vhdx", `{"VirtualDiskId":}`, unix.EINVAL, 32773, "settings.json: invalid character"},
		{"a.vhdx", `nonsense=1`, unix.EINVAL, 32773, `unknown argument`},
		{"a.vhdx", `{"ParentPath":"v.vhd"}`, unix.EOPNOTSUPP, 32770, "has no parent"},
		{"v.vhd", `{"PhysicalSectorSize":4096}`, unix.EOPNOTSUPP, 32770, "PhysicalSectorSize"},
		{"v.vhd", `{"VirtualDiskId":"` + newID + `"}`, unix.EOPNOTSUPP, 32770, "VirtualDiskId"},
		{"a.vhdx", `{"ElementName":"` + strings.Repeat("x", 70<<10), unix.E2BIG, 32773, "at most 65536"},
	} {
		t.Run(tt.image+" "+tt.text[:min(len(tt.text), 40)], func(t *testing.T) {
			f, err := os.OpenFile(m.path(tt.image, "settings.json"), os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			_, err = f.WriteString(tt.text)
			require.ErrorIs(t, err, tt.no)
			b, err := io.ReadAll(f)
			require.NoError(t, err)
			a := answerOf(t, b)
			require.Equal(t, tt.code, a["ReturnValue"])
			require.Contains(t, a["Error"], tt.want)
			text, _ := m.settings(t, tt.image)
			require.True(t, json.Valid([]byte(text)))
		})
	}
	require.Equal(t, os.FileMode(0o444), func() os.FileMode {
		st, err := os.Stat(m.path("a.vhdx", "state.json"))
		require.NoError(t, err)
		return st.Mode()
	}())
}

// What never becomes a whole object changes nothing.
func TestUnfinishedSettingsAreDropped(t *testing.T) {
	m := serveDisks(t, terms{})
	_, before := m.settings(t, "a.vhdx")
	out, err := shell(t, "bash", m.path("a.vhdx", "settings.json"), `echo '{"PhysicalSectorSize":' > "$F"; echo '512}' > "$F" || echo "second: $?"`)
	require.NoError(t, err, out)
	require.Contains(t, out, "second: 1", "it is another open, and no object")
	_, after := m.settings(t, "a.vhdx")
	require.Equal(t, before, after)
	m.end(t)
	require.Contains(t, m.stderr.String(), "that are no whole request were dropped")
}

func TestSettingsAreBusyWhileRawIsOpen(t *testing.T) {
	m := serveDisks(t, terms{})
	raw, err := os.Open(m.path("a.vhdx", "raw"))
	require.NoError(t, err)
	require.ErrorIs(t, os.WriteFile(m.path("a.vhdx", "settings.json"), []byte(`{"physical":512}`), 0), unix.EBUSY)
	require.NoError(t, raw.Close())
	require.NoError(t, os.WriteFile(m.path("a.vhdx", "settings.json"), []byte(`{"physical":512}`), 0))
}

func TestSettingsOfAReadOnlyMount(t *testing.T) {
	m := serveDisks(t, terms{ReadOnly: true})
	require.ErrorIs(t, os.WriteFile(m.path("a.vhdx", "settings.json"), []byte(`{"physical":512}`), 0), unix.EROFS)
	require.NoError(t, os.WriteFile(m.path("a.vhdx", "settings.json"), []byte(`{"physical":512,"dryrun":true}`), 0))
}
