package vhd

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// T1: a differencing disk is no dynamic one: what it does not hold is absent,
// never zeros, inside its blocks too.
func TestTrapT1DifferencingIsNotDynamic(t *testing.T) {
	l := mustOpen(t, fixture.VHD{Size: 5 << 20, Type: 4, Parent: parent(), Writes: []fixture.Write{{Off: 1024, Data: make([]byte, 512)}}}.Bytes())
	for _, tt := range []struct {
		off, len int64
		kind     ops.Kind
	}{
		{0, 1024, ops.Absent}, {1024, 512, ops.Data}, {1536, 2<<20 - 1536, ops.Absent}, {2 << 20, 3 << 20, ops.Absent},
	} {
		e, err := l.Extent(tt.off, 1<<40)
		require.NoError(t, err)
		require.Equal(t, tt.kind, e.Kind, "at %d", tt.off)
		require.Equal(t, tt.len, e.Len, "at %d", tt.off)
	}
}

// T2: the space field of a locator counts bytes for some and sectors for others.
func TestTrapT2LocatorSpaceUnits(t *testing.T) {
	for _, sectors := range []bool{false, true} {
		p := parent()
		for i := range p.Locators {
			p.Locators[i].Sectors = sectors
		}
		l := mustOpen(t, fixture.VHD{Size: 5 << 20, Type: 4, Parent: p}.Bytes())
		require.Equal(t, []ops.ParentPath{
			{Kind: ops.PathRelative, Path: `.\p.vhd`}, {Kind: ops.PathAbsolute, Path: `C:\vm\p.vhd`}, {Kind: ops.PathName, Path: "p.vhd"},
		}, l.Info().Parent.Paths)
		require.Empty(t, l.Info().Anomalies)
	}
}

// T3, H31: a fixed disk stays fixed, whatever its guest writes into its first
// sectors: even a whole dynamic disk with a parent, and even when the footer at
// the end is damaged.
func TestTrapT3FixedStaysFixed(t *testing.T) {
	forged := fixture.VHD{Size: 3 << 20, Type: 4, Parent: parent()}.Bytes()
	v := fixture.VHD{Size: 3 << 20, Type: 2, Writes: []fixture.Write{{Data: forged}}}
	for name, patches := range map[string][]fixture.VHDPatch{
		"sound":   nil,
		"damaged": {{Part: "tail", Off: 100, Data: []byte{1}}},
	} {
		t.Run(name, func(t *testing.T) {
			v.Patches = patches
			l := mustOpen(t, v.Bytes())
			require.Equal(t, ops.Fixed, l.Info().Type)
			got, err := readLayer(l, 0, v.Size, 0)
			require.NoError(t, err)
			require.Equal(t, model(v, 0), got)
		})
	}
}

// T5 and section 13, row 1: CurrentSize is the size, whoever made the file.
func TestTrapT5SizeIsCurrentSize(t *testing.T) {
	for _, creator := range []string{"vpc ", "vs  ", "win ", "qemu", "qem2", "d2v\x00", "tap\x00", "CTXS", "wa\x00\x00", "vbox", "DBox", "\x00\x00\x00\x00"} {
		for _, size := range []int64{3 << 20, 40 << 20, 200 << 30} {
			l := mustOpen(t, fixture.VHD{Size: size, Creator: creator}.Bytes())
			require.Equal(t, size, l.Size(), "%q", creator)
			var want []string
			if (creator == "vpc " || creator == "qemu") && size < 130<<30 {
				want = []string{"vhd.geometry"}
			}
			require.Equal(t, want, names(l.Info().Anomalies), "%q %d", creator, size)
		}
	}
}

// T6: a table may be longer than the disk needs, never shorter.
func TestTrapT6TableLongerThanNeeded(t *testing.T) {
	for _, size := range []int64{4<<20 - 512, 4 << 20} {
		require.EqualValues(t, size, mustOpen(t, fixture.VHD{Size: size, Entries: 2}.Bytes()).Size())
		require.EqualValues(t, size, mustOpen(t, fixture.VHD{Size: size, Entries: 3000}.Bytes()).Size())
	}
	_, err := tryOpen(t, disk(fixture.VHD{Size: 4<<20 + 512, Entries: 2}.Bytes()))
	require.ErrorIs(t, err, ops.ErrCorrupt)
}

// T7: the most significant bit is the first sector.
func TestTrapT7BitOrder(t *testing.T) {
	require.True(t, bitSet([]byte{0x80, 0}, 0))
	require.False(t, bitSet([]byte{0x80, 0}, 7))
	require.True(t, bitSet([]byte{0, 0x01}, 15))
	m := make([]byte, 2)
	setBits(m, 3, 9)
	require.Equal(t, []byte{0x1f, 0x80}, m)
}

