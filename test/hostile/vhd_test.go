package hostile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// patched is a VHD with bytes put at off of each part, checksums right.
func patched(v fixture.VHD, off int64, data []byte, parts ...string) fixture.VHD {
	for _, part := range parts {
		v.Patches = append(v.Patches, fixture.VHDPatch{Part: part, Off: off, Data: data, Repair: true})
	}
	return v
}

// broken is a VHD with wrong checksums in these parts.
func broken(v fixture.VHD, parts ...string) fixture.VHD {
	for _, part := range parts {
		at := int64(64)
		if part == "header" {
			at = 36
		}
		v.Patches = append(v.Patches, fixture.VHDPatch{Part: part, Off: at, Data: []byte{1, 2, 3, 4}})
	}
	return v
}

func TestH06FooterChecksums(t *testing.T) {
	noTail, nothing := smallVHD(), smallVHD()
	noTail.NoTail = true
	nothing.NoTail, nothing.NoCopy = true, true
	noCopy := smallVHD()
	noCopy.NoCopy = true
	fixed := fixture.VHD{Size: 8 * mib, Type: 2, Writes: base}
	trailing := smallVHD()
	trailing.Trailing = make([]byte, 512)
	behind := bytes.Repeat([]byte{1}, 512)
	twoWrong := broken(smallVHD(), "tail")
	twoWrong.Patches = append(twoWrong.Patches, fixture.VHDPatch{Part: "copy", Off: 64, Data: []byte{9, 9, 9, 9}})
	rows(t, "disk.vhd", []row{
		{name: "end wrong, copy good", file: broken(smallVHD(), "tail"), odd: []string{"vhd.footer.end"}},
		{name: "end missing, copy good", file: noTail, odd: []string{"vhd.footer.end"}},
		{name: "end good, copy wrong", file: broken(smallVHD(), "copy"), odd: []string{"vhd.footer.copy"}},
		{name: "end good, copy missing", file: noCopy, odd: []string{"vhd.footer.copy"}},
		{name: "end and copy wrong", file: twoWrong, class: ops.ErrCorrupt, says: "vhd: footer: checksum 0x01020304"},
		{
			name: "end and copy wrong in the same way", // written by a tool that computes it otherwise
			file: broken(smallVHD(), "tail", "copy"), odd: []string{"vhd.footer.checksum"}, readOnly: "checksum",
		},
		{name: "end wrong, no copy", file: broken(noCopy, "tail"), class: ops.ErrCorrupt, says: "vhd: footer: checksum 0x01020304"},
		{name: "neither", file: nothing, class: ops.ErrCorrupt, says: "disk.vhd"},
		{name: "of a fixed disk", file: broken(fixed, "tail"), odd: []string{"vhd.footer.checksum"}, readOnly: "checksum"},
		{name: "of a fixed disk cut short", file: broken(fixture.VHD{Size: 8 * mib, Type: 2, Patches: []fixture.VHDPatch{
			{Part: "tail", Off: 48, Data: be64(16 << 20)}}}, "tail"), class: ops.ErrCorrupt, says: "vhd: footer: checksum 0x01020304"},
		{name: "header", file: broken(smallVHD(), "header"), class: ops.ErrCorrupt, says: "vhd: dynamic header: checksum 0x01020304"},
		{name: "header's cookie", file: patched(smallVHD(), 0, []byte("CXSPARSE"), "header"), class: ops.ErrCorrupt, says: `vhd: dynamic header: cookie "CXSPARSE"`},
		{name: "header's version", file: patched(smallVHD(), 24, be32(0x20000), "header"), class: ops.ErrCorrupt, says: "vhd: dynamic header: version 0x00020000"},
		{name: "a sector behind the end footer", file: trailing, odd: []string{"vhd.footer.end"}},
		{name: "a sector behind a fixed disk's footer", file: fixture.VHD{Size: 8 * mib, Type: 2, Trailing: behind}, class: ops.ErrCorrupt, says: "vhd: footer: 512 bytes follow the one at 0x800000"},
		{name: "zeros behind a fixed disk's footer", file: fixture.VHD{Size: 8 * mib, Type: 2, Writes: base, Trailing: make([]byte, 512)}, odd: []string{"vhd.footer.end"}},
	})
}

