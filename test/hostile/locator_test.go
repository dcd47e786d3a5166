package hostile

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

func text16(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, le16(u)...)
	}
	return b
}

// locatorIs puts a locator of these bytes into the small child.
func locatorIs(b []byte) fixture.VHDX {
	v := childX(1, 2, "relative_path", `.\p.vhdx`)
	v = entrySays(v, 5, 20, le32(uint32(len(b))))
	return itemSays(v, fixture.VHDXItemLocator, b)
}

// pair is an entry of a locator: places and lengths of a key and a value.
type pair struct {
	key, value       uint32
	keyLen, valueLen uint16
}

// locator is an item with these entries and then these bytes.
func locator(rest []byte, pairs ...pair) []byte {
	b := (&fixture.Locator{}).Bytes()
	copy(b[18:], le16(uint16(len(pairs))))
	for _, p := range pairs {
		b = append(append(b, le32(p.key)...), le32(p.value)...)
		b = append(append(b, le16(p.keyLen)...), le16(p.valueLen)...)
	}
	return append(b, rest...)
}

// linkage is a key and value that every locator has to have, at off.
func linkage(off uint32) (pair, []byte) {
	return pair{off, off + 28, 28, 76}, append(text16("parent_linkage"), text16(fixture.GUIDText(idOf(2)))...)
}

func TestH40Locators(t *testing.T) {
	one, text := linkage(20 + 24)
	second := func(p pair, more []byte) fixture.VHDX {
		return locatorIs(locator(append(bytes.Clone(text), more...), one, p))
	}
	const end = 20 + 24 + 28 + 76 // of the first pair's strings
	count := func(n uint16) fixture.VHDX {
		b := locator(text, one, pair{})
		copy(b[18:], le16(n))
		return locatorIs(b)
	}
	path := func(kv ...string) fixture.VHDX { return childX(1, 2, kv...) }
	other := path("relative_path", `.\p.vhdx`)
	other.Parent.Type = unknownID
	bare := path("relative_path", `.\p.vhdx`)
	bare.Parent.Entries = bare.Parent.Entries[1:]
	var family []row
	for _, c := range []struct {
		name string
		file fixture.VHDX
		says string
	}{
		{"of no bytes", locatorIs(nil), "parent locator: 0 bytes"},
		{"of 19 bytes", locatorIs(make([]byte, 19)), "parent locator: 19 bytes"},
		{"of another type", other, "parent locator: type 01234567-89ab-4cde-8f01-23456789abcd"},
		{"65,535 entries", count(65535), "parent locator: 65535 entries in 148 bytes"},
		{"an entry more than there is room for", count(11), "parent locator: 11 entries in 148 bytes"},
		{"no entries", count(0), "parent locator: no parent_linkage"},
		{"without linkage", bare, "parent locator: no parent_linkage"},
		{"key before the strings", second(pair{20, end, 2, 2}, text16("v")), "parent locator entry 1: key lies outside"},
		{"key past the end", second(pair{end + 2, end, 2, 2}, text16("v")), "parent locator entry 1: key lies outside"},
		{"key at 2^32-2", second(pair{1<<32 - 2, end, 2, 2}, text16("v")), "parent locator entry 1: key lies outside"},
		{"value past the end", second(pair{end, end + 2, 2, 4}, text16("kv")), "parent locator entry 1: value lies outside"},
		{"value of 65,534 bytes", second(pair{end, end + 2, 2, 65534}, text16("kv")), "parent locator entry 1: value lies outside"},
		{"value at 2^32-1", second(pair{end, 1<<32 - 1, 2, 65535}, text16("kv")), "parent locator entry 1: value lies outside"},
		{"key of no bytes", second(pair{end, end, 0, 2}, text16("v")), `parent locator entry 1: key ""`},
		{"key of odd bytes", second(pair{end, end + 4, 3, 2}, text16("kkv")), "parent locator entry 1: key has an odd number"},
		{"value of odd bytes", second(pair{end, end + 2, 2, 3}, text16("kvv")), "parent locator entry 1: value has an odd number"},
		{"strings that overlap", second(pair{end, end + 2, 4, 4}, text16("kvv")), "parent locator: string at 0x96 overlaps string at 0x94"},
		{"value over the linkage", second(pair{end, 20 + 24 + 28, 2, 76}, text16("k")), "parent locator: string at 0x48 overlaps string at 0x48"},
		{"NUL inside", path("relative_path", "p.vhdx\x00.txt"), "parent locator entry 1: value holds a NUL"},
		{"NUL in a key", path("relative\x00path", "p.vhdx"), "parent locator entry 1: key holds a NUL"},
		{"half a surrogate pair", second(pair{end, end + 2, 2, 4}, append(text16("k"), 0x3d, 0xd8, 'x', 0)), "parent locator entry 1: value is not UTF-16"},
		{"the other half", second(pair{end, end + 2, 2, 4}, append(text16("k"), 0x00, 0xdc, 'x', 0)), "parent locator entry 1: value is not UTF-16"},
		{"a key twice", path("relative_path", `.\p.vhdx`, "relative_path", `.\q.vhdx`), `parent locator entry 2: key "relative_path" is empty or there twice`},
		{"linkage twice", path("parent_linkage", fixture.GUIDText(idOf(3))), `parent locator entry 1: key "parent_linkage"`},
	} {
		family = append(family, row{
			name: c.name, file: c.file, more: folder.Files{"p.vhdx": rootX(2)}, class: ops.ErrCorrupt, says: "vhdx: " + c.says,
		})
	}
	family = append(family,
		row{name: "no path at all: found by id", file: path(), more: folder.Files{"p.vhdx": rootX(2)}, odd: []string{"vhdx.locator.no-path"}},
		row{name: "keys that nobody knows", file: path("relative_path", `.\p.vhdx`, "Relative_Path", `x`, "zz", strings.Repeat("z", 30000)), more: folder.Files{"p.vhdx": rootX(2)}},
		row{name: "a name in surrogate pairs", file: path("relative_path", ".\\\U0001f4be.vhdx"), more: folder.Files{"\U0001f4be.vhdx": rootX(2)}},
	)
	rows(t, "disk.vhdx", family)
}

