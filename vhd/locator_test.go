package vhd

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// child opens a differencing disk with these locators and this name field.
func child(t *testing.T, name string, ls ...fixture.VHDLocator) ops.Info {
	t.Helper()
	v := fixture.VHD{Size: 3 << 20, Type: 4, Parent: &fixture.VHDParent{UUID: [16]byte{1, 2, 3}, Timestamp: 371997005, Name: name, Locators: ls}}
	return mustOpen(t, v.Bytes()).Info()
}

func TestParentIDAndTime(t *testing.T) {
	p := child(t, "").Parent
	require.Equal(t, []ops.GUID{{1, 2, 3}}, p.IDs)
	require.Equal(t, "01020300-0000-0000-0000-000000000000", p.IDs[0].String(), "fields stand in the order of the text")
	require.Equal(t, 2011, p.Timestamp.Year())
	require.Empty(t, p.Paths)
}

// T20: the order in which paths are tried, and what each code holds.
func TestTrapT20OrderOfPaths(t *testing.T) {
	info := child(t, `C:\vm\p.vhd`,
		fixture.VHDLocator{Code: "Mac ", Path: "alias"},
		fixture.VHDLocator{Code: "Wi2r", Path: "ansi\xe9.vhd"},
		fixture.VHDLocator{Code: "MacX", Path: "file://localhost/vm/a%20b.vhd"},
		fixture.VHDLocator{Code: "W2ku", Path: `\\server\share\p.vhd`},
		fixture.VHDLocator{Code: "W2ku", Path: `\\?\Volume{0}\p.vhd`},
		fixture.VHDLocator{Code: "W2ru", Path: `..\p.vhd`},
	)
	require.Equal(t, []ops.ParentPath{
		{Kind: ops.PathRelative, Path: `..\p.vhd`},
		{Kind: ops.PathAbsolute, Path: `\\server\share\p.vhd`},
		{Kind: ops.PathVolume, Path: `\\?\Volume{0}\p.vhd`},
		{Kind: ops.PathAbsolute, Path: "/vm/a b.vhd"},
		{Kind: ops.PathRelative, Path: "ansié.vhd"},
		{Kind: ops.PathName, Path: `C:\vm\p.vhd`},
	}, info.Parent.Paths)
	require.Empty(t, info.Anomalies)
}

// T19: UTF-16 in the order that is wrong for its place, NULs at the end, lone
// surrogates, a length that is odd.
func TestTrapT19Encodings(t *testing.T) {
	for _, tt := range []struct {
		name, code string
		raw        []byte
		want       string
	}{
		{"right", "W2ru", []byte(".\x00\\\x00p\x00"), `.\p`},
		{"other order", "W2ru", []byte("\x00.\x00\\\x00p"), `.\p`},
		{"trailing NUL", "W2ru", []byte("p\x00q\x00\x00\x00\x00\x00"), "pq"},
		{"lone surrogate", "W2ru", []byte("p\x00\x00\xd8q\x00"), "p\ufffdq"},
		{"odd length", "W2ru", []byte("p\x00q\x00r"), "pq"},
		{"not latin", "W2ku", []byte("\x2f\x00\x44\x04\x38\x04"), "/фи"},
		{"URL, relative", "MacX", []byte("file://./p%25.vhd"), "./p%.vhd"},
		{"URL, absolute", "MacX", []byte("file:///vm/p.vhd\x00"), "/vm/p.vhd"},
		{"URL, bad escape", "MacX", []byte("file:///vm/%zz"), "/vm/%zz"},
		{"no URL", "MacX", []byte("p.vhd"), "p.vhd"},
		{"blktap's relative path under an absolute code", "W2ku", []byte(".\x00\\\x00p\x00"), `.\p`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info := child(t, "", fixture.VHDLocator{Code: tt.code, Raw: tt.raw})
			require.Len(t, info.Parent.Paths, 1)
			require.Equal(t, tt.want, info.Parent.Paths[0].Path)
		})
	}
	swapped := fixture.VHD{Size: 3 << 20, Type: 4, Parent: parent(), Patches: hdr(64, []byte("p\x00.\x00v\x00h\x00d\x00"))}
	paths := mustOpen(t, swapped.Bytes()).Info().Parent.Paths
	require.Equal(t, ops.ParentPath{Kind: ops.PathName, Path: "p.vhd"}, paths[len(paths)-1])
}

// H40, H41: a locator that cannot be followed is named and left out; the others
// and the id still serve.
func TestLocatorsThatCannotBe(t *testing.T) {
	entry := func(length uint32, off uint64) []byte {
		b := make([]byte, locatorSize)
		locator{codeW2ru, 512, length, off}.encode(b)
		return b
	}
	good := parent()
	v := fixture.VHD{Size: 3 << 20, Type: 4, Parent: good}
	at := uint64(v.Layout().Locators[0])
	for _, tt := range []struct {
		name  string
		entry []byte
		text  string
	}{
		{"empty", entry(0, at), "0 bytes, want 1 to 65536"},
		{"too long", entry(65537, at), "65537 bytes, want 1 to 65536"},
		{"length 2^32-1", entry(0xffffffff, at), "4294967295 bytes"},
		{"past the end", entry(64, 1<<40), "64 bytes at 0x10000000000 end past"},
		{"offset all ones", entry(64, ^uint64(0)), "at 0xffffffffffffffff end past"},
		{"across the end", entry(64, uint64(v.Layout().Tail)-32), "end past"},
		{"in the footer copy", entry(64, 0), "lie in the footer copy"},
		{"in the header", entry(64, 1000), "lie in the dynamic header"},
		{"in the table", entry(64, 1500), "lie in the dynamic header"},
		{"in the table's entries", entry(4, 1536), "lie in the block table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v.Patches = hdr(576, tt.entry)
			info := mustOpen(t, v.Bytes()).Info()
			require.Equal(t, []string{"vhd.locator"}, names(info.Anomalies))
			require.Contains(t, info.Anomalies[0].Text, `parent locator "W2ru"`)
			require.Contains(t, info.Anomalies[0].Text, tt.text)
			require.Len(t, info.Parent.Paths, 2)
			require.Equal(t, `C:\vm\p.vhd`, info.Parent.Paths[0].Path)
		})
	}
	t.Run("NUL inside", func(t *testing.T) {
		info := child(t, "", fixture.VHDLocator{Code: "W2ru", Raw: []byte("p\x00\x00\x00q\x00")})
		require.Equal(t, []string{"vhd.locator"}, names(info.Anomalies))
		require.Empty(t, info.Parent.Paths)
	})
	t.Run("eight of 64 KiB", func(t *testing.T) {
		p := &fixture.VHDParent{UUID: [16]byte{1}}
		for range 8 {
			p.Locators = append(p.Locators, fixture.VHDLocator{Code: "W2ru", Raw: bytes.Repeat([]byte("p\x00"), 32<<10)})
		}
		info := mustOpen(t, fixture.VHD{Size: 3 << 20, Type: 4, Parent: p}.Bytes()).Info()
		require.Len(t, info.Parent.Paths, 8)
		require.Len(t, info.Parent.Paths[7].Path, 32<<10)
	})
}

func TestLocatorCapacity(t *testing.T) {
	for _, tt := range []struct {
		space, length uint32
		want          int64
	}{
		{512, 30, 512}, {1, 30, 512}, {65536, 34, 65536}, {128, 34, 65536}, {0, 700, 1024}, {1, 700, 1024},
	} {
		require.Equal(t, tt.want, locator{space: tt.space, length: tt.length}.capacity(), "space %d length %d", tt.space, tt.length)
	}
}
