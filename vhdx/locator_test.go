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

// A disk opens whatever its locator says: what cannot be read of it is named, and
// what can is there.
func TestLocatorOfAnImage(t *testing.T) {
	const linkage = "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}"
	for _, tt := range []struct {
		name       string
		entries    [][2]string
		patches    []fixture.Patch
		err        string
		ids, paths int
	}{
		{"key twice", [][2]string{{"parent_linkage", linkage}, {"parent_linkage", "x"}}, nil, `key "parent_linkage" is empty or there twice`, 1, 0},
		{"no linkage", [][2]string{{"relative_path", `.\p.vhdx`}}, nil, "no parent_linkage", 0, 1},
		{"key in capitals", [][2]string{{"Parent_Linkage", linkage}}, nil, "no parent_linkage", 0, 0},
		{"linkage no GUID", [][2]string{{"parent_linkage", "{7584}"}, {"relative_path", `.\p.vhdx`}}, nil, `parent_linkage "{7584}" is not a GUID`, 0, 1},
		{"linkage2 no GUID", [][2]string{{"parent_linkage", linkage}, {"parent_linkage2", "-"}}, nil, `parent_linkage2 "-" is not a GUID`, 1, 0},
		{"a path that is no text", [][2]string{{"parent_linkage", linkage}, {"relative_path", "p\x00"}}, nil, "entry 1: value holds a NUL", 1, 0},
		{"type", nil, meta(fixture.VHDXItemLocator, fill(16, 0xee)), "type eeeeeeee-eeee-eeee-eeee-eeeeeeeeeeee is not known", 0, 0},
		{"table", nil, meta(fixture.VHDXItemLocator+18, le16(65535)), "65535 entries", 0, 0},
		{"no item", nil, noLocator(), "0 bytes, want 20", 0, 0},
		{"an item of no bytes", nil, meta(itemAt(5, 20), le32(0)), "0 bytes, want 20", 0, 0},
		{"no braces, no path", [][2]string{{"parent_linkage", linkage[1:37]}, {"volume_path", ""}}, nil, "", 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &fixture.Locator{Entries: tt.entries}
			if l.Entries == nil {
				l = parentLocator()
			}
			d := openRead(t, fixture.VHDX{Size: 16 * mib, Parent: l, Patches: tt.patches})
			p := d.Info().Parent
			require.Len(t, p.IDs, tt.ids)
			require.Len(t, p.Paths, tt.paths)
			require.Len(t, d.Info().Anomalies, 1)
			a := d.Info().Anomalies[0]
			if tt.err == "" {
				require.NoError(t, p.Err)
				require.Equal(t, "vhdx.locator.no-path", a.Name)
				return
			}
			require.Equal(t, "vhdx.locator.unreadable", a.Name)
			require.Equal(t, ops.Broken, a.Severity)
			require.ErrorIs(t, p.Err, ops.ErrCorrupt)
			require.ErrorContains(t, p.Err, "vhdx: parent locator")
			require.ErrorContains(t, p.Err, tt.err)
			require.Contains(t, a.Text, tt.err)
		})
	}
}

// Entries whose strings overlap may say a great deal: it ends at what an item has.
func TestLocatorOfManyBytes(t *testing.T) {
	const entries, string16 = 8000, 32 << 10
	b := make([]byte, 20+12*entries+string16+2*entries)
	copy(b, parentLocator().Bytes()[:18])
	copy(b[18:], le16(entries))
	for i := range entries {
		e := b[20+12*i:]
		at := uint32(20 + 12*entries + 2*i)
		copy(e, le32(at))
		copy(e[4:], le32(at))
		copy(e[8:], le16(2*uint16(i+1)))
		copy(e[10:], le16(string16))
	}
	for i := 20 + 12*entries; i < len(b); i += 2 {
		copy(b[i:], le16(uint16(1+i%50000)))
	}
	l, err := decodeLocator(b)
	require.ErrorIs(t, err, ops.ErrCorrupt)
	require.ErrorContains(t, err, "have more than 1048576 bytes")
	require.Less(t, len(l), 64)
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
