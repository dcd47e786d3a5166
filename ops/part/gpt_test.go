package part_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/part"
)

func TestGPT(t *testing.T) {
	for _, tt := range []struct {
		sector      int64
		count, size int
		room        int64 // sectors of entries
	}{
		{512, 128, 128, 32},
		{4096, 128, 128, 4},
		{512, 4, 256, 2},
		{512, 1024, 4096, 8192},
		{4096, 1, 128, 1},
	} {
		t.Run(fmt.Sprintf("sectors of %d, %d entries of %d", tt.sector, tt.count, tt.size), func(t *testing.T) {
			g := gpt{sector: tt.sector, sectors: 40000, count: tt.count, size: tt.size, parts: map[int]gptPart{
				1: {kind: basicData, first: 10000, last: 19999, attributes: 1<<63 | 4, name: "B\u0100sic data\u00e9\U0001f4be\n"},
			}}
			if tt.count >= 4 {
				g.parts[4] = gptPart{kind: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", first: 9000, last: 9000}
			}
			tab := read(t, g.image(), uint32(tt.sector))
			require.Empty(t, tab.Anomalies)
			require.Equal(t, part.GPT, tab.Scheme)
			require.Equal(t, diskGUID, tab.ID)
			require.Equal(t, part.Partition{
				Index: 1, Start: 10000 * tt.sector, Length: 10000 * tt.sector,
				Type: basicData, TypeName: "Microsoft basic data", Name: "B\u0100sic data\u00e9\U0001f4be\n",
				UUID: "aa000000-0000-0000-0000-000000000001", Bootable: true, Attributes: 1<<63 | 4,
			}, tab.Partitions[0])
			if tt.count >= 4 {
				require.Len(t, tab.Partitions, 2)
				require.Equal(t, 4, tab.Partitions[1].Index)
				require.Equal(t, "EFI System", tab.Partitions[1].TypeName)
				require.Equal(t, tt.sector, tab.Partitions[1].Length)
			}
			require.Equal(t, (2+tt.room)*tt.sector, tab.FirstUsable)
			require.Equal(t, (39999-tt.room)*tt.sector-1, tab.LastUsable)
			require.Equal(t, (20000-tt.room-1)*tt.sector, tab.UnallocatedTail)
			requireMin(t, (20000+tt.room+1)*tt.sector, tab)
		})
	}
}

// The floor that Windows reports for a base of 100 GiB whose last partition
// ends 1 MiB before the end.
func TestMinInternalSizeGPT(t *testing.T) {
	g := gpt{sector: 512, sectors: 100 << 30 / 512, parts: map[int]gptPart{1: {kind: basicData, first: 2048, last: 100<<30/512 - 2048 - 1}}}
	requireMin(t, 107373150720, read(t, g.image(), 512))
}

func TestGPTWithoutPartitions(t *testing.T) {
	tab := read(t, gpt{sector: 512, sectors: 4096}.image(), 512)
	require.Equal(t, part.GPT, tab.Scheme)
	require.Empty(t, tab.Partitions)
	require.Nil(t, tab.MinInternalSize)
	require.Equal(t, int64(4096-34-33)*512, tab.UnallocatedTail)
}

var oneGPT = map[int]gptPart{1: {kind: basicData, first: 100, last: 199}}

// Each field of the first header that cannot be used sends the reader to the backup.
func TestGPTHeaderFields(t *testing.T) {
	u32 := func(off int, v uint32) func([]byte) { return func(h []byte) { le.PutUint32(h[off:], v) } }
	u64 := func(off int, v uint64) func([]byte) { return func(h []byte) { le.PutUint64(h[off:], v) } }
	for _, tt := range []struct {
		text  string
		patch func(h []byte)
	}{
		{`signature "EFI PORT", want "EFI PART"`, func(h []byte) { h[5] = 'O' }},
		{"header size 91, want 92 to 512", u32(12, 91)},
		{"header size 513, want 92 to 512", u32(12, 513)},
		{"header size 4294967295, want 92 to 512", u32(12, 0xffffffff)},
		{"revision 0x20000, want 0x10000", u32(8, 0x20000)},
		{"header says that it is sector 2", u64(24, 2)},
		{"usable sectors 300-299", func(h []byte) { u64(40, 300)(h); u64(48, 299)(h) }},
		{"first usable sector 4096 past the last sector 4095", func(h []byte) { u64(40, 4096)(h); u64(48, 5000)(h) }},
		{"0 entries, want 1 to 4096", u32(80, 0)},
		{"4097 entries, want 1 to 4096", u32(80, 4097)},
		{"4294967295 entries, want 1 to 4096", u32(80, 0xffffffff)},
		{"entry size 0, want a power of two from 128 to 4096", u32(84, 0)},
		{"entry size 127, want a power of two from 128 to 4096", u32(84, 127)},
		{"entry size 192, want a power of two from 128 to 4096", u32(84, 192)},
		{"entry size 8192, want a power of two from 128 to 4096", u32(84, 8192)},
		{"32 sectors of entries at sector 1, the disk has 4096", u64(72, 1)},
		{"32 sectors of entries at sector 4065, the disk has 4096", u64(72, 4065)},
		{"32 sectors of entries at sector 18446744073709551615, the disk has 4096", u64(72, 1<<64-1)},
		{"32 sectors of entries at sector 9223372036854775807, the disk has 4096", u64(72, 1<<63-1)},
		{"checksum of the entries", u32(88, 1)},
	} {
		t.Run(tt.text, func(t *testing.T) {
			m := gpt{sector: 512, sectors: 4096, parts: oneGPT, patch: func(h []byte, backup bool) {
				if !backup {
					tt.patch(h)
				}
			}}.image()
			tab := read(t, m, 512)
			require.Equal(t, []string{"part.gpt.primary: sector 1"}, names(tab))
			require.Contains(t, tab.Anomalies[0].Text, tt.text)
			require.Contains(t, tab.Anomalies[0].Text, "the backup at sector 4095 is")
			require.Len(t, tab.Partitions, 1)
			requireMin(t, 233*512, tab)
		})
	}

	t.Run("header checksum", func(t *testing.T) {
		m := gpt{sector: 512, sectors: 4096, parts: oneGPT}.image()
		m.pieces[512][16] ^= 1
		tab := read(t, m, 512)
		require.Contains(t, tab.Anomalies[0].Text, "header checksum 0x")
		require.Len(t, tab.Partitions, 1)
	})
}

func TestGPTCopies(t *testing.T) {
	base := gpt{sector: 512, sectors: 4096, parts: oneGPT}
	wipe := func(m *image, sectors ...int64) *image {
		for _, s := range sectors {
			delete(m.pieces, s*512)
		}
		return m
	}
	at := func(backup int64) gpt { g := base; g.backupAt = backup; return g }
	shrunk := at(4095).image()
	shrunk.size = 4000 * 512
	hybrid := base.image()
	hybrid.put(0, bootSector(0, entry{0, 0xee, 1, 99}, entry{0x80, 0x07, 100, 100}))
	differs := base
	differs.patchEntries = func(e []byte, backup bool) {
		if backup {
			e[56] = 'X'
		}
	}
	stray := base
	stray.noMBR = true
	strayBlank := stray.image()
	strayBlank.put(0, bootSector(1))
	leftover := stray.image()
	leftover.put(0, bootSector(1, entry{0, 7, 10, 10}))
	hinted := at(3000).image()
	hinted.pieces[512][40]++ // breaks the checksum only

	for _, tt := range []struct {
		name  string
		m     *image
		want  []string
		parts int
		text  string
	}{
		{"backup wiped", wipe(base.image(), 4095), []string{"part.gpt.backup: sector 4095"}, 1, "cannot be used"},
		{"entries of the backup wiped", wipe(base.image(), 4063), []string{"part.gpt.backup: sector 4095"}, 1, "checksum of the entries"},
		{"backup differs", differs.image(), []string{"part.gpt.differ: sector 4095"}, 1, "differs"},
		{"disk grown", at(3000).image(), []string{"part.gpt.backup-place: sector 3000"}, 1, "last sector 4095"},
		{"disk grown, first unreadable", hinted, []string{"part.gpt.primary: sector 1"}, 1, "the backup at sector 3000 is"},
		{"disk grown, first wiped", wipe(at(3000).image(), 1), []string{"part.gpt.broken: sector 1"}, 0, "backup at sector 4095"},
		{"disk cut", shrunk, []string{"part.gpt.backup: sector 4095"}, 1, "ends at sector 3999"},
		{"both wiped", wipe(base.image(), 1, 4095), []string{"part.gpt.broken: sector 1"}, 0, "neither"},
		{"hybrid", hybrid, []string{"part.gpt.hybrid: sector 0, entry 2"}, 1, "type 07"},
		{"no protective entry, sector 0 blank", stray.image(), []string{"part.gpt.protective: sector 0"}, 1, "other systems"},
		{"no protective entry, empty table", strayBlank, []string{"part.gpt.protective: sector 0"}, 1, "other systems"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := read(t, tt.m, 512)
			require.Equal(t, part.GPT, tab.Scheme)
			require.Equal(t, tt.want, names(tab))
			require.Contains(t, tab.Anomalies[0].Text, tt.text)
			require.Len(t, tab.Partitions, tt.parts)
			if tt.parts == 0 {
				require.Nil(t, tab.MinInternalSize)
				require.Equal(t, ops.Broken, tab.Anomalies[0].Severity)
				return
			}
			require.Empty(t, tab.Partitions[0].NoFile)
			requireMin(t, 233*512, tab)
		})
	}

	t.Run("an MBR over an old GPT", func(t *testing.T) {
		tab := read(t, leftover, 512)
		require.Equal(t, part.MBR, tab.Scheme)
		require.Equal(t, int64(10*512), tab.Partitions[0].Start)
	})
	t.Run("written for the other sector size", func(t *testing.T) {
		tab := read(t, base.image(), 4096)
		require.Equal(t, []string{"part.gpt.broken: sector 1"}, names(tab))
		require.Contains(t, tab.Anomalies[0].Text, "there is one for sectors of 512 bytes, the disk has 4096")
	})
}

