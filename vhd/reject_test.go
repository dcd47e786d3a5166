package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// both patches the same field of both footers and repairs their checksums.
func both(off int64, data []byte) []fixture.VHDPatch {
	return []fixture.VHDPatch{{Part: "copy", Off: off, Data: data, Repair: true}, {Part: "tail", Off: off, Data: data, Repair: true}}
}

func hdr(off int64, data []byte) []fixture.VHDPatch {
	return []fixture.VHDPatch{{Part: "header", Off: off, Data: data, Repair: true}}
}

// A row for each field that section 11 of the sheet rejects, and H06-H12.
func TestRejected(t *testing.T) {
	smaller := fixture.VHD{Size: 9 << 20, BlockSize: 1 << 20}
	dynamic := fixture.VHD{Size: 9 << 20, Blocks: []int64{0, 2}}
	child := fixture.VHD{Size: 9 << 20, Type: 4, Blocks: []int64{0}, Parent: parent()}
	fixed := fixture.VHD{Size: 3 << 20, Type: 2}
	ones := be64(^uint64(0))
	for _, tt := range []struct {
		name    string
		v       fixture.VHD
		patches []fixture.VHDPatch
		class   error
		text    string
	}{
		{"fixed: no footer", fixture.VHD{Size: 3 << 20, Type: 2, NoTail: true}, nil, ops.ErrCorrupt, `footer: cookie "\x00\x00\x00\x00\x00\x00\x00\x00", want "conectix"`},
		{"fixed: too short", fixed, []fixture.VHDPatch{{Part: "tail", Off: 48, Data: be64(4 << 20), Repair: true}}, ops.ErrCorrupt, "disk of 4194304 bytes in a file with 3145728 before its footer"},
		{"fixed: huge", fixed, []fixture.VHDPatch{{Part: "tail", Off: 48, Data: be64(1<<63 + 512), Repair: true}}, ops.ErrCorrupt, "size 9223372036854776320"},
		{"fixed: size 0", fixed, []fixture.VHDPatch{{Part: "tail", Off: 48, Data: be64(0), Repair: true}}, ops.ErrCorrupt, "size 0 is not"},
		{"fixed: size not in sectors", fixed, []fixture.VHDPatch{{Part: "tail", Off: 48, Data: be64(1000), Repair: true}}, ops.ErrCorrupt, "size 1000 is not"},
		{"fixed: damaged and length disagrees", fixed, []fixture.VHDPatch{{Part: "tail", Off: 48, Data: be64(2 << 20)}}, ops.ErrCorrupt, "footer: checksum"},
		{"poisoned", dynamic, []fixture.VHDPatch{{Part: "tail", Off: 0, Data: []byte("v_poison")}}, ops.ErrForbidden, `cookie "v_poison"`},
		{"poisoned copy", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 0, Data: []byte("v_poison")}}, ops.ErrForbidden, `footer copy: cookie "v_poison"`},
		{"version 2", dynamic, both(12, be32(0x00020000)), ops.ErrCorrupt, "version 0x00020000"},
		{"type 0", dynamic, both(60, be32(0)), ops.ErrCorrupt, "disk type 0, want"},
		{"type 1", dynamic, both(60, be32(1)), ops.ErrCorrupt, "disk type 1, want"},
		{"type 5", dynamic, both(60, be32(5)), ops.ErrCorrupt, "disk type 5, want"},
		{"type 6", dynamic, both(60, be32(6)), ops.ErrCorrupt, "disk type 6, want"},
		{"type 2^32-1", dynamic, both(60, be32(0xffffffff)), ops.ErrCorrupt, "disk type 4294967295"},
		{"size over 2040 GiB", dynamic, both(48, be64(2040<<30+512)), ops.ErrCorrupt, "size 2190433321472 is over 2040 GiB"},
		{"size 0", dynamic, both(48, be64(0)), ops.ErrCorrupt, "size 0"},
		{"size not in sectors", dynamic, both(48, be64(9<<20+1)), ops.ErrCorrupt, "size 9437185"},
		{"size over the table", dynamic, both(48, be64(10<<20+512)), ops.ErrCorrupt, "5 blocks of 2097152 bytes do not hold a disk of 10486272"},
		{"both damaged differently", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 100, Data: []byte{1}}, {Part: "tail", Off: 100, Data: []byte{2}}}, ops.ErrCorrupt, "footer: checksum"},
		{"both damaged, table too long", fixture.VHD{Size: 9 << 20, Entries: 6}, []fixture.VHDPatch{{Part: "copy", Off: 100, Data: []byte{1}}, {Part: "tail", Off: 100, Data: []byte{1}}}, ops.ErrCorrupt, "footer: checksum"},
		{"no tail, copy damaged", fixture.VHD{Size: 9 << 20, NoTail: true}, []fixture.VHDPatch{{Part: "copy", Off: 100, Data: []byte{1}}}, ops.ErrCorrupt, "footer copy: checksum"},
		{"no copy, tail damaged", fixture.VHD{Size: 9 << 20, NoCopy: true}, []fixture.VHDPatch{{Part: "tail", Off: 100, Data: []byte{1}}}, ops.ErrCorrupt, "footer: checksum"},
		{"DataOffset 0", dynamic, both(16, be64(0)), ops.ErrCorrupt, "dynamic header at 0x0"},
		{"DataOffset unaligned", dynamic, both(16, be64(513)), ops.ErrCorrupt, "dynamic header at 0x201"},
		{"DataOffset all ones", dynamic, both(16, ones), ops.ErrCorrupt, "dynamic header at 0xffffffffffffffff"},
		{"DataOffset past the end", dynamic, both(16, be64(1<<40)), ops.ErrCorrupt, "dynamic header at 0x10000000000"},
		{"DataOffset in the footer", dynamic, both(16, be64(uint64(dynamic.Layout().Tail))), ops.ErrCorrupt, "dynamic header at"},
		{"header cookie", dynamic, hdr(0, []byte("cxsparsf")), ops.ErrCorrupt, `cookie "cxsparsf"`},
		{"header checksum", dynamic, []fixture.VHDPatch{{Part: "header", Off: 900, Data: []byte{1}}}, ops.ErrCorrupt, "dynamic header: checksum"},
		{"header version", dynamic, hdr(24, be32(0x00010001)), ops.ErrCorrupt, "dynamic header: version 0x00010001"},
		{"BlockSize 0", dynamic, hdr(32, be32(0)), ops.ErrCorrupt, "block size 0"},
		{"BlockSize 1", dynamic, hdr(32, be32(1)), ops.ErrCorrupt, "block size 1 "},
		{"BlockSize 256", dynamic, hdr(32, be32(256)), ops.ErrCorrupt, "block size 256 "},
		{"BlockSize 3 MiB", dynamic, hdr(32, be32(3<<20)), ops.ErrCorrupt, "block size 3145728"},
		{"BlockSize 512 MiB", dynamic, hdr(32, be32(512<<20)), ops.ErrCorrupt, "block size 536870912"},
		{"BlockSize 2^31", dynamic, hdr(32, be32(1<<31)), ops.ErrCorrupt, "block size 2147483648"},
		{"BlockSize 2^32-512", dynamic, hdr(32, be32(0xfffffe00)), ops.ErrCorrupt, "block size 4294966784"},
		{"no entries", dynamic, hdr(28, be32(0)), ops.ErrCorrupt, "0 table entries"},
		{"entries 2^32-1", dynamic, hdr(28, be32(0xffffffff)), ops.ErrCorrupt, "4294967295 table entries"},
		{"entries for another size", dynamic, hdr(28, be32(4)), ops.ErrCorrupt, "4 blocks of 2097152"},
		{"table longer than the file", dynamic, hdr(28, be32(60<<20)), ops.ErrCorrupt, "table of 62914560 entries at 0x600 ends past"},
		{"TableOffset 0", dynamic, hdr(16, be64(0)), ops.ErrCorrupt, "table offset 0x0"},
		{"TableOffset unaligned", dynamic, hdr(16, be64(1537)), ops.ErrCorrupt, "table offset 0x601"},
		{"TableOffset all ones", dynamic, hdr(16, ones), ops.ErrCorrupt, "table offset 0xffffffffffffffff"},
		{"TableOffset past the end", dynamic, hdr(16, be64(1<<62)), ops.ErrCorrupt, "table of 5 entries at 0x4000000000000000"},
		{"TableOffset at the footer", dynamic, hdr(16, be64(uint64(dynamic.Layout().Tail))), ops.ErrCorrupt, "ends past"},
		{"table over the header", dynamic, hdr(16, be64(1024)), ops.ErrCorrupt, "table at 0x400 overlaps the header at 0x200"},
		{"dynamic with a parent", child, both(60, be32(3)), ops.ErrCorrupt, "type is dynamic, but the header names parent"},
		{"differencing without a parent", dynamic, both(60, be32(4)), ops.ErrCorrupt, "header names no parent"},
		{"blktap 0.1", child, append(both(28, []byte("tap\x00")), both(32, be32(1))...), errors.ErrUnsupported, "blktap 0.1"},
		{"encrypted", fixture.VHD{Size: 9 << 20, Batmap: true, Creator: "tap\x00"}, []fixture.VHDPatch{{Part: "file", Off: 2048 + 29, Data: []byte{1}}}, errors.ErrUnsupported, "the disk is encrypted"},
		{"batmap past the end", fixture.VHD{Size: 9 << 20, Batmap: true, Creator: "tap\x00"}, []fixture.VHDPatch{{Part: "file", Off: 2048 + 16, Data: be32(1 << 31)}}, ops.ErrCorrupt, "batmap at 0x800"},
		{"two dynamic headers", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 16, Data: be64(16384 - 512), Repair: true}, {Part: "file", Off: 16384 - 512, Data: smaller.Bytes()[512:1536]}}, ops.ErrCorrupt, "dynamic header at 0x200, but at 0x3e00 by the copy"},
		{"trailing garbage", fixture.VHD{Size: 3 << 20, Type: 2, Trailing: append(make([]byte, 3*512-1), 1)}, nil, ops.ErrCorrupt, "footer: 1536 bytes follow the one at 0x300000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.v.Patches = append(tt.v.Patches, tt.patches...)
			h := disk(tt.v.Bytes())
			_, err := tryOpen(t, h)
			require.ErrorIs(t, err, tt.class)
			require.ErrorContains(t, err, tt.text)
			mine, err := probe(openFile(t, h, ops.Read), ".vhd")
			require.NoError(t, err)
			require.Equal(t, tt.name != "fixed: no footer", mine)
		})
	}
}