func TestH07FootersDiffer(t *testing.T) {
	differ := []string{"vhd.footer.differ"}
	rows(t, "disk.vhd", []row{
		{name: "id", file: patched(smallVHD(), 68, bytes.Repeat([]byte{7}, 16), "copy"), odd: differ, readOnly: "differ"},
		{name: "type 2 at 0", file: patched(smallVHD(), 60, be32(2), "copy"), odd: differ, readOnly: "differ"},
		{name: "type 4 at 0", file: patched(smallVHD(), 60, be32(4), "copy"), odd: differ, readOnly: "differ"},
		{name: "type 9 at 0", file: patched(smallVHD(), 60, be32(9), "copy"), odd: differ, readOnly: "differ"},
		{name: "creator", file: patched(smallVHD(), 28, []byte("evil"), "copy"), odd: differ, readOnly: "differ"},
		{name: "smaller at 0, as a crash leaves it", file: patched(smallVHD(), 48, be64(4<<20), "copy"), odd: differ},
		{name: "time stamp at 0", file: patched(smallVHD(), 24, be32(99), "copy"), odd: differ},
		{name: "larger at 0 than the table", file: patched(smallVHD(), 48, be64(80<<20), "copy"), odd: differ, readOnly: "differ"},
		{name: "size 0 at 0", file: patched(smallVHD(), 48, be64(0), "copy"), odd: differ, readOnly: "differ"},
		{
			name: "smaller at the end", file: patched(smallVHD(), 48, be64(4<<20), "tail"), odd: differ,
			want: base[:2],
		},
		{name: "type 4 at the end", file: patched(smallVHD(), 60, be32(4), "tail"), class: ops.ErrCorrupt, says: "type is differencing, but the header names no parent"},
	})
}

func TestH08BlockSize(t *testing.T) {
	var family []row
	for _, n := range []uint32{0, 1, 511, 513, 1000, 3 << 20, 1<<21 + 512, 512 << 20, 1 << 31, 1<<32 - 512, 1<<32 - 1} {
		family = append(family, row{
			name: fmt.Sprint(n), file: patched(smallVHD(), 32, be32(n), "header"),
			class: ops.ErrCorrupt, says: fmt.Sprintf("vhd: dynamic header: block size %d ", n),
		})
	}
	for _, n := range []uint32{512, 4096, 512 << 10, 256 << 20} {
		family = append(family, row{
			name: fmt.Sprintf("%d is allowed", n),
			file: fixture.VHD{Size: 8 * mib, BlockSize: n, Writes: base[:1]}, want: base[:1],
		})
	}
	rows(t, "disk.vhd", family)
}

func TestH09TableEntries(t *testing.T) {
	entries := func(n uint32) fixture.VHD { return patched(smallVHD(), 28, be32(n), "header") }
	product := patched(entries(1<<26), 32, be32(1<<28), "header")
	product = patched(product, 48, be64(1<<63), "tail", "copy")
	rows(t, "disk.vhd", []row{
		{name: "none", file: entries(0), class: ops.ErrCorrupt, says: "vhd: dynamic header: 0 table entries"},
		{name: "one too few", file: entries(3), class: ops.ErrCorrupt, says: "vhd: dynamic header: 3 blocks of 2097152 bytes do not hold a disk of 8388608"},
		{name: "2^32-1", file: entries(1<<32 - 1), class: ops.ErrCorrupt, says: "vhd: dynamic header: 4294967295 table entries"},
		{name: "2^31", file: entries(1 << 31), class: ops.ErrCorrupt, says: "vhd: dynamic header: 2147483648 table entries"},
		{name: "one over the bound", file: entries(64<<20 + 1), class: ops.ErrCorrupt, says: "vhd: dynamic header: 67108865 table entries"},
		{name: "past the end of the file", file: entries(8 << 20), class: ops.ErrCorrupt, says: "vhd: dynamic header: table of 8388608 entries at 0x600 ends past"},
		{name: "a product past 2^54 and a size of 2^63", file: product, class: ops.ErrCorrupt, says: "size 9223372036854775808"},
		{name: "more than needed, as of blktap", file: func() fixture.VHD { v := smallVHD(); v.Entries = 1000; return v }()},
	})
}