func TestGPTPartitions(t *testing.T) {
	ok := gptPart{kind: basicData, first: 100, last: 199}
	p := func(first, last uint64) gptPart { return gptPart{kind: basicData, first: first, last: last} }
	for _, tt := range []struct {
		name   string
		parts  map[int]gptPart
		want   []string
		noFile map[int]string
		floor  int64 // sectors; 0: unknown
	}{
		{"adjacent", map[int]gptPart{1: ok, 2: p(200, 299)}, nil, nil, 333},
		{"backwards", map[int]gptPart{1: p(200, 299), 2: ok}, nil, nil, 333},
		{"share a sector", map[int]gptPart{1: ok, 2: p(199, 299)}, []string{"part.gpt.overlap: partition 2"},
			map[int]string{1: "overlaps partition 2", 2: "overlaps partition 1"}, 333},
		{"ends before it starts", map[int]gptPart{1: ok, 2: p(300, 299)}, []string{"part.gpt.range: partition 2"},
			map[int]string{2: "sectors 300-299 are not a range within 1-4095"}, 0},
		{"past the disk", map[int]gptPart{1: ok, 2: p(300, 4096)}, []string{"part.gpt.range: partition 2"},
			map[int]string{2: "sectors 300-4096 are not a range within 1-4095"}, 0},
		{"at sector 0", map[int]gptPart{1: p(0, 50)}, []string{"part.gpt.range: partition 1"},
			map[int]string{1: "sectors 0-50 are not a range within 1-4095"}, 0},
		{"largest numbers", map[int]gptPart{1: p(1<<63, 1<<64-1)}, []string{"part.gpt.range: partition 1"},
			map[int]string{1: "sectors 9223372036854775808-18446744073709551615 are not a range within 1-4095"}, 0},
		{"over the entries", map[int]gptPart{1: p(33, 50)}, []string{"part.gpt.usable: partition 1"},
			map[int]string{1: "covers the partition table"}, 84},
		{"over the header", map[int]gptPart{1: p(1, 1)}, []string{"part.gpt.usable: partition 1"},
			map[int]string{1: "covers the partition table"}, 67},
		{"last usable sector", map[int]gptPart{1: p(34, 4062)}, nil, nil, 4096},
		{"past the last usable sector", map[int]gptPart{1: p(34, 4063)}, []string{"part.gpt.usable: partition 1"}, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := read(t, gpt{sector: 512, sectors: 4096, parts: tt.parts}.image(), 512)
			require.Equal(t, tt.want, names(tab))
			require.Len(t, tab.Partitions, len(tt.parts))
			for _, q := range tab.Partitions {
				require.Equal(t, tt.noFile[q.Index], q.NoFile, "partition %d", q.Index)
			}
			if tt.floor == 0 {
				require.Nil(t, tab.MinInternalSize)
				return
			}
			requireMin(t, tt.floor*512, tab)
		})
	}
}

// The largest table that is accepted costs two passes of 16 MiB, never at once.
func TestGPTReadsAreBounded(t *testing.T) {
	m := gpt{sector: 512, sectors: 100000, count: 4096, size: 4096}.image()
	read(t, m, 512)
	require.Less(t, m.bytes, int64(2*16<<20+8192))
}
