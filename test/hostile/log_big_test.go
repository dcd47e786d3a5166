package hostile

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

// ring is an empty log of n bytes of the small disk, moved behind everything
// else: at 7 MiB. Its entries are to be put at file offsets from there on.
const bigLogAt = 7 * mib

func withBigLog(n uint32, change func(m *fixture.VHDXImage)) folder.Maker {
	v := headersSay(headersSay(dirty(), 68, le32(n)), 72, le64(uint64(bigLogAt)))
	return built(v, func(m *fixture.VHDXImage) {
		m.Truncate(bigLogAt + int64(n))
		change(m)
	})
}

// minimal is the smallest good entry, of a log with the fixture's id.
func minimal(m *fixture.VHDXImage, seq uint64, tail uint32) []byte {
	e := m.Get(m.LogOff, 4096) // the one entry of dirty
	binary.LittleEndian.PutUint32(e[12:], tail)
	binary.LittleEndian.PutUint64(e[16:], seq)
	binary.LittleEndian.PutUint64(e[48:], 0)
	binary.LittleEndian.PutUint64(e[56:], 0)
	return e
}

// putEntry stores e with its checksum made right.
func putEntry(m *fixture.VHDXImage, off int64, e []byte) {
	m.Write(m.LogOff, e)
	m.Repair(m.LogOff)
	m.Write(off, m.Get(m.LogOff, 4096))
}

func TestH27ManyEntries(t *testing.T) {
	many := func(n int, tail func(i int) uint32, seq func(i int) uint64) folder.Maker {
		return withBigLog(64<<20, func(m *fixture.VHDXImage) {
			e := m.Get(m.LogOff, 4096)
			for i := range n {
				m.Write(m.LogOff, e)
				putEntry(m, bigLogAt+4096*int64(i), minimal(m, seq(i), tail(i)))
			}
		})
	}
	first := func(int) uint32 { return 0 }
	nowhere := func(int) uint32 { return 60 << 20 }
	rising := func(i int) uint64 { return uint64(i) + 1 }
	falling := func(i int) uint64 { return 1<<40 - uint64(i) }
	empty, dirty := []string{"vhdx.log.empty"}, []string{"vhdx.log.dirty"}
	rows(t, "disk.vhdx", []row{
		{name: "10,000 in order", file: many(10_000, first, rising), odd: dirty, heavy: true},
		{name: "10,000 whose tails lead nowhere", file: many(10_000, nowhere, rising), odd: empty, readOnly: "no valid entry", heavy: true},
		{name: "10,000 sequences of one", file: many(10_000, first, falling), odd: dirty, heavy: true},
		{name: "10,000 sequences of none", file: many(10_000, nowhere, falling), odd: empty, readOnly: "no valid entry", heavy: true},
		{
			name: "a sparse log of 4 GiB",
			file: withBigLog(1<<32-1<<20, func(*fixture.VHDXImage) {}), class: ops.ErrCorrupt, says: "log: 4095 MiB to replay",
		},
		{
			name: "entries of 512 KiB, one every page",
			file: withBigLog(1<<20, func(m *fixture.VHDXImage) {
				e := m.Get(m.LogOff, 4096)
				for i := range int64(128) {
					binary.LittleEndian.PutUint32(e[8:], 512<<10)
					m.Write(bigLogAt+i*4096, e)
				}
			}), odd: empty, readOnly: "no valid entry",
		},
	})
}

// The newest complete sequence wins, wherever it stands in the ring.
func TestH27CompetingSequences(t *testing.T) {
	at := func(pos int64, seq uint64, text string) fixture.LogEntry {
		e := update(fixture.Descriptor{Off: 4*mib + 4096, Data: []byte(text)})
		e.At, e.Seq = &pos, seq
		return e
	}
	next := func(text string) fixture.LogEntry {
		return update(fixture.Descriptor{Off: 4*mib + 4096, Data: []byte(text)})
	}
	torn := next("torn")
	torn.Torn = true
	dirty := []string{"vhdx.log.dirty"}
	otherLog := at(512*kib, 900, "of another log")
	otherLog.GUID = [16]byte{5}
	rows(t, "disk.vhdx", []row{
		{name: "the later is newer", file: logged(at(0, 10, "old"), next("older"), at(256*kib, 20, newText)), want: replayed, odd: dirty},
		{name: "the earlier is newer", file: logged(at(0, 20, newText), at(256*kib, 10, "old"), next("older")), want: replayed, odd: dirty},
		{name: "a longer one with lower numbers", file: logged(at(0, 5, "a"), next("b"), next("c"), at(256*kib, 8, newText)), want: replayed, odd: dirty},
		{name: "over the end of the ring", file: logged(at(mib-4096, 3, "old"), next(newText)), want: replayed, odd: dirty},
		{name: "its second entry starts the ring", file: logged(at(mib-8192, 3, "old"), next(newText)), want: replayed, odd: dirty},
		{name: "the head is torn", file: logged(at(0, 3, newText), torn), want: replayed, odd: dirty},
		{name: "higher numbers in another log", file: logged(at(0, 3, newText), otherLog), want: replayed, odd: dirty},
		{name: "numbers at their end", file: logged(at(0, 1<<64-1, newText), at(256*kib, 7, "old")), want: replayed, odd: dirty},
	})
}

