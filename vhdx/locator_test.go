package vhdx

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

func TestLocatorRejects(t *testing.T) {
	entry := func(i, at int) int { return 20 + 12*i + at }
	put := func(b []byte, at int, v []byte) []byte { copy(b[at:], v); return b }
	for _, tt := range []struct {
		name string
		edit func([]byte) []byte
		err  string
	}{
		{"19 bytes", func(b []byte) []byte { return b[:19] }, "19 bytes"},
		{"another type", func(b []byte) []byte { return put(b, 0, []byte{0xff}) }, "is not known"},
		{"65535 entries", func(b []byte) []byte { return put(b, 18, le16(65535)) }, "65535 entries"},
		{"key in the table", func(b []byte) []byte { return put(b, entry(0, 0), le32(20)) }, "key lies outside the item"},
		{"key offset 2^32-1", func(b []byte) []byte { return put(b, entry(0, 0), le32(1<<32-1)) }, "key lies outside the item"},
		{"value past the item", func(b []byte) []byte { return put(b, entry(4, 10), le16(65534)) }, "value lies outside the item"},
		{"key of odd length", func(b []byte) []byte { return put(b, entry(0, 8), le16(27)) }, "odd number of bytes"},
		{"key empty", func(b []byte) []byte { return put(b, entry(0, 8), le16(0)) }, `key "" is empty`},
		{"strings overlap", func(b []byte) []byte { return put(b, entry(1, 4), b[entry(0, 4):entry(0, 8)]) }, "overlaps string"},
		{"lone surrogate", func(b []byte) []byte { return put(b, len(b)-2, []byte{0x00, 0xd8}) }, "value is not UTF-16"},
		{"NUL", func(b []byte) []byte { return put(b, len(b)-2, []byte{0, 0}) }, "value holds a NUL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decodeLocator(tt.edit(parentLocator().Bytes()))
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, tt.err)
		})
	}
}

func TestLocatorOfAnImage(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries [][2]string
		err     string
	}{
		{"key twice", [][2]string{{"parent_linkage", "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}"}, {"parent_linkage", "x"}}, `key "parent_linkage" is empty or there twice`},
		{"no linkage", [][2]string{{"relative_path", `.\p.vhdx`}}, "no parent_linkage"},
		{"key in capitals", [][2]string{{"Parent_Linkage", "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}"}}, "no parent_linkage"},
		{"linkage no GUID", [][2]string{{"parent_linkage", "{7584}"}}, `parent_linkage "{7584}" is not a GUID`},
		{"linkage2 no GUID", [][2]string{{"parent_linkage", "7584F8FB-36d3-4091-afb5-b1afe587bfa8"}, {"parent_linkage2", "-"}}, `parent_linkage2 "-" is not a GUID`},
		{"no braces, no path", [][2]string{{"parent_linkage", "7584F8FB-36d3-4091-afb5-b1afe587bfa8"}, {"volume_path", ""}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := place(t, fixture.VHDX{Size: 16 * mib, Parent: &fixture.Locator{Entries: tt.entries}})
			d, err := openHost(t, h, ops.Read)
			if tt.err == "" {
				require.NoError(t, err)
				require.Equal(t, "vhdx.locator.no-path", d.Info().Anomalies[0].Name)
				require.NoError(t, d.Close())
				return
			}
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, tt.err)
		})
	}
}

func TestLocatorEncoding(t *testing.T) {
	l := locator{{keyLinkage, "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}"}, {keyRelative, `..\Ünïcode 𝄞\p.vhdx`}}
	got, err := decodeLocator(l.encode())
	require.NoError(t, err)
	require.Equal(t, l, got)
	same := &fixture.Locator{Entries: [][2]string{{l[0].key, l[0].value}, {l[1].key, l[1].value}}}
	require.True(t, bytes.Equal(same.Bytes(), l.encode()))
}

func TestHeaderEncoding(t *testing.T) {
	m, err := fixture.VHDX{Size: 16 * mib}.Build()
	require.NoError(t, err)
	raw := m.Get(fixture.VHDXHeader2, 4096)
	h, err := decodeHeader(raw)
	require.NoError(t, err)
	require.Equal(t, header{
		seq: 8, fileWrite: h.fileWrite, dataWrite: ops.GUID(m.DataWriteGUID), version: 1, logLength: 1 << 20, logOffset: 1 << 20,
	}, h)
	require.Equal(t, raw, h.encode())
}