// H01, H02: files that are too short to be anything.
func TestShortFiles(t *testing.T) {
	for _, b := range [][]byte{nil, {1}, make([]byte, 511), make([]byte, 512), make([]byte, 513), make([]byte, 4096), []byte("conectix"), bytes.Repeat([]byte("conectix"), 64)} {
		t.Run(fmt.Sprintf("%d bytes", len(b)), func(t *testing.T) {
			h := disk(b)
			_, err := tryOpen(t, h)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			_, err = probe(openFile(t, h, ops.Read), ".vhd")
			require.NoError(t, err)
		})
	}
}

// Oddities that open, with the anomaly named and, where a write could make them
// worse, without writing.
func TestTolerated(t *testing.T) {
	dynamic := fixture.VHD{Size: 9 << 20, Blocks: []int64{0, 2}, Writes: someWrites()}
	fixed := fixture.VHD{Size: 3 << 20, Type: 2}
	tail := func(off int64, data []byte) []fixture.VHDPatch {
		return []fixture.VHDPatch{{Part: "tail", Off: off, Data: data, Repair: true}}
	}
	for _, tt := range []struct {
		name     string
		v        fixture.VHD
		patches  []fixture.VHDPatch
		anomaly  string // "" for none
		readOnly string
	}{
		{"fixed: space before the footer", fixed, tail(48, be64(2<<20)), "vhd.length", ""},
		{"fixed: DataOffset of 32 bits", fixed, tail(16, be64(0xffffffff)), "", ""},
		{"fixed: geometry 0", fixed, tail(56, be32(0)), "", ""},
		{"fixed: wrong checksum", fixed, []fixture.VHDPatch{{Part: "tail", Off: 100, Data: []byte{1}}}, "vhd.footer.checksum", "the footer's checksum is wrong"},
		{"features 0", dynamic, both(8, be32(0)), "", ""},
		{"reserved byte", dynamic, both(200, []byte{7}), "", ""},
		{"original size", dynamic, both(40, be64(1<<20)), "", ""},
		{"saved state", dynamic, both(84, []byte{1}), "vhd.savedstate", "the disk belongs to the saved state of a machine"},
		{"version 1.7", dynamic, both(12, be32(0x00010007)), "", ""},
		{"no tail", fixture.VHD{Size: 9 << 20, NoTail: true, Writes: someWrites()}, nil, "vhd.footer.end", ""},
		{"tail damaged", dynamic, []fixture.VHDPatch{{Part: "tail", Off: 100, Data: []byte{1}}}, "vhd.footer.end", ""},
		{"no copy", fixture.VHD{Size: 9 << 20, NoCopy: true, Writes: someWrites()}, nil, "vhd.footer.copy", ""},
		{"copy damaged", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 100, Data: []byte{1}}}, "vhd.footer.copy", ""},
		{"sizes differ", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 48, Data: be64(8 << 20), Repair: true}}, "vhd.footer.differ", ""},
		{"size of the copy does not fit", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 48, Data: be64(11 << 20), Repair: true}}, "vhd.footer.differ", "the footers at the end and at 0 differ"},
		{"ids differ", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 68, Data: []byte{1}, Repair: true}}, "vhd.footer.differ", "the footers at the end and at 0 differ"},
		{"types differ", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 60, Data: be32(4), Repair: true}}, "vhd.footer.differ", "the footers at the end and at 0 differ"},
		{"copy says fixed", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 60, Data: be32(2), Repair: true}}, "vhd.footer.differ", "the footers at the end and at 0 differ"},
		{"copy of no header", dynamic, []fixture.VHDPatch{{Part: "copy", Off: 16, Data: be64(4096), Repair: true}}, "vhd.footer.differ", "the footers at the end and at 0 differ"},
		{"half a sector at the end", fixture.VHD{Size: 9 << 20, Trailing: []byte("x")}, nil, "vhd.footer.end", "the file's length 8193 is no whole number of sectors"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.v.Patches = append(tt.v.Patches, tt.patches...)
			h := disk(tt.v.Bytes())
			l, err := tryOpen(t, h)
			require.NoError(t, err)
			var want []string
			if tt.anomaly != "" {
				want = []string{tt.anomaly}
			}
			require.Equal(t, want, names(l.Info().Anomalies))
			require.Equal(t, tt.readOnly, l.Info().ReadOnly)
			got, err := readLayer(l, 0, l.Size(), 0)
			require.NoError(t, err)
			require.Equal(t, model(tt.v, 0)[:l.Size()], got)
		})
	}
}

