package hostile

import (
	"fmt"
	"testing"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// metadataAt is where the small disk's metadata region lies.
const metadataAt = 2 << 20

// itemSays puts bytes over an item of the metadata region.
func itemSays(v fixture.VHDX, item int64, data []byte) fixture.VHDX {
	v.Patches = append(v.Patches, fixture.Patch{Off: metadataAt + item, Data: data})
	return v
}

// entrySays puts bytes at off of metadata entry i: 0 parameters, 1 size, 2 disk
// id, 3 logical sector, 4 physical sector, 5 parent locator.
func entrySays(v fixture.VHDX, i, off int64, data []byte) fixture.VHDX {
	return itemSays(v, 32+32*i+off, data)
}

func TestH13VirtualDiskSize(t *testing.T) {
	var family []row
	for _, n := range []uint64{
		0, 1, 511, 513, 8<<20 + 1, 8<<20 - 1, 64<<40 + 1, 64<<40 + 512, 64<<40 + 1<<20,
		(1<<32 + 25) << 20, 1 << 52, 1<<63 - 512, 1 << 63, 1<<64 - 512, 1<<64 - 1,
	} {
		family = append(family, row{
			name: fmt.Sprint(n), file: itemSays(small(), fixture.VHDXItemSize, le64(n)),
			class: ops.ErrCorrupt, says: fmt.Sprintf("virtual size %d ", n),
		})
	}
	four := fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, LogicalSector: 4096}
	family = append(family,
		row{
			name: "512 in sectors of 4096", file: itemSays(four, fixture.VHDXItemSize, le64(512)),
			class: ops.ErrCorrupt, says: "virtual size 512 is not a multiple of 4096",
		},
		row{name: "one sector", file: itemSays(small(), fixture.VHDXItemSize, le64(512)), want: base[:1]},
		row{name: "no multiple of a block", file: itemSays(small(), fixture.VHDXItemSize, le64(7<<20+512)), want: base[:2]},
	)
	rows(t, "disk.vhdx", family)
}

func TestH14BlockAndSectorSize(t *testing.T) {
	var family []row
	for _, n := range []uint32{
		0, 1, 512, 512 << 10, 1<<20 - 1, 1<<20 + 1, 3 << 20, 5 << 20, 255 << 20, 257 << 20, 512 << 20, 1 << 31, 1<<32 - 1<<20, 1<<32 - 1,
	} {
		family = append(family, row{
			name: fmt.Sprintf("block of %d", n), file: itemSays(small(), fixture.VHDXItemParameters, le32(n)),
			class: ops.ErrCorrupt, says: fmt.Sprintf("block size %d ", n),
		})
	}
	for _, n := range []uint32{0, 1, 256, 511, 513, 1024, 2048, 4097, 8192, 1 << 31, 1<<32 - 1} {
		family = append(family, row{
			name: fmt.Sprintf("logical sector of %d", n), file: itemSays(small(), fixture.VHDXItemLogical, le32(n)),
			class: ops.ErrCorrupt, says: fmt.Sprintf("logical sector size %d,", n),
		})
	}
	for _, n := range []uint32{0, 1, 513, 1024, 8192, 1<<32 - 1} {
		family = append(family, row{
			name: fmt.Sprintf("physical sector of %d", n), file: itemSays(small(), fixture.VHDXItemPhysical, le32(n)),
			class: ops.ErrCorrupt, says: fmt.Sprintf("physical sector size %d,", n),
		})
	}
	family = append(family, row{
		name: "logical 4096 over physical 512", // as some makers have it
		file: fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, LogicalSector: 4096, PhysicalSector: 512, Writes: base[:2]},
		want: base[:2],
	})
	rows(t, "disk.vhdx", family)
}

func TestH18MetadataTable(t *testing.T) {
	id := func(g [16]byte) []byte {
		b := make([]byte, 16)
		fixture.PutGUID(b, g)
		return b
	}
	sizeID := fixture.MustGUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	family := []row{
		{name: "signature", file: itemSays(small(), 0, []byte("METADATA")), class: ops.ErrCorrupt, says: `metadata table: signature "METADATA"`},
		{name: "table of zeros", file: itemSays(small(), 0, make([]byte, 4096)), class: ops.ErrCorrupt, says: "metadata table: signature"},
		{name: "2,047 entries, most of them zeros", file: itemSays(small(), 10, le16(2047)), class: ops.ErrCorrupt, says: "metadata item 5: id is zero"},
		{name: "2,048 entries", file: itemSays(small(), 10, le16(2048)), class: ops.ErrCorrupt, says: "metadata table: 2048 entries, at most 2047"},
		{name: "65,535 entries", file: itemSays(small(), 10, le16(65535)), class: ops.ErrCorrupt, says: "metadata table: 65535 entries"},
		{name: "no entries", file: itemSays(small(), 10, le16(0)), class: ops.ErrCorrupt, says: "caa16737"},
		{name: "an id twice", file: entrySays(small(), 2, 0, id(sizeID)), class: ops.ErrCorrupt, says: "metadata item 2: id 2fa54224"},
		{name: "overlap", file: entrySays(small(), 2, 16, le32(64<<10+4)), class: ops.ErrCorrupt, says: "metadata item at 0x10004 overlaps item at 0x10000"},
	}
	for i, name := range []string{"caa16737", "2fa54224", "beca12ab", "8141bf1d", "cda348c7"} {
		gone := small()
		gone = entrySays(entrySays(gone, int64(i), 0, id(unknownID)), int64(i), 24, le32(0))
		family = append(family,
			row{name: name + " is missing", file: gone, class: ops.ErrCorrupt, says: "metadata item " + name},
			row{name: name + " is too long or too short", file: entrySays(small(), int64(i), 20, le32([]uint32{12, 12, 12, 6, 5}[i])), class: ops.ErrCorrupt, says: "metadata item " + name + "...want"},
			row{name: name + " has no bytes", file: entrySays(entrySays(small(), int64(i), 20, le32(0)), int64(i), 16, le32(0)), class: ops.ErrCorrupt, says: "metadata item " + name + "...0 bytes"},
		)
	}
	for _, c := range []struct {
		name string
		i    int64
		off  int64
		data []byte
		says string
	}{
		{"virtual size of 4 bytes", 1, 20, le32(4), "2fa54224...4 bytes, want 8"},
		{"offset 0", 1, 16, le32(0), "metadata item 1: offset 0x0"},
		{"offset in the table", 1, 16, le32(0xffff), "metadata item 1: offset 0xffff"},
		{"offset at the region's end", 1, 16, le32(1 << 20), "metadata item 1: 8 bytes at 0x100000 past the end of the region 0x100000"},
		{"offset a byte before that", 1, 16, le32(1<<20 - 7), "metadata item 1: 8 bytes at 0xffff9 past"},
		{"offset 2^32-1", 1, 16, le32(1<<32 - 1), "metadata item 1: 8 bytes at 0xffffffff past"},
		{"length over 1 MiB", 1, 20, le32(1<<20 + 1), "metadata item 1: length 1048577, at most 1048576"},
		{"length 2^32-1", 1, 20, le32(1<<32 - 1), "metadata item 1: length 4294967295"},
		{"reserved flag", 1, 24, le32(6 | 8), "metadata item 1: reserved flags 0xe"},
		{"all flags", 1, 24, le32(1<<32 - 1), "metadata item 1: reserved flags 0xffffffff"},
		{"id zero", 4, 0, make([]byte, 16), "metadata item 4: id is zero"},
	} {
		family = append(family, row{name: c.name, file: entrySays(small(), c.i, c.off, c.data), class: ops.ErrCorrupt, says: c.says})
	}
	rows(t, "disk.vhdx", family)
}