func TestH10Offsets(t *testing.T) {
	var family []row
	for _, c := range []struct {
		name string
		off  uint64
		says string
	}{
		{"0", 0, "0x0"},
		{"in the copy", 100, "0x64"},
		{"unaligned", 513, "0x201"},
		{"at the end footer", 0x604e00, "0x604e00"},
		{"past the end", 1 << 40, "0x10000000000"},
		{"2^63", 1 << 63, "0x8000000000000000"},
		{"2^64-512", 1<<64 - 512, "0xfffffffffffffe00"},
		{"2^64-1", 1<<64 - 1, "0xffffffffffffffff"},
	} {
		family = append(family,
			row{
				name: "header at " + c.name, file: patched(smallVHD(), 16, be64(c.off), "tail", "copy"),
				class: ops.ErrCorrupt, says: "vhd: footer: dynamic header at " + c.says,
			},
			row{
				name: "table at " + c.name, file: patched(smallVHD(), 16, be64(c.off), "header"),
				class: ops.ErrCorrupt, says: "vhd: dynamic header: table..." + c.says,
			},
		)
	}
	family = append(family,
		row{name: "header a sector before the end footer", file: patched(smallVHD(), 16, be64(0x604c00), "tail", "copy"), class: ops.ErrCorrupt, says: "vhd: footer: dynamic header at 0x604c00"},
		row{
			name: "table over the sector before the end footer, zeros", file: patched(smallVHD(), 16, be64(0x604c00), "header"),
			bad: blocks(8*mib, 0), badRead: ops.ErrCorrupt, says: "vhd: bat entry ...block at 0x0 overlaps the footer copy",
			found: []string{"bat entry 0", "bat entry 1", "bat entry 2", "bat entry 3"},
		},
		row{name: "header in the table", file: patched(smallVHD(), 16, be64(1536), "tail", "copy"), class: ops.ErrCorrupt, says: "vhd: dynamic header: cookie"},
		row{name: "table in the header", file: patched(smallVHD(), 16, be64(1024), "header"), class: ops.ErrCorrupt, says: "table at 0x400 overlaps the header at 0x200"},
	)
	require.EqualValues(t, 0x605000, smallVHD().Layout().Len, "the rows at the end of the file depend on it")
	rows(t, "disk.vhd", family)
}

