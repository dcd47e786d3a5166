package part_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/part"
)

const disk = 2 << 20 // of most tests: 4096 sectors of 512 bytes

func TestMBR(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			m := newImage(1000 * sector)
			m.put(0, bootSector(0xdeadbeef,
				entry{0x80, 0x07, 10, 90},
				entry{0, 0, 0, 0},
				entry{0, 0x0f, 100, 500},
				entry{0, 0x83, 600, 50},
			))
			// Each logical partition counts from its link, each link from the extended partition.
			m.put(100*sector, bootSector(0, entry{0, 0x83, 5, 20}, entry{0, 0x05, 50, 60}))
			m.put(150*sector, bootSector(0, entry{0, 0x82, 10, 40}, entry{0, 0x05, 300, 60}))
			m.put(400*sector, bootSector(0, entry{0, 0x07, 1, 200}))

			tab := read(t, m, uint32(sector))
			require.Equal(t, part.MBR, tab.Scheme)
			require.Equal(t, "deadbeef", tab.ID)
			require.Equal(t, []part.Partition{
				{Index: 1, Start: 10 * sector, Length: 90 * sector, Type: "07", TypeName: "HPFS/NTFS/exFAT", UUID: "deadbeef-01", Bootable: true},
				{Index: 3, Start: 100 * sector, Length: 500 * sector, Type: "0f", TypeName: "W95 Ext'd (LBA)", UUID: "deadbeef-03", NoFile: "contains the logical partitions"},
				{Index: 4, Start: 600 * sector, Length: 50 * sector, Type: "83", TypeName: "Linux", UUID: "deadbeef-04"},
				{Index: 5, Start: 105 * sector, Length: 20 * sector, Type: "83", TypeName: "Linux", UUID: "deadbeef-05"},
				{Index: 6, Start: 160 * sector, Length: 40 * sector, Type: "82", TypeName: "Linux swap", UUID: "deadbeef-06"},
				{Index: 7, Start: 401 * sector, Length: 200 * sector, Type: "07", TypeName: "HPFS/NTFS/exFAT", UUID: "deadbeef-07", NoFile: "sectors 401-600 are not within 401-599"},
			}, tab.Partitions)
			require.Equal(t, []string{"part.mbr.range: partition 7"}, names(tab))
			require.Equal(t, sector, tab.FirstUsable)
			require.Equal(t, 1000*sector-1, tab.LastUsable)
			require.Equal(t, 350*sector, tab.UnallocatedTail)
			requireMin(t, 650*sector, tab)
		})
	}
}

// The floor for shrinking is what Windows reports for the same layouts.
func TestMinInternalSizeMBR(t *testing.T) {
	for _, tt := range []struct {
		size, start, count, want int64
	}{
		{10 << 30, 2048, 20967424 - 2048, 10735321088},
		{64 << 30, 2048, 30<<30/512 - 2048, 30 << 30},
	} {
		t.Run(fmt.Sprint(tt.size), func(t *testing.T) {
			m := newImage(tt.size)
			m.put(0, bootSector(1, entry{0x80, 7, uint32(tt.start), uint32(tt.count)}))
			tab := read(t, m, 512)
			requireMin(t, tt.want, tab)
			require.Equal(t, tt.size-tt.want, tab.UnallocatedTail)
		})
	}
}