// H11: a bad BAT entry fails reads of its block, and no other.
func TestBadTableEntries(t *testing.T) {
	base := fixture.VHD{Size: 9 << 20, Writes: someWrites()}
	lay := base.Layout()
	for _, tt := range []struct {
		name   string
		sector uint32
		text   string
	}{
		{"footer copy", 0, "vhd: bat entry 1: block at 0x0 overlaps the footer copy at 0x0"},
		{"dynamic header", 2, "overlaps the dynamic header at 0x200"},
		{"table", 3, "overlaps the block table at 0x600"},
		{"end footer", uint32(lay.Tail / 512), "vhd: bat entry 1: offset 0x604e00 past end of file 0x604e00"},
		{"past the end", 0x10000000, "vhd: bat entry 1: offset 0x2000000000 past end of file"},
		{"largest", 0xfffffffe, "vhd: bat entry 1: offset 0x1fffffffc00 past end of file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := base
			v.BAT = map[int64]uint32{1: tt.sector}
			l := mustOpen(t, v.Bytes())
			_, err := readLayer(l, 2<<20, 2<<20, 0)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, tt.text)
			_, err = l.Extent(3<<20, 512)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			for _, b := range []int64{0, 3} {
				got, err := readLayer(l, b*2<<20, 2<<20, 0)
				require.NoError(t, err)
				require.Equal(t, model(base, 0)[b*2<<20:(b+1)*2<<20], got)
			}
			require.Contains(t, names(findings(t, l)), "vhd.bat")
		})
	}
}