// T9: the size of a fixed disk is CurrentSize, not what the file's length leaves.
func TestTrapT9FixedSize(t *testing.T) {
	v := fixture.VHD{Size: 3 << 20, Type: 2, Patches: []fixture.VHDPatch{{Part: "tail", Off: 48, Data: be64(2 << 20), Repair: true}}}
	require.EqualValues(t, 2<<20, mustOpen(t, v.Bytes()).Size())
}

// T12: runs over any pattern of bits, at any alignment, by a model of sectors.
func TestTrapT12BitmapRuns(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 0))
	v := fixture.VHD{Size: 3*16384 + 512, BlockSize: 16384, Type: 4, Parent: parent()}
	for s := int64(0); s < v.Size/512; s++ {
		if rng.IntN(3) > 0 == (s/11%2 == 0) {
			v.Writes = append(v.Writes, fixture.Write{Off: s * 512, Data: bytes.Repeat([]byte{byte(s + 1)}, 512)})
		}
	}
	l := mustOpen(t, v.Bytes())
	want := model(v, 0xee)
	for range 3000 {
		off := rng.Int64N(v.Size)
		n := 1 + rng.Int64N(v.Size-off)
		got, err := readLayer(l, off, n, 0xee)
		require.NoError(t, err)
		require.Equal(t, want[off:off+n], got, "%d bytes at %d", n, off)
	}
	for off := int64(0); off < v.Size; {
		e, err := l.Extent(off, v.Size)
		require.NoError(t, err)
		for s := off / 512; s < (off+e.Len)/512; s++ {
			require.Equal(t, want[s*512] != 0xee, e.Kind == ops.Data, "sector %d", s)
		}
		off += e.Len
	}
}

// T13: the checksum is over the bytes that are there; byte 85 may be blktap's
// hidden flag, counted by new versions and not by old ones.
func TestTrapT13HiddenFlag(t *testing.T) {
	for _, repair := range []bool{true, false} {
		v := fixture.VHD{Size: 3 << 20, Creator: "tap\x00"}
		for _, part := range []string{"copy", "tail"} {
			v.Patches = append(v.Patches, fixture.VHDPatch{Part: part, Off: 85, Data: []byte{1}, Repair: repair})
		}
		l := mustOpen(t, v.Bytes())
		require.Equal(t, []string{"vhd.footer.hidden"}, names(l.Info().Anomalies))
		require.Empty(t, l.Info().ReadOnly)
	}
}

// T14, H01: the footer of 511 bytes, read-only.
func TestTrapT14ShortFooter(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"fixed":   {Size: 3 << 20, Type: 2, ShortFooter: true, Writes: someWrites()[:1]},
		"dynamic": {Size: 9 << 20, ShortFooter: true, Writes: someWrites()},
	} {
		t.Run(name, func(t *testing.T) {
			h := disk(v.Bytes())
			l, err := tryOpen(t, h)
			require.NoError(t, err)
			require.Equal(t, []string{"vhd.footer.short"}, names(l.Info().Anomalies))
			got, err := readLayer(l, 0, v.Size, 0)
			require.NoError(t, err)
			require.Equal(t, model(v, 0), got)
			_, err = Open(openFile(t, h, ops.Read), ops.OpenOptions{Write: true, Cache: ops.NewCache(1 << 20)})
			require.ErrorIs(t, err, ops.ErrReadOnly)
			require.ErrorContains(t, err, "its footer has 511 bytes")
		})
	}
}

// T16 and section 13, row 10: neither the first block, nor the distance between
// blocks, nor the footer's place follow from anything but the table.
func TestTrapT16NoAssumedLayout(t *testing.T) {
	rng := rand.New(rand.NewPCG(16, 0))
	for _, gap := range []int64{0, 512, 5 * 512, 1 << 20} {
		v := fixture.VHD{Size: 40 << 20, Gap: gap, Writes: someWrites(), Unaligned: gap%1024 == 512}
		for _, b := range rng.Perm(20) {
			v.Blocks = append(v.Blocks, int64(b))
		}
		l := mustOpen(t, v.Bytes())
		got, err := readLayer(l, 0, v.Size, 0)
		require.NoError(t, err)
		require.Equal(t, model(v, 0), got)
	}
}