func TestMBRDamage(t *testing.T) {
	chain := func(links map[int64][]entry) *image {
		m := newImage(disk)
		m.put(0, bootSector(7, entry{0, 0x05, 100, 1000}))
		for at, e := range links {
			m.put(at*512, bootSector(0, e...))
		}
		return m
	}
	cut := func(m *image, sectors int64) *image { m.size = sectors * 512; return m }
	flat := func(e ...entry) *image {
		m := newImage(disk)
		m.put(0, bootSector(7, e...))
		return m
	}
	for _, tt := range []struct {
		name   string
		m      *image
		want   []string       // anomalies
		noFile map[int]string // by index; all others have a file
		floor  int64          // 0: unknown
	}{
		{"ends past the disk", flat(entry{0, 7, 1, 10}, entry{0, 7, 4000, 97}),
			[]string{"part.mbr.range: partition 2"}, map[int]string{2: "sectors 4000-4096 are not within 1-4095"}, 0},
		{"ends with the disk", flat(entry{0, 7, 4000, 96}), nil, nil, disk},
		{"starts past the disk", flat(entry{0, 7, 4096, 1}),
			[]string{"part.mbr.range: partition 1"}, map[int]string{1: "sectors 4096-4096 are not within 1-4095"}, 0},
		{"starts at 0", flat(entry{0, 7, 0, 10}),
			[]string{"part.mbr.range: partition 1"}, map[int]string{1: "sectors 0-9 are not within 1-4095"}, 5120},
		{"largest numbers", flat(entry{0, 7, 0xffffffff, 0xffffffff}),
			[]string{"part.mbr.range: partition 1"}, map[int]string{1: "sectors 4294967295-8589934589 are not within 1-4095"}, 0},
		{"overlap", flat(entry{0, 7, 10, 100}, entry{0, 7, 200, 10}, entry{0, 7, 109, 5}),
			[]string{"part.mbr.overlap: partition 3"},
			map[int]string{1: "overlaps partition 3", 3: "overlaps partition 1"}, 210 * 512},
		{"one inside another, a third behind the inner one", flat(entry{0, 7, 10, 100}, entry{0, 7, 20, 10}, entry{0, 7, 50, 10}),
			[]string{"part.mbr.overlap: partition 2", "part.mbr.overlap: partition 3"},
			map[int]string{1: "overlaps partition 3", 2: "overlaps partition 1", 3: "overlaps partition 1"}, 110 * 512},
		{"overlaps the extended partition", flat(entry{0, 5, 10, 100}, entry{0, 7, 109, 10}),
			[]string{"part.mbr.chain: link sector 10", "part.mbr.overlap: partition 2"},
			map[int]string{1: "overlaps partition 2", 2: "overlaps partition 1"}, 119 * 512},
		{"extended partition past the disk", cut(chain(map[int64][]entry{
			100: {{0, 7, 1, 10}, {0, 5, 200, 100}},
			300: {{0, 7, 1, 300}, {0, 5, 600, 10}},
		}), 500), []string{"part.mbr.range: partition 1", "part.mbr.range: partition 6", "part.mbr.chain: link sector 300"},
			map[int]string{1: "sectors 100-1099 are not within 1-499", 6: "sectors 301-600 are not within 301-499"}, 0},
		{"extended partition behind the disk", flat(entry{0, 7, 1, 10}, entry{0, 5, 5000, 10}),
			[]string{"part.mbr.range: partition 2"}, map[int]string{2: "sectors 5000-5009 are not within 1-4095"}, 0},
		{"link without signature", chain(nil),
			[]string{"part.mbr.chain: link sector 100"}, map[int]string{1: "contains the logical partitions"}, 1100 * 512},
		{"chain returns", chain(map[int64][]entry{
			100: {{0, 7, 1, 10}, {0, 5, 50, 10}},
			150: {{0, 7, 1, 10}, {0, 5, 0, 10}},
		}), []string{"part.mbr.chain: link sector 100"}, map[int]string{1: "contains the logical partitions"}, 1100 * 512},
		{"link past the extended partition", chain(map[int64][]entry{
			100: {{0, 7, 1, 10}, {0, 5, 1000, 10}},
		}), []string{"part.mbr.chain: link sector 100"}, map[int]string{1: "contains the logical partitions"}, 1100 * 512},
		{"logical over its link", chain(map[int64][]entry{100: {{0, 7, 0, 10}}}),
			[]string{"part.mbr.range: partition 5"},
			map[int]string{1: "contains the logical partitions", 5: "sectors 100-109 are not within 101-1099"}, 1100 * 512},
		{"logicals overlap", chain(map[int64][]entry{100: {{0, 7, 1, 100}, {0, 5, 50, 10}}, 150: {{0, 7, 1, 10}}}),
			[]string{"part.mbr.overlap: partition 6"},
			map[int]string{1: "contains the logical partitions", 5: "overlaps partition 6", 6: "overlaps partition 5"}, 1100 * 512},
		{"garbage in the last two entries of a link", chain(map[int64][]entry{100: {{0, 7, 1, 10}, {}, {0, 7, 99, 9999}, {0, 7, 1, 1}}}),
			nil, map[int]string{1: "contains the logical partitions"}, 1100 * 512},
		{"an empty link counts no partition", chain(map[int64][]entry{100: {{}, {0, 5, 50, 10}}, 150: {{0, 7, 1, 10}}}),
			nil, map[int]string{1: "contains the logical partitions"}, 1100 * 512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := read(t, tt.m, 512)
			require.Equal(t, part.MBR, tab.Scheme)
			require.Equal(t, tt.want, names(tab))
			for _, p := range tab.Partitions {
				require.Equal(t, tt.noFile[p.Index], p.NoFile, "partition %d", p.Index)
			}
			if tt.floor == 0 {
				require.Nil(t, tab.MinInternalSize)
				return
			}
			requireMin(t, tt.floor, tab)
		})
	}
}