func TestH18OtherItems(t *testing.T) {
	with := func(items ...fixture.Item) fixture.VHDX {
		v := small()
		v.Items = items
		return v
	}
	incomplete := fixture.MustGUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3")
	sizeID := fixture.MustGUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	locatorID := fixture.MustGUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
	var users []fixture.Item
	for i := range 1025 {
		users = append(users, fixture.Item{ID: [16]byte{1, byte(i), byte(i >> 8)}, Flags: 1})
	}
	noLocator := itemSays(small(), fixture.VHDXItemParameters+4, le32(2))
	rows(t, "disk.vhdx", []row{
		{name: "unknown and required", file: with(fixture.Item{ID: unknownID, Flags: 4, Data: []byte("x")}), class: ops.ErrCorrupt, says: "metadata item 5: id 01234567-89ab-4cde-8f01-23456789abcd is required"},
		{name: "unknown, required and empty", file: with(fixture.Item{ID: unknownID, Flags: 4}), class: ops.ErrCorrupt, says: "metadata item 5: id 01234567"},
		{name: "a user's and required", file: with(fixture.Item{ID: unknownID, Flags: 5, Data: []byte("x")}), class: ops.ErrCorrupt, says: "metadata item 5: id 01234567"},
		{name: "creation never finished", file: with(fixture.Item{ID: incomplete, Flags: 4}), class: ops.ErrCorrupt, says: "metadata item 5: creation or merge"},
		{name: "unknown and optional", file: with(fixture.Item{ID: unknownID, Flags: 2, Data: []byte("x")})},
		{name: "a user's", file: with(fixture.Item{ID: unknownID, Flags: 1, Data: []byte("x")})},
		{name: "a user's with the id of the size", file: with(fixture.Item{ID: sizeID, Flags: 1, Data: le64(1)})},
		{name: "a user's twice", file: with(fixture.Item{ID: unknownID, Flags: 1}, fixture.Item{ID: unknownID, Flags: 1}), class: ops.ErrCorrupt, says: "metadata item 6: id 01234567"},
		{name: "1,025 of users", file: with(users...), class: ops.ErrCorrupt, says: "1025 user entries, at most 1024"},
		{name: "a parent without a locator", file: noLocator, class: ops.ErrCorrupt, says: "vhdx: parent locator: 0 bytes"},
		{name: "a locator without a parent", file: with(fixture.Item{ID: locatorID, Flags: 4, Data: []byte("x")})},
	})
}

func TestH19TableTooShort(t *testing.T) {
	child := fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Parent: &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", "{01234567-89ab-4cde-8f01-23456789abcd}"}, {"relative_path", `.\p.vhdx`},
	}}}
	rows(t, "disk.vhdx", []row{
		{
			// 1 MiB of table is 131,072 entries: 131,041 blocks and 31 slots between their chunks.
			name: "as many blocks as the table holds",
			file: itemSays(small(), fixture.VHDXItemSize, le64(131_041<<20)),
		},
		{
			name: "a block more than the table holds",
			file: itemSays(small(), fixture.VHDXItemSize, le64(131_042<<20)), class: ops.ErrCorrupt, says: "bat: 131073 entries need 0x100008 bytes, the region has 0x100000",
		},
		{
			name: "64 TiB in a table of 1 MiB",
			file: itemSays(small(), fixture.VHDXItemSize, le64(64<<40)), class: ops.ErrCorrupt, says: "bat: 67125247 entries need 0x2001fff8 bytes, the region has 0x100000",
		},
		{
			name: "4 GiB of blocks of 256 MiB of a child in a short table",
			file: itemSays(child, fixture.VHDXItemSize, le64(131_072<<20)), class: ops.ErrCorrupt, says: "bat: 131104 entries",
		},
	})
}