// Only what stands between the head's tail and the head is replayed.
func TestH27OldEntriesAreLeftAlone(t *testing.T) {
	old := update(fixture.Descriptor{Off: 4*mib + 8192, Data: []byte("retired")})
	head := update(inBlock0())
	head.Tail = fixture.Ptr(int64(8192)) // itself
	rows(t, "disk.vhdx", []row{{
		name: "tail at the head", file: logged(old, head), want: replayed, odd: []string{"vhdx.log.dirty"},
	}})
}

// A replay that makes the image unsound is refused as the image itself would be.
func TestH28ReplayMakesUnsound(t *testing.T) {
	plain, err := dirty().Build()
	require.NoError(t, err)
	page := func(off int64, at int64, data []byte) fixture.Descriptor {
		b := plain.Get(off, 4096)
		copy(b[at:], data)
		return fixture.Descriptor{Off: off, Data: b}
	}
	items := int64(metadataAt) + 64*kib
	region := func(at int64, data []byte) []fixture.Descriptor {
		// The checksum has to hold after the replay: a fixture computes it.
		m, err := regionsSay(dirty(), fixture.Patch{Off: at, Data: data}).Build()
		require.NoError(t, err)
		return []fixture.Descriptor{
			{Off: fixture.VHDXRegion1, Data: m.Get(fixture.VHDXRegion1, 4096)},
			{Off: fixture.VHDXRegion2, Data: m.Get(fixture.VHDXRegion2, 4096)},
		}
	}
	var family []row
	for _, c := range []struct {
		name string
		ds   []fixture.Descriptor
		says string
	}{
		{"size 0", []fixture.Descriptor{page(items, 0x10, le64(0))}, "virtual size 0 "},
		{"size over 64 TiB", []fixture.Descriptor{page(items, 0x10, le64(65<<40))}, "virtual size 71468255805440 "},
		{"block size 3 MiB", []fixture.Descriptor{page(items, 0, le32(3<<20))}, "block size 3145728 "},
		{"logical sector 1024", []fixture.Descriptor{page(items, 0x30, le32(1024))}, "logical sector size 1024,"},
		{"a parent from nowhere", []fixture.Descriptor{page(items, 4, le32(2))}, "vhdx: parent locator: 0 bytes"},
		{"metadata of zeros", []fixture.Descriptor{{Off: metadataAt, Zero: 64 * kib}}, "metadata table: signature"},
		{"regions of zeros", []fixture.Descriptor{{Off: fixture.VHDXRegion1, Zero: 128 * kib}}, "both region tables"},
		{"a BAT past the end", region(16+16, le64(64<<20)), "bat: ...past end of file 0x700000"},
		{"a BAT over the log", region(16+16, le64(1<<20)), "region at 0x100000 overlaps"},
		{"a disk larger than its table", []fixture.Descriptor{page(items, 0x10, le64(1<<40))}, "bat: 1048831 entries"},
	} {
		family = append(family, row{
			name: c.name, file: logged(fixture.LogEntry{Descriptors: c.ds}), class: ops.ErrCorrupt, says: c.says,
		})
	}
	bat := plain.Get(3*mib, 4096)
	copy(bat[3*8:], le64(1<<20|6))
	family = append(family, row{
		name: "an entry that leads into the log", file: logged(update(fixture.Descriptor{Off: 3 * mib, Data: bat})),
		bad: blocks(mib, 3), badRead: ops.ErrCorrupt, says: "bat entry 3: block at 0x100000", odd: []string{"vhdx.log.dirty"},
		found: []string{"bat entry 3"},
	})
	rows(t, "disk.vhdx", family)
}