func findings(t testing.TB, l ops.Layer) []ops.Anomaly {
	t.Helper()
	var out []ops.Anomaly
	c, ok := l.(ops.Checker)
	if !ok {
		return nil // fixed: there is nothing to look at
	}
	require.NoError(t, c.Check(t.Context(), func(a ops.Anomaly) { out = append(out, a) }))
	return out
}

func TestCheckNamesOverlapsAndLeaks(t *testing.T) {
	sound := fixture.VHD{Size: 9 << 20, Writes: someWrites(), Blocks: []int64{3, 0}}
	require.Empty(t, findings(t, mustOpen(t, sound.Bytes())))
	at := uint32(sound.Layout().Blocks[0] / 512)
	for _, tt := range []struct {
		name string
		v    fixture.VHD
		want []string
		text string
	}{
		{"same block twice", fixture.VHD{BAT: map[int64]uint32{1: at}}, []string{"vhd.bat"}, "overlaps block 0 at"},
		{"half of a block", fixture.VHD{BAT: map[int64]uint32{1: at + 2048}}, []string{"vhd.bat", "vhd.bitmap.data"}, "overlaps block 0 at"},
		{"leak", fixture.VHD{BAT: map[int64]uint32{1: 0xffffffff}}, []string{"vhd.leak"}, "2114048 bytes of the file belong to no block"},
		{"hidden data", fixture.VHD{Patches: []fixture.VHDPatch{{Part: "file", Off: sound.Layout().Blocks[0], Data: make([]byte, 512)}}}, []string{"vhd.bitmap.data"}, "block 0: data in sector 0 under a clear bit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := sound
			v.BAT, v.Patches = tt.v.BAT, tt.v.Patches
			got := findings(t, mustOpen(t, v.Bytes()))
			require.Equal(t, tt.want, names(got))
			require.Contains(t, got[0].Text, tt.text)
		})
	}
}

// A table of zeros, each of which leads to the footer copy, is given up soon.
func TestCheckGivesUpOnATableOfNonsense(t *testing.T) {
	v := fixture.VHD{Size: 64 << 20, BlockSize: 512}
	b := v.Bytes()
	clear(b[v.Layout().BAT:v.Layout().Tail])
	got := findings(t, mustOpen(t, b))
	require.Len(t, got, maxBadEntries+1)
	require.Equal(t, "vhd: block table: over 10000 entries are bad, those from 10000 on were not looked at", got[maxBadEntries].Text)
}