// T23: what the file holds decides; the extension only between two claims.
func TestTrapT23ExtensionIsNoEvidence(t *testing.T) {
	fixed := fixture.VHD{Size: 3 << 20, Type: 2}
	withVHDX := fixture.VHD{Size: 3 << 20, Type: 2, Writes: []fixture.Write{{Data: []byte("vhdxfile")}}}
	damaged := fixture.VHD{Size: 3 << 20, Type: 2, Patches: []fixture.VHDPatch{{Part: "tail", Off: 100, Data: []byte{1}}}}
	noTail := fixture.VHD{Size: 3 << 20, NoTail: true}
	guest := fixture.VHD{Size: 3 << 20, Type: 2, NoTail: true, Writes: []fixture.Write{{Data: noTail.Bytes()}}}
	for _, tt := range []struct {
		name string
		v    fixture.VHD
		ext  string
		want bool
	}{
		{"fixed", fixed, ".vhd", true},
		{"fixed as vhdx", fixed, ".vhdx", true},
		{"fixed as anything", fixed, ".img", true},
		{"fixed as floppy", fixed, ".vfd", false},
		{"vhdxfile inside", withVHDX, ".vhd", true},
		{"vhdxfile inside, as vhdx", withVHDX, ".vhdx", false},
		{"vhdxfile inside, as avhdx", withVHDX, ".avhdx", false},
		{"damaged", damaged, ".vhd", true},
		{"damaged as vhdx", damaged, ".vhdx", true},
		{"dynamic without tail", noTail, ".vhd", true},
		{"dynamic without tail, as vhdx", noTail, ".vhdx", true},
		{"raw whose guest wrote a VHD, as iso", guest, ".iso", false},
		{"raw whose guest wrote a VHD, as vfd", guest, ".vfd", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := probe(openFile(t, disk(tt.v.Bytes()), ops.Read), tt.ext)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// T26 and section 13, row 8: sector numbers of blocks near 2 TiB.
func TestTrapT26SectorNumbersNear2TiB(t *testing.T) {
	v := fixture.VHD{Size: 4 << 20, NoTail: true}
	const at = 0xfffff000
	v.BAT = map[int64]uint32{1: at}
	h := sim.New()
	h.Put("/d.vhd", v.Bytes())
	f := openFile(t, h, ops.Write)
	data := bytes.Repeat([]byte("far"), 512)
	_, err := f.WriteAt(data, (at+1)*512+1024)
	require.NoError(t, err)
	require.NoError(t, f.Truncate((at+1)*512+2<<20+512, "test"))
	require.NoError(t, f.Close())
	l, err := tryOpen(t, h)
	require.NoError(t, err)
	got, err := readLayer(l, 2<<20+1024, int64(len(data)), 0)
	require.NoError(t, err)
	require.Equal(t, data, got)
}

// T27 and section 13, row 9: bytes that are not in the file are an error, those
// before them are read.
func TestTrapT27TruncatedFile(t *testing.T) {
	v := fixture.VHD{Size: 4 << 20, Writes: []fixture.Write{{Off: 2 << 20, Data: bytes.Repeat([]byte{7}, 2<<20)}}}
	whole := v.Bytes()
	at := v.Layout().Blocks[1]
	for _, keep := range []int64{at + 512 + 1<<20, at + 512, at, at - 512, 2048, 1536} {
		l, err := tryOpen(t, disk(whole[:keep]))
		if keep < 2048 {
			require.ErrorIs(t, err, ops.ErrCorrupt)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, []string{"vhd.footer.end"}, names(l.Info().Anomalies))
		have := max(keep-at-512, 0)
		if have > 0 {
			got, err := readLayer(l, 2<<20, have, 0)
			require.NoError(t, err)
			require.Equal(t, whole[at+512:keep], got)
		}
		_, err = readLayer(l, 2<<20+have, 512, 0)
		require.ErrorIs(t, err, ops.ErrCorrupt)
		require.ErrorContains(t, err, "past end of file")
	}
}

// Section 13, row 2: one flipped bit in either footer is seen, and the other
// footer serves.
func TestFlippedBits(t *testing.T) {
	v := fixture.VHD{Size: 3 << 20}
	image, tail := v.Bytes(), v.Layout().Tail
	for _, at := range []int64{0, tail} {
		for bit := 0; bit < 512*8; bit += 37 {
			b := bytes.Clone(image)
			b[at+int64(bit/8)] ^= 1 << (bit % 8)
			l, err := tryOpen(t, disk(b))
			if at == tail && bit/8 == 63 && bit%8 == 0 { // type 3 with a flipped bit is 2: never fall back from a fixed one
				require.ErrorIs(t, err, ops.ErrCorrupt)
				continue
			}
			require.NoError(t, err, "byte %d bit %d", at+int64(bit/8), bit%8)
			require.NotEmpty(t, l.Info().Anomalies, "byte %d bit %d", at+int64(bit/8), bit%8)
			require.EqualValues(t, 3<<20, l.Size())
		}
	}
}

// Section 13, row 14: a table of a million entries is checked at once.
func TestCheckOfALargeTable(t *testing.T) {
	v := fixture.VHD{Size: 512 << 20, BlockSize: 512, Unaligned: true}
	b := v.Bytes()
	lay := v.Layout()
	table := b[lay.BAT : lay.BAT+4<<20]
	first := uint32(lay.Tail / 512)
	for i := range uint32(1 << 20) {
		binary.BigEndian.PutUint32(table[4*i:], first+2*(i^1))
	}
	h := sim.New()
	h.Put("/d.vhd", append(b[:lay.Tail:lay.Tail], b[:512]...))
	f := openFile(t, h, ops.Write)
	_, err := f.WriteAt(b[:512], lay.Tail+1<<30)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	l, err := tryOpen(t, h)
	require.NoError(t, err)
	d := l.(*Disk)
	s, err := d.scanLocked(t.Context(), scanVisit{bad: failOn})
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, s.allocated)
	require.Equal(t, lay.Tail+1<<30, s.end)
	require.Zero(t, s.gaps)
}

// Section 13, row 19: offsets beyond 2^31 sectors, and the last block short.
func TestLargeAndOddSizes(t *testing.T) {
	for _, size := range []int64{2040 << 30, 1<<40 - 512, 1<<40 + 512, 2<<20 + 512, 4<<20 - 512} {
		data := []byte("the last sector")
		v := fixture.VHD{Size: size, Writes: []fixture.Write{{Off: size - 512, Data: data}}}
		l := mustOpen(t, v.Bytes())
		got, err := readLayer(l, size-512, 1024, 0)
		require.NoError(t, err)
		require.Len(t, got, 512)
		require.Equal(t, data, got[:len(data)])
	}
}

// T8: what a fixed disk's footer says of a header, and a header of what follows it,
// is ignored.
func TestTrapT8DataOffsetThatLeadsNowhere(t *testing.T) {
	for _, said := range []uint64{^uint64(0), 0xFFFFFFFF, 0, 512, 1 << 40} {
		at := func(part string, off int64) fixture.VHDPatch {
			return fixture.VHDPatch{Part: part, Off: off, Data: binary.BigEndian.AppendUint64(nil, said), Repair: true}
		}
		for _, v := range []fixture.VHD{
			{Size: 3 << 20, Type: 2, Writes: someWrites()[:1], Patches: []fixture.VHDPatch{at("tail", 16)}},
			{Size: 9 << 20, Writes: someWrites(), Patches: []fixture.VHDPatch{at("header", 8)}},
		} {
			l := mustOpen(t, v.Bytes())
			require.Empty(t, names(l.Info().Anomalies), "%#x", said)
			got, err := readLayer(l, 0, v.Size, 0)
			require.NoError(t, err)
			require.Equal(t, model(v, 0), got, "%#x", said)
		}
	}
}

// T17: VirtualBox opens no image without its end footer; here the copy serves, and
// one with a bad checksum is none.
func TestTrapT17LostEndFooter(t *testing.T) {
	for name, patch := range map[string]fixture.VHDPatch{
		"cookie":   {Part: "tail", Data: make([]byte, 8)},
		"checksum": {Part: "tail", Off: 64, Data: []byte{0, 0, 0, 0}},
		"gone":     {Part: "tail", Data: make([]byte, 512)},
	} {
		v := fixture.VHD{Size: 9 << 20, Creator: "vbox", Writes: someWrites(), Patches: []fixture.VHDPatch{patch}}
		l := mustOpen(t, v.Bytes())
		require.Equal(t, []string{"vhd.footer.end"}, names(l.Info().Anomalies), name)
		got, err := readLayer(l, 0, v.Size, 0)
		require.NoError(t, err)
		require.Equal(t, model(v, 0), got, name)
	}
}

// T25: the flag of a temporary disk keeps nobody out, and stays; that of a saved
// state keeps writers out, who would change the disk under the machine's memory.
func TestTrapT25FlagsStay(t *testing.T) {
	flag := func(off int64, value byte) (list []fixture.VHDPatch) {
		for _, part := range []string{"copy", "tail"} {
			list = append(list, fixture.VHDPatch{Part: part, Off: off, Data: []byte{value}, Repair: true})
		}
		return list
	}
	h := disk(fixture.VHD{Size: 9 << 20, Patches: flag(11, 3)}.Bytes())
	w := openWriter(t, h)
	require.Empty(t, names(w.Info().Anomalies))
	write(t, w, 5<<20, 7, 1) // the end footer moves
	require.NoError(t, w.Close())
	b, err := h.ReadFile("/d.vhd")
	require.NoError(t, err)
	for _, f := range [][]byte{b[:512], b[len(b)-512:]} {
		require.Equal(t, "conectix", string(f[:8]))
		require.Equal(t, []byte{0, 0, 0, 3}, f[8:12])
	}
	saved := mustOpen(t, fixture.VHD{Size: 9 << 20, Patches: flag(84, 1)}.Bytes())
	require.Equal(t, []string{"vhd.savedstate"}, names(saved.Info().Anomalies))
}
