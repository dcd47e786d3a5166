package ops

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseRecorded(t *testing.T) {
	rel := func(up int, parts ...string) recordedPath { return recordedPath{up: up, parts: parts} }
	abs := func(parts ...string) recordedPath { return recordedPath{abs: true, parts: parts} }
	unix := func(parts ...string) recordedPath { return recordedPath{abs: true, unix: true, parts: parts} }
	for _, tt := range []struct {
		in   string
		want recordedPath
		err  string // "": no error
	}{
		{in: `p.vhdx`, want: rel(0, "p.vhdx")},
		{in: `.\p.vhdx`, want: rel(0, "p.vhdx")},
		{in: `..\d\p.vhdx`, want: rel(1, "d", "p.vhdx")},
		{in: `../d/p.vhdx`, want: rel(1, "d", "p.vhdx")},
		{in: `..\../..\etc/shadow`, want: rel(3, "etc", "shadow")},
		{in: `.\..\p.vhdx`, want: rel(1, "p.vhdx")},
		{in: `a\..\..\p.vhdx`, want: rel(1, "p.vhdx")},
		{in: `a\.\\b\p.vhdx`, want: rel(0, "a", "b", "p.vhdx")},
		{in: "p.vhdx\x00\x00", want: rel(0, "p.vhdx")},
		{in: `p.vhdx. . `, want: rel(0, "p.vhdx")},
		{in: `d. \p.vhdx`, want: rel(0, "d", "p.vhdx")},
		{in: `.. \p.vhdx`, want: rel(1, "p.vhdx")},
		{in: `with blank\p q.vhdx`, want: rel(0, "with blank", "p q.vhdx")},
		{in: `ÄÖ\п.vhdx`, want: rel(0, "ÄÖ", "п.vhdx")},
		{in: `C:\a\p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `c:/a/p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `C:a\p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `C:\..\..\p.vhdx`, want: abs("p.vhdx")},
		{in: `\a\p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `/srv/p.vhdx`, want: unix("srv", "p.vhdx")},
		{in: `/srv/../etc/passwd`, want: unix("etc", "passwd")},
		{in: `/etc/passwd`, want: unix("etc", "passwd")},
		{in: `\\srv\share\p.vhdx`, want: abs("srv", "share", "p.vhdx")},
		{in: `//srv/share/p.vhdx`, want: abs("srv", "share", "p.vhdx")},
		{in: `\\?\C:\a\p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `\\.\C:\a\p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `\??\C:\a\p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `\\?\UNC\srv\share\p.vhdx`, want: abs("srv", "share", "p.vhdx")},
		{in: `\\?\unc\srv\share\p.vhdx`, want: abs("srv", "share", "p.vhdx")},
		{in: `\\?\srv\share\p.vhdx`, want: abs("srv", "share", "p.vhdx")},
		{in: `\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\a\p.vhdx`, want: abs("a", "p.vhdx")},
		{in: `\\?\volume{x}\p.vhdx`, want: abs("p.vhdx")},
		{in: `\\?\GLOBALROOT\Device\HarddiskVolume3\p.vhdx`, want: abs("GLOBALROOT", "Device", "HarddiskVolume3", "p.vhdx")},
		{in: `file:///srv/a%20b/p.vhd`, want: unix("srv", "a b", "p.vhd")},
		{in: `FILE://localhost/srv/p.vhd`, want: unix("srv", "p.vhd")},
		{in: `file:/srv/p.vhd`, want: unix("srv", "p.vhd")},
		{in: `file:///C:/a/p.vhd`, want: abs("a", "p.vhd")},
		{in: `file://srv/share/p.vhd`, want: abs("srv", "share", "p.vhd")},
		{in: `file://./p.vhd`, want: rel(0, "p.vhd")},
		{in: `file://../p.vhd`, want: rel(1, "p.vhd")},
		{in: `file:../../etc/shadow`, want: rel(2, "etc", "shadow")},
		{in: `file:///etc/%2e%2e/%2E%2E/shadow`, want: unix("shadow")},
		{in: `a:b:c.vhdx`, want: abs("b:c.vhdx")},

		{in: ``, err: "names no file"},
		{in: `.`, err: "names no file"},
		{in: `..\..`, err: "names no file"},
		{in: `C:`, err: "names no file"},
		{in: `C:\`, err: "names no file"},
		{in: `\\?\`, err: "names no file"},
		{in: `\\?\Volume{x}`, err: "names no file"},
		{in: `...\p.vhdx`, err: `component "..." names nothing`},
		{in: `   \p.vhdx`, err: `component "   " names nothing`},
		{in: "a\x00b.vhdx", err: "control characters"},
		{in: "a\nb.vhdx", err: "control characters"},
		{in: "a\x1b[2Jb.vhdx", err: "control characters"},
		{in: "a\x7fb.vhdx", err: "control characters"},
		{in: `file:///a%2fb`, err: "escaped separator"},
		{in: `file:///a%5cb`, err: "escaped separator"},
		{in: `file:///a%00b`, err: "control characters"},
		{in: `file:///a%zzb`, err: "invalid URL escape"},
		{in: strings.Repeat(`a\`, 300) + "p", err: "301 components, at most 256"},
		{in: strings.Repeat(`..\`, 300) + "p", err: "301 components, at most 256"},
		{in: strings.Repeat("a", 40000), err: "40000 bytes, at most 32767"},
	} {
		t.Run(tt.in[:min(len(tt.in), 60)], func(t *testing.T) {
			got, err := parseRecorded(tt.in)
			if tt.err != "" {
				require.ErrorIs(t, err, ErrUsage)
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestBeneath(t *testing.T) {
	for _, tt := range []struct {
		root, abs, want string
		ok              bool
	}{
		{"/vms", "/vms/a/p.vhdx", "a/p.vhdx", true},
		{"/vms", "/vms", ".", true},
		{"/vms", "/vms2/p.vhdx", "", false},
		{"/vms", "/", "", false},
		{"/", "/p.vhdx", "p.vhdx", true},
	} {
		got, ok := beneath(tt.root, tt.abs)
		require.Equal(t, tt.ok, ok, tt.abs)
		if ok {
			require.Equal(t, tt.want, got)
		}
	}
}

func TestFoldKeyIsEqualFold(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"Base.VHDX", "bASE.vhdx", true},
		{"ÄÖÜ.vhdx", "äöü.vhdx", true},
		{"K.vhdx", "k.vhdx", true}, // Kelvin sign
		{"ſ.vhdx", "S.vhdx", true}, // long s
		{"Σ", "ς", true},
		{"ß", "ss", false},
		{"a", "b", false},
	} {
		require.Equal(t, tt.same, strings.EqualFold(tt.a, tt.b), tt.a)
		require.Equal(t, tt.same, foldKey(tt.a) == foldKey(tt.b), tt.a)
	}
}

// Whatever an image records, what comes out names something below a folder: the
// components alone decide where it leads.
func FuzzParseRecorded(f *testing.F) {
	for _, s := range []string{`..\d\p.vhdx`, `\\?\UNC\s\d\p`, `file:///C:/a%20b/..%2e`, `C:p`, "a\x00", `.. . \p`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stored string) {
		r, err := parseRecorded(stored)
		if err != nil {
			if !errors.Is(err, ErrUsage) {
				t.Fatal(err)
			}
			return
		}
		if len(r.parts) == 0 || len(r.parts)+r.up > maxRecordedParts || r.abs && r.up > 0 {
			t.Fatalf("%+v", r)
		}
		for _, p := range r.parts {
			if p == "" || strings.ContainsAny(p, "/\\\x00") || strings.HasSuffix(p, ".") || strings.HasSuffix(p, " ") {
				t.Fatalf("part %q of %+v", p, r)
			}
		}
	})
}