func TestH11Entries(t *testing.T) {
	entry := func(s uint32) fixture.VHD {
		v := smallVHD()
		v.BAT = map[int64]uint32{1: s}
		return v
	}
	two := int64(2 * mib)
	var family []row
	for _, c := range []struct {
		name   string
		sector uint32
		says   string
	}{
		{"in the copy", 0, "vhd: bat entry 1: block at 0x0 overlaps the footer copy"},
		{"in the header", 1, "vhd: bat entry 1: block at 0x200 overlaps the dynamic header"},
		{"in the table", 3, "vhd: bat entry 1: block at 0x600 overlaps the block table"},
		{"at the end footer", 0x604e00 / 512, "vhd: bat entry 1: offset 0x604e00 past end of file 0x604e00"},
		{"past the end", 0x604e00/512 + 100, "vhd: bat entry 1: offset 0x611600 past end of file 0x604e00"},
		{"as far as it goes", 0xfffffffe, "vhd: bat entry 1: offset 0x1fffffffc00 past end of file"},
		{"2^31", 1 << 31, "vhd: bat entry 1: offset 0x10000000000 past end of file"},
	} {
		family = append(family, row{
			name: c.name, file: entry(c.sector), bad: blocks(two, 1), badRead: ops.ErrCorrupt,
			says: c.says, found: []string{"bat entry 1"},
		})
	}
	lay := smallVHD().Layout()
	family = append(family,
		row{
			name: "two blocks at one place", file: entry(uint32(lay.Blocks[0] / 512)), found: []string{"bat entry 1"},
			want: []fixture.Write{base[0], base[2], {Off: two, Data: base[0].Data}},
		},
		row{
			name: "a bitmap over a block's last sector", file: entry(uint32(lay.Blocks[0]/512) + 4096), found: []string{"bat entry 1"},
			want: func() []fixture.Write {
				at := lay.Blocks[0] + 4096*512 + 512
				return []fixture.Write{base[0], base[2], {Off: two, Data: smallVHD().Bytes()[at : at+two]}}
			}(),
		},
		row{
			name: "half a block over another", file: entry(uint32(lay.Blocks[0]/512) + 2048), found: []string{"bat entry 1"},
			want: func() []fixture.Write {
				b := entry(0).Bytes()
				at := lay.Blocks[0] + 2048*512 + 512
				return []fixture.Write{base[0], base[2], {Off: two, Data: b[at : at+two]}}
			}(),
		},
	)
	rows(t, "disk.vhd", family)
}

func TestH12FooterFields(t *testing.T) {
	size := func(n uint64) fixture.VHD { return patched(smallVHD(), 48, be64(n), "tail", "copy") }
	fixed := fixture.VHD{Size: 8 * mib, Type: 2, Writes: base}
	var family []row
	for _, n := range []uint64{0, 1, 511, 1000, 8<<20 + 1, 2040<<30 + 512, 1 << 52, 1 << 62, 1<<63 - 512, 1 << 63, 1<<64 - 512, 1<<64 - 1} {
		family = append(family, row{name: fmt.Sprintf("size %d", n), file: size(n), class: ops.ErrCorrupt, says: fmt.Sprintf("vhd: footer: size %d ", n)})
	}
	for _, n := range []uint32{0, 1, 5, 6, 7, 0x102, 1<<32 - 1} {
		family = append(family, row{
			name: fmt.Sprintf("type %d", n), file: patched(smallVHD(), 60, be32(n), "tail", "copy"),
			class: ops.ErrCorrupt, says: fmt.Sprintf("vhd: footer: disk type %d,", n),
		})
	}
	for _, n := range []uint32{0, 0x20000, 0xffff0000, 1} {
		family = append(family, row{
			name: fmt.Sprintf("version %#08x", n), file: patched(smallVHD(), 12, be32(n), "tail", "copy"),
			class: ops.ErrCorrupt, says: fmt.Sprintf("vhd: footer: version %#08x,", n),
		})
	}
	family = append(family,
		row{name: "fixed, larger than its file", file: patched(fixed, 48, be64(8<<20+512), "tail"), class: ops.ErrCorrupt, says: "vhd: footer: disk of 8389120 bytes in a file with 8388608"},
		row{name: "fixed of 4 EiB", file: patched(fixed, 48, be64(1<<62), "tail"), class: ops.ErrCorrupt, says: "vhd: footer: disk of 4611686018427387904 bytes"},
		row{name: "fixed, smaller than its file", file: patched(fixed, 48, be64(4<<20), "tail"), want: base[:2], odd: []string{"vhd.length"}},
		row{name: "saved state", file: patched(smallVHD(), 84, []byte{1}, "tail", "copy"), odd: []string{"vhd.savedstate"}, readOnly: "saved state"},
		row{name: "geometry of zeros", file: patched(smallVHD(), 56, make([]byte, 4), "tail", "copy")},
		row{name: "geometry of all ones", file: patched(smallVHD(), 56, be32(1<<32-1), "tail", "copy")},
		row{name: "geometry of half the size", file: patched(smallVHD(), 56, be16(100), "tail", "copy")},
	)
	rows(t, "disk.vhd", family)
}
