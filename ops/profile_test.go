package ops_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// profiled are the findings of a profile, by image of the chain.
func profiled(a ops.Answer) [][]string {
	var all [][]string
	for _, r := range reports(a) {
		list := slices.DeleteFunc(names(r), func(s string) bool { return !strings.HasPrefix(s, "profile.") })
		all = append(all, list)
	}
	return all
}

func TestProfiles(t *testing.T) {
	const azure, windows = "profile=azure", "profile=windows"
	for _, tt := range []struct {
		name    string
		file    string
		b       func() []byte
		request string
		want    []string
	}{
		{"a fixed VHD in whole MiB", "a.vhd", func() []byte { return (&fixture.VHD{Size: 20 << 20, Type: 2}).Bytes() }, azure, []string{}},
		{"too small", "a.vhd", func() []byte { return (&fixture.VHD{Size: 19 << 20, Type: 2}).Bytes() }, azure, []string{"profile.azure.limits"}},
		{"not in whole MiB", "a.vhd", func() []byte { return (&fixture.VHD{Size: 20<<20 + 512, Type: 2}).Bytes() }, azure, []string{"profile.azure.size"}},
		{"dynamic", "a.vhd", func() []byte { return (&fixture.VHD{Size: 20 << 20, Type: 3}).Bytes() }, azure, []string{"profile.azure.type"}},
		{"a VHDX", "a.vhdx", func() []byte { return (&fixture.VHDX{Size: 20 << 20}).Bytes() }, azure, []string{"profile.azure.format"}},
		{"bytes before the footer", "a.vhd", func() []byte {
			b := (&fixture.VHD{Size: 20 << 20, Type: 2}).Bytes()
			return append(make([]byte, 20<<20+4096), b[len(b)-512:]...)
		}, azure, []string{"profile.azure.length"}},
		{"a file without holes", "a.vhd", func() []byte {
			b := (&fixture.VHD{Size: 4 << 20, Type: 2}).Bytes()
			for i := range b[:4<<20] {
				b[i] = 'x'
			}
			return b
		}, windows, []string{}},
		{"a VHDX named VHD", "a.avhd", func() []byte { return (&fixture.VHDX{Size: 4 << 20}).Bytes() }, windows, []string{"profile.windows.sparse", "profile.windows.name"}},
		{"small", "a.vhdx", func() []byte { return (&fixture.VHDX{Size: 2 << 20}).Bytes() }, windows, []string{"profile.windows.sparse", "profile.windows.size"}},
		{"small blocks", "a.vhd", func() []byte { return (&fixture.VHD{Size: 4 << 20, Type: 3, BlockSize: 1 << 20}).Bytes() }, windows, []string{"profile.windows.block"}},
		{"no profile", "a.vhdx", func() []byte { return (&fixture.VHDX{Size: 2 << 20}).Bytes() }, "run", []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := realWorld(t)
			w.host.Put("/vms/"+tt.file, tt.b())
			a := w.ask("check", tt.file, tt.request)
			got := profiled(a)[0]
			require.Equal(t, tt.want, slices.DeleteFunc(got, func(s string) bool {
				return s == "profile.windows.sparse" && !slices.Contains(tt.want, s)
			}))
			if len(tt.want) > 0 {
				require.ErrorIs(t, a.Err, ops.ErrCorrupt)
			}
		})
	}
}

// Windows looks for a parent at the recorded paths alone; repairing mends nothing
// of what a profile finds.
func TestProfileOfAChain(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Size: 4 << 20})
	c := recorded(`..\gone\p.vhdx`)
	c.Size = 4 << 20
	w.image("/vms/c.avhdx", c)
	a := w.ask("check", "c.avhdx", "profile=windows")
	require.Contains(t, profiled(a)[0], "profile.windows.parent")
	require.NotContains(t, profiled(a)[1], "profile.windows.parent")
	a = w.ask("check", "c.avhdx", "profile=windows repair=true")
	require.Empty(t, field(a, "Mended"))
	require.NoError(t, w.ask("set-parent", "c.avhdx", "p.vhdx").Err)
	require.NotContains(t, profiled(w.ask("check", "c.avhdx", "profile=windows"))[0], "profile.windows.parent")
}