// A locator of a VHD that cannot be followed is named and passed over: the id
// finds the parent. Nothing of it is trusted.
func TestH41PlatformData(t *testing.T) {
	child := func() fixture.VHD { return childV(1, 2, "W2ru", `.\p.vhd`) }
	at := child().Layout()
	data := at.Locators[0]
	header := func(off int64, data []byte) fixture.VHD { return patched(child(), 576+off, data, "header") }
	parent := folder.Files{"p.vhd": rootV(2)}
	odd := []string{"vhd.locator"}
	var family []row
	for _, c := range []struct {
		name string
		file fixture.VHD
	}{
		{"no length", header(8, be32(0))},
		{"length over 64 KiB", header(8, be32(64<<10+1))},
		{"length 2^32-1", header(8, be32(1<<32-1))},
		{"at 0", header(16, be64(0))},
		{"in the header", header(16, be64(600))},
		{"in the table", header(16, be64(1536))},
		{"past the end", header(16, be64(1<<30))},
		{"at 2^63", header(16, be64(1<<63))},
		{"at 2^64-1", header(16, be64(1<<64-1))},
		{"NUL inside", func() fixture.VHD {
			v := child()
			v.Patches = []fixture.VHDPatch{{Part: "file", Off: data + 4, Data: []byte{0, 0}}}
			return v
		}()},
	} {
		family = append(family, row{name: c.name, file: c.file, more: parent, odd: odd})
	}
	loop := child()
	for i := int64(1); i < 8; i++ {
		loop = patched(loop, 576+24*i, append([]byte("W2ru"), be32(512)...), "header")
		loop = patched(loop, 576+24*i+8, be32(14), "header")
		loop = patched(loop, 576+24*i+16, be64(uint64(data)), "header")
	}
	all := childV(1, 2)
	for i, code := range []string{"W2ru", "W2ku", "MacX", "Wi2r", "Wi2k", "Mac ", "W2ru", "W2ku"} {
		all.Parent.Locators = append(all.Parent.Locators, fixture.VHDLocator{Code: code, Path: fmt.Sprintf("gone%d", i)})
	}
	family = append(family,
		row{name: "space 0", file: header(4, be32(0)), more: parent},
		row{name: "space 2^32-1", file: header(4, be32(1<<32-1)), more: parent},
		row{name: "space in sectors", file: func() fixture.VHD { v := child(); v.Parent.Locators[0].Sectors = true; return v }(), more: parent},
		row{name: "a code that nobody knows", file: header(0, []byte("XYZ!")), more: parent},
		row{name: "eight slots of one path", file: loop, more: parent},
		row{name: "eight slots that lead nowhere", file: all, more: parent},
		row{name: "none, and no name", file: childV(1, 2), more: parent},
		row{name: "path in the other byte order", file: func() fixture.VHD {
			v := childV(1, 2)
			v.Parent.Locators = []fixture.VHDLocator{{Code: "W2ru", Raw: []byte("\x00.\x00\\\x00p\x00.\x00v\x00h\x00d")}}
			return v
		}(), more: parent},
		row{name: "trailing NULs", file: childV(1, 2, "W2ru", ".\\p.vhd\x00\x00\x00"), more: parent},
		row{name: "half a surrogate pair", file: func() fixture.VHD {
			v := childV(1, 2)
			v.Parent.Locators = []fixture.VHDLocator{{Code: "W2ru", Raw: []byte{0x3d, 0xd8, 'x', 0}}}
			return v
		}(), more: parent},
		row{
			name: "id of zeros and locators", file: patched(child(), 40, make([]byte, 16), "header"), more: parent,
			class: errUnsupported, says: "vhd: the parent has no id",
		},
		row{
			name: "id of zeros and nothing else", file: patched(childV(1, 2), 40, make([]byte, 16), "header"), more: parent,
			class: ops.ErrCorrupt, says: "type is differencing, but the header names no parent",
		},
	)
	rows(t, "disk.vhd", family)
}
