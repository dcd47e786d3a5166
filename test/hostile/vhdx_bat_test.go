package hostile

import (
	"bytes"
	"testing"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

// The small disk's entry 3 is that of block 3, which lies at 5 MiB.
func entry3(raw uint64) fixture.VHDX {
	v := small()
	v.Entries = map[int64]uint64{3: raw}
	return v
}

func TestH20Entries(t *testing.T) {
	var family []row
	for _, c := range []struct {
		name string
		raw  uint64
		says string
	}{
		{"state 4", 5<<20 | 4, "bat entry 3: state 4"},
		{"state 5", 5<<20 | 5, "bat entry 3: state 5"},
		{"state 4 without offset", 4, "bat entry 3: state 4"},
		{"reserved bit 3", 5<<20 | 6 | 1<<3, "bat entry 3: reserved bits...0x50000e"},
		{"reserved bit 19", 5<<20 | 6 | 1<<19, "bat entry 3: reserved bits...0x580006"},
		{"reserved bits of a block that is not present", 1 << 10, "bat entry 3: reserved bits...0x400"},
		{"partially present without a parent", 5<<20 | 7, "bat entry 3: partially present"},
		{"present at 0", 6, "bat entry 3: offset 0x0"},
		{"in the log", 1<<20 | 6, "bat entry 3: block at 0x100000"},
		{"in the metadata", 2<<20 | 6, "bat entry 3: block at 0x200000"},
		{"in the BAT", 3<<20 | 6, "bat entry 3: block at 0x300000"},
		{"at the end of the file", 7<<20 | 6, "bat entry 3: offset 0x7...past end of file 0x700000"},
		{"past the end of the file", 99<<20 | 6, "bat entry 3: offset 0x63...past end of file 0x700000"},
		{"past every file", 1<<62 | 6, "bat entry 3: offset 0x4000000000000000"},
		{"at the greatest offset", 1<<64 - 1<<20 | 6, "bat entry 3: offset 0xfffffffffff00000"},
		{"all ones", 1<<64 - 1, "bat entry 3: reserved bits"},
	} {
		family = append(family, row{
			name: c.name, file: entry3(c.raw), bad: blocks(mib, 3), badRead: ops.ErrCorrupt,
			says: c.says, found: []string{"bat entry 3"},
		})
	}
	rows(t, "disk.vhdx", family)
}

func TestH20Overlaps(t *testing.T) {
	half := fixture.VHDX{Size: 8 * mib, BlockSize: 2 << 20, Writes: base}
	half.Entries = map[int64]uint64{1: 5<<20 | 6} // block 0 lies at 4 MiB and ends at 6 MiB
	zero := fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Writes: base, Entries: map[int64]uint64{3: 5<<20 | 2}}
	rows(t, "disk.vhdx", []row{
		{
			name: "two blocks at one place", file: entry3(4<<20 | 6), found: []string{"bat entry 3"},
			want: []fixture.Write{base[0], base[2], {Off: 3 * mib, Data: base[0].Data}},
		},
		{
			name: "half a block over another", file: half, found: []string{"bat entry 1"},
			want: overlapped(half),
		},
		{
			name: "a block of zeros that has an offset", file: zero, want: []fixture.Write{base[0], base[2]},
		},
		{
			name: "a sector bitmap in a disk without parent", // seen in the wild
			file: fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Writes: base, Entries: map[int64]uint64{4096: 5<<20 | 6}},
		},
	})
}

// overlapped is what the disk shows whose block 1 starts in the middle of block 0.
func overlapped(v fixture.VHDX) []fixture.Write {
	m, err := v.Build()
	if err != nil {
		panic(err)
	}
	return []fixture.Write{
		{Off: 0, Data: m.Get(4*mib, 2*mib)}, {Off: 2 * mib, Data: m.Get(5*mib, 2*mib)}, base[2],
	}
}

func TestH20SectorBitmaps(t *testing.T) {
	root := fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Writes: base}
	m, err := root.Build()
	if err != nil {
		t.Fatal(err)
	}
	child := func(raw map[int64]uint64) fixture.VHDX {
		return fixture.VHDX{
			Size: 8 * mib, BlockSize: 1 << 20, Entries: raw,
			Writes: []fixture.Write{{Off: mib, Data: bytes.Repeat([]byte("c"), 512)}},
			Parent: &fixture.Locator{Entries: [][2]string{{"parent_linkage", fixture.GUIDText(m.DataWriteGUID)}, {"relative_path", `.\root.vhdx`}}},
		}
	}
	want := append([]fixture.Write{{Off: mib, Data: bytes.Repeat([]byte("c"), 512)}}, base...)
	var family []row
	for _, c := range []struct {
		name string
		raw  map[int64]uint64
		says string
		at   string // what check names
	}{
		{"not there", map[int64]uint64{4096: 0}, "bat entry 4096: 0x0", "bat entry 1"},
		{"state 7", map[int64]uint64{4096: 4<<20 | 7}, "bat entry 4096: 0x400007", "bat entry 4096"},
		{"state 1", map[int64]uint64{4096: 4<<20 | 1}, "bat entry 4096: 0x400001", "bat entry 4096"},
		{"state 5", map[int64]uint64{4096: 4<<20 | 5}, "bat entry 4096: 0x400005", "bat entry 4096"},
		{"reserved bits", map[int64]uint64{4096: 4<<20 | 6 | 8}, "bat entry 4096: 0x40000e", "bat entry 4096"},
		{"present at 0", map[int64]uint64{4096: 6}, "bat entry 4096: offset 0x0", "bat entry 4096"},
		{"in the log", map[int64]uint64{4096: 1<<20 | 6}, "bat entry 4096: block at 0x100000", "bat entry 4096"},
		{"past the end of the file", map[int64]uint64{4096: 99<<20 | 6}, "0x6300000", "bat entry 4096"},
	} {
		family = append(family, row{
			name: c.name, file: child(c.raw), more: folder.Files{"root.vhdx": root},
			bad: blocks(mib, 1), badRead: ops.ErrCorrupt, says: c.says, want: want, found: []string{c.at},
		})
	}
	family = append(family, row{
		name: "as it should be", file: child(nil), more: folder.Files{"root.vhdx": root}, want: want,
	})
	rows(t, "disk.vhdx", family)
}

// States without content are zeros, never bytes of the file's beginning.
func TestH21AbsentBlocks(t *testing.T) {
	var family []row
	for state, name := range []string{"not present", "undefined", "zero", "unmapped"} {
		for _, anchor := range []uint64{0, 5 << 20} {
			v := fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Fixed: true, Writes: base}
			v.Entries = map[int64]uint64{0: uint64(state) | anchor, 3: uint64(state)}
			suffix := ""
			if anchor != 0 {
				suffix = " with an offset"
			}
			family = append(family, row{name: name + suffix, file: v, want: base[2:]})
		}
	}
	rows(t, "disk.vhdx", family)
}
