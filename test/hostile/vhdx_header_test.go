package hostile

import (
	"encoding/binary"
	"testing"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

func le16(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// headersSay puts bytes at off of both headers, checksums right.
func headersSay(v fixture.VHDX, off int64, data []byte) fixture.VHDX {
	v.Patches = append(v.Patches,
		fixture.Patch{Off: fixture.VHDXHeader1 + off, Data: data, Repair: true},
		fixture.Patch{Off: fixture.VHDXHeader2 + off, Data: data, Repair: true})
	return v
}

// dirty is the small disk with one entry in its log that changes nothing.
func dirty() fixture.VHDX {
	v := small()
	v.Log = &fixture.Log{Entries: []fixture.LogEntry{{}}}
	return v
}

func TestH15HeaderPair(t *testing.T) {
	pair := func(bad [2]bool, seq [2]uint64) fixture.VHDX {
		v := small()
		v.BadHeader, v.Sequence = bad, seq
		return v
	}
	differ := pair([2]bool{}, [2]uint64{5, 5})
	differ.Patches = []fixture.Patch{{Off: fixture.VHDXHeader2 + 16, Data: []byte{0xff}, Repair: true}}
	signature := func(copies ...int64) fixture.VHDX {
		v := small()
		for _, at := range copies {
			v.Patches = append(v.Patches, fixture.Patch{Off: at, Data: []byte("HEAD"), Repair: true})
		}
		return v
	}
	rows(t, "disk.vhdx", []row{
		{name: "both checksums wrong", file: pair([2]bool{true, true}, [2]uint64{}), class: ops.ErrCorrupt, says: "both headers...checksum"},
		{name: "both signatures wrong", file: signature(fixture.VHDXHeader1, fixture.VHDXHeader2), class: ops.ErrCorrupt, says: `both headers...signature "HEAD"`},
		{name: "the older is bad", file: pair([2]bool{true, false}, [2]uint64{}), odd: []string{"vhdx.header.invalid"}},
		{name: "the newer is bad", file: pair([2]bool{false, true}, [2]uint64{}), odd: []string{"vhdx.header.invalid"}},
		{name: "one signature wrong", file: signature(fixture.VHDXHeader2), odd: []string{"vhdx.header.invalid"}},
		{name: "equal and the same, as of Disk2vhd", file: pair([2]bool{}, [2]uint64{5, 5}), odd: []string{"vhdx.header.equal"}},
		{name: "equal and different", file: differ, class: ops.ErrCorrupt, says: "sequence number 5"},
		{name: "number at its end", file: pair([2]bool{}, [2]uint64{1<<64 - 2, 1<<64 - 1}), readOnly: "sequence number"},
		{name: "number at its end, the first", file: pair([2]bool{}, [2]uint64{1<<64 - 1, 7}), readOnly: "sequence number"},
		{name: "the first is newer", file: pair([2]bool{}, [2]uint64{9, 8})},
		{name: "number one before its end, the other bad", file: pair([2]bool{true, false}, [2]uint64{1, 1<<64 - 1}), odd: []string{"vhdx.header.invalid"}, readOnly: "sequence number"},
	})
}

func TestH16HeaderFields(t *testing.T) {
	family := []row{
		{name: "log version 1, log empty", file: headersSay(small(), 64, le16(1))},
		{name: "reserved bytes set", file: headersSay(small(), 80, []byte("anything goes"))},
	}
	for _, c := range []struct {
		name string
		off  int64
		data []byte
		says string
	}{
		{"version 0", 66, le16(0), "header: version 0, want 1"},
		{"version 2", 66, le16(2), "header: version 2, want 1"},
		{"version 65535", 66, le16(65535), "header: version 65535, want 1"},
		{"log version 1", 64, le16(1), "header: log version 1, want 0"},
		{"log version 65535", 64, le16(65535), "header: log version 65535, want 0"},
		{"log length 0", 68, le32(0), "header: log length 0x0"},
		{"log length 4 KiB", 68, le32(4096), "header: log length 0x1000"},
		{"log length 1 MiB and a byte", 68, le32(1<<20 + 1), "header: log length 0x100001"},
		{"log length 4 GiB less a byte", 68, le32(1<<32 - 1), "header: log length 0xffffffff"},
		{"log length 4 GiB less 1 MiB", 68, le32(1<<32 - 1<<20), "header: log at 0x100000 of 0xfff00000 bytes past end of file 0x700000"},
		{"log offset 0", 72, le64(0), "header: log offset 0x0"},
		{"log offset in the headers", 72, le64(0x10000), "header: log offset 0x10000"},
		{"log offset unaligned", 72, le64(0x100200), "header: log offset 0x100200"},
		{"log at the end of the file", 72, le64(0x700000), "header: log at 0x700000 of 0x100000 bytes past end of file 0x700000"},
		{"log beyond the end of the file", 72, le64(0x7_0000_0000), "header: log at 0x700000000"},
		{"log offset 2^63", 72, le64(1 << 63), "header: log at 0x8000000000000000"},
		{"log offset 2^64 - 1 MiB", 72, le64(1<<64 - 1<<20), "header: log at 0xfffffffffff00000"},
		{"log over the metadata", 72, le64(0x200000), "overlaps the log at 0x200000"},
		{"log over the BAT", 72, le64(0x300000), "overlaps the log at 0x300000"},
		{"log that reaches into the metadata", 68, le32(2 << 20), "region at 0x200000 overlaps the log at 0x100000"},
	} {
		family = append(family, row{name: c.name, file: headersSay(dirty(), c.off, c.data), class: ops.ErrCorrupt, says: c.says})
	}
	rows(t, "disk.vhdx", family)
}

// The blocks of the small disk must not lie in its log either.
func TestH16BlocksInLog(t *testing.T) {
	v := headersSay(small(), 72, le64(4<<20)) // over block 0
	rows(t, "disk.vhdx", []row{{
		name: "log over block 0", file: v, bad: blocks(mib, 0), badRead: ops.ErrCorrupt,
		says: "bat entry 0...0x400000", found: []string{"bat entry 0"},
	}})
}

// regionsSay puts bytes at off of both region tables, checksums right.
func regionsSay(v fixture.VHDX, patches ...fixture.Patch) fixture.VHDX {
	for _, at := range []int64{fixture.VHDXRegion1, fixture.VHDXRegion2} {
		for _, p := range patches {
			v.Patches = append(v.Patches, fixture.Patch{Off: at + p.Off, Data: p.Data, Repair: true})
		}
	}
	return v
}

var unknownID = fixture.MustGUID("01234567-89ab-4cde-8f01-23456789abcd")

// regionEntry is a region table entry: BAT and metadata are 0 and 1.
func regionEntry(i int64, id [16]byte, off uint64, length uint32, required byte) fixture.Patch {
	b := make([]byte, 32)
	fixture.PutGUID(b, id)
	copy(b[16:], le64(off))
	copy(b[24:], le32(length))
	b[28] = required
	return fixture.Patch{Off: 16 + 32*i, Data: b}
}

func TestH17RegionTable(t *testing.T) {
	batID := fixture.MustGUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
	metaID := fixture.MustGUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
	count := func(n uint32) fixture.Patch { return fixture.Patch{Off: 8, Data: le32(n)} }
	bat := func(off uint64, n uint32) fixture.Patch { return regionEntry(0, batID, off, n, 1) }
	meta := func(off uint64, n uint32) fixture.Patch { return regionEntry(1, metaID, off, n, 1) }
	third := func(id [16]byte, off uint64, n uint32, required byte) []fixture.Patch {
		return []fixture.Patch{count(3), regionEntry(2, id, off, n, required)}
	}
	var family []row
	for _, c := range []struct {
		name    string
		patches []fixture.Patch
		says    string
	}{
		{"no entries", []fixture.Patch{count(0)}, "region table: no BAT or no metadata"},
		{"2,047 entries, most of them zeros", []fixture.Patch{count(2047)}, "region 2: offset 0x0"},
		{"2,048 entries", []fixture.Patch{count(2048)}, "2048 entries, at most 2047"},
		{"2^32-1 entries", []fixture.Patch{count(1<<32 - 1)}, "4294967295 entries, at most 2047"},
		{"signature", []fixture.Patch{{Off: 0, Data: []byte("REGI")}}, `signature "REGI"`},
		{"two BATs", third(batID, 0x600000, 1<<20, 1), "region 2: id 2dc27766"},
		{"two metadata regions", third(metaID, 0x600000, 1<<20, 1), "region 2: id 8b7ca206"},
		{"no BAT", []fixture.Patch{regionEntry(0, unknownID, 0x300000, 1<<20, 0)}, "no BAT"},
		{"no metadata", []fixture.Patch{regionEntry(1, unknownID, 0x200000, 1<<20, 0)}, "no metadata"},
		{"unknown and required", third(unknownID, 0x600000, 1<<20, 1), "region 2: id 01234567-89ab-4cde-8f01-23456789abcd is required"},
		{"BAT at 0", []fixture.Patch{bat(0, 1<<20)}, "region 0: offset 0x0"},
		{"BAT at 64 KiB", []fixture.Patch{bat(0x10000, 1<<20)}, "region 0: offset 0x10000"},
		{"BAT below 1 MiB", []fixture.Patch{bat(0xfffff, 1<<20)}, "region 0: offset 0xfffff"},
		{"BAT at no whole MiB", []fixture.Patch{bat(0x300200, 1<<20)}, "region 0: offset 0x300200"},
		{"BAT at 2^64 - 1 MiB", []fixture.Patch{bat(1<<64-1<<20, 1<<20)}, "region 0: offset 0xfffffffffff00000"},
		{"BAT at 2^63", []fixture.Patch{bat(1<<63, 1<<20)}, "region 0: offset 0x8000000000000000"},
		{"BAT of no bytes", []fixture.Patch{bat(0x300000, 0)}, "region 0: length 0x0"},
		{"BAT of 4 KiB", []fixture.Patch{bat(0x300000, 4096)}, "region 0: length 0x1000"},
		{"BAT of 4 GiB less a byte", []fixture.Patch{bat(0x300000, 1<<32-1)}, "region 0: length 0xffffffff"},
		{"BAT past the end of the file", []fixture.Patch{bat(0x700000, 1<<20)}, "bat: ...past end of file 0x700000"},
		{"metadata past the end of the file", []fixture.Patch{meta(0x700000, 1<<20)}, "metadata table: file ends at 0x700000"},
		{"BAT and metadata at one place", []fixture.Patch{bat(0x200000, 1<<20)}, "region at 0x200000 overlaps region at 0x200000"},
		{"metadata reaches into the BAT", []fixture.Patch{meta(0x200000, 2<<20)}, "region at 0x300000 overlaps region at 0x200000"},
		{"optional region over the BAT", third(unknownID, 0x300000, 1<<20, 0), "overlaps region at 0x300000"},
		{"BAT over the log", []fixture.Patch{bat(0x100000, 1<<20)}, "region at 0x100000 overlaps the log at 0x100000"},
		{"optional region over the log", third(unknownID, 0x100000, 1<<20, 0), "region at 0x100000 overlaps the log"},
	} {
		family = append(family, row{name: c.name, file: regionsSay(small(), c.patches...), class: ops.ErrCorrupt, says: c.says})
	}
	rows(t, "disk.vhdx", family)
}

func TestH17RegionTablesThatServe(t *testing.T) {
	table := func(bad [2]bool) fixture.VHDX {
		v := small()
		v.BadRegion = bad
		return v
	}
	optional := []fixture.Patch{{Off: 8, Data: le32(3)}, regionEntry(2, unknownID, 0x1000_0000, 1<<20, 0)}
	second := small()
	second.Patches = []fixture.Patch{{Off: fixture.VHDXRegion2 + 16 + 16, Data: le64(0x600000), Repair: true}}
	over := regionsSay(small(), fixture.Patch{Off: 8, Data: le32(3)}, regionEntry(2, unknownID, 0x500000, 1<<20, 0))
	notRequired := small()
	notRequired.NotRequired = true
	rows(t, "disk.vhdx", []row{
		{name: "both bad", file: table([2]bool{true, true}), class: ops.ErrCorrupt, says: "both region tables...checksum"},
		{name: "the first is bad", file: table([2]bool{true, false}), odd: []string{"vhdx.region.invalid"}},
		{name: "the second is bad", file: table([2]bool{false, true}), odd: []string{"vhdx.region.invalid"}},
		{name: "the second says something else", file: second, odd: []string{"vhdx.region.mismatch"}},
		{name: "an optional region behind the end", file: regionsSay(small(), optional...)},
		{name: "without the required bit, as of QEMU", file: notRequired},
		{
			name: "an optional region over block 3", file: over, bad: blocks(mib, 3), badRead: ops.ErrCorrupt,
			says: "bat entry 3...0x500000", found: []string{"bat entry 3"},
		},
	})
}