func TestMBRChainIsBounded(t *testing.T) {
	m := newImage(disk)
	m.put(0, bootSector(7, entry{0, 0x05, 100, 3000}))
	for i := range uint32(200) {
		m.put(int64(100+2*i)*512, bootSector(0, entry{0, 7, 1, 1}, entry{0, 5, 2 * (i + 1), 2}))
	}
	tab := read(t, m, 512)
	require.Len(t, tab.Partitions, 129)
	require.Equal(t, 132, tab.Partitions[128].Index)
	require.Equal(t, []string{"part.mbr.chain: link sector 356"}, names(tab))
	require.Equal(t, 129, m.reads)
}

// A file system on the whole disk has a boot sector with the signature of an MBR.
func TestBootSectorIsNoTable(t *testing.T) {
	boot := func(change func(b []byte)) []byte {
		b := bootSector(0)
		change(b)
		return b
	}
	fat := func(b []byte) {
		copy(b, "\xeb\x3c\x90MSDOS5.0\x00\x02\x04\x01\x00\x02\x00\x02\x00\x10\xf8\x10\x00")
	}
	text := func(b []byte) { copy(b[446:], "Remove disks or other media.\xff\r\nDisk error") }
	for _, tt := range []struct {
		name string
		boot []byte
		want part.Scheme
	}{
		{"empty sector", make([]byte, 512), part.None},
		{"fat, no entries", boot(fat), part.None},
		{"fat, text over the entries", boot(func(b []byte) { fat(b); text(b) }), part.None},
		{"fat, entries outside the disk", boot(func(b []byte) { fat(b); copy(b[446:], bootSector(0, entry{0, 7, 99999, 1})[446:462]) }), part.None},
		{"fat and a good entry", boot(func(b []byte) { fat(b); copy(b[446:], bootSector(0, entry{0, 7, 10, 100})[446:462]) }), part.MBR},
		{"fat with 3 tables", boot(func(b []byte) { fat(b); b[16] = 3 }), part.MBR},
		{"fat with clusters of 3", boot(func(b []byte) { fat(b); b[13] = 3 }), part.MBR},
		{"ntfs", boot(func(b []byte) { copy(b, "\xeb\x52\x90NTFS    ") }), part.None},
		{"exfat", boot(func(b []byte) { copy(b, "\xeb\x76\x90EXFAT   ") }), part.None},
		{"bitlocker", boot(func(b []byte) { copy(b, "\xeb\x58\x90-FVE-FS-") }), part.None},
		{"xfs with a boot sector", boot(func(b []byte) { copy(b, "XFSB") }), part.None},
		{"table without entries", bootSector(5), part.MBR},
		{"status 0x01", boot(func(b []byte) { copy(b[446:], bootSector(0, entry{1, 7, 10, 100})[446:462]) }), part.None},
		{"status 0x01 in an unused entry", boot(func(b []byte) { b[446+48] = 1 }), part.None},
		{"no signature", boot(func(b []byte) { copy(b[446:], bootSector(0, entry{0, 7, 10, 100})[446:462]); b[511] = 0 }), part.None},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newImage(disk)
			m.put(0, tt.boot)
			tab := read(t, m, 512)
			require.Equal(t, tt.want, tab.Scheme)
			if tt.name != "fat and a good entry" {
				require.Empty(t, tab.Partitions)
				require.Nil(t, tab.MinInternalSize)
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	for _, sector := range []uint32{0, 1, 256, 513, 8192, 1 << 31} {
		_, err := part.Read(newImage(disk), disk, sector)
		require.ErrorIs(t, err, ops.ErrUsage)
	}
	for _, size := range []int64{0, 1, 511} {
		tab, err := part.Read(newImage(size), size, 512)
		require.NoError(t, err)
		require.Equal(t, part.None, tab.Scheme)
	}

	logical := newImage(disk)
	logical.put(0, bootSector(7, entry{0, 5, 100, 100}))
	for name, m := range map[string]*image{
		"mbr": logical, "gpt": gpt{sector: 512, sectors: 4096}.image(), "blank": newImage(disk),
	} {
		t.Run(name, func(t *testing.T) {
			read(t, m, 512)
			for k := m.reads; k > 0; k-- {
				m.reads, m.fail = 0, k
				_, err := part.Read(m, m.size, 512)
				require.ErrorIs(t, err, errDisk, "read %d", k)
			}
		})
	}

	short := newImage(disk) // the file ends before the disk does
	short.size = 100
	_, err := part.Read(short, disk, 512)
	require.ErrorContains(t, err, "part: sector 0 at offset 0: unexpected EOF")
}
