package hostile

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

// logged is the small disk with these entries in its log.
func logged(entries ...fixture.LogEntry) fixture.VHDX {
	v := small()
	v.Log = &fixture.Log{Entries: entries}
	return v
}

// update is an entry of one update.
func update(d fixture.Descriptor) fixture.LogEntry {
	return fixture.LogEntry{Descriptors: []fixture.Descriptor{d}}
}

// inBlock0 is a good update of the disk's second page: 512 bytes of "n" and zeros.
func inBlock0() fixture.Descriptor {
	return fixture.Descriptor{Off: 4*mib + 4096, Data: []byte(newText)}
}

const newText = "replayed from the log, and from nowhere else"

var replayed = append([]fixture.Write{{Off: 4096, Data: []byte(newText)}}, base...)

func logIs(state ops.LogState) func(*testing.T, *folder.Sight) {
	return func(t *testing.T, s *folder.Sight) {
		t.Helper()
		require.Equal(t, state, s.Found.Info.Log)
	}
}

// A log in use without a valid entry: QEMU leaves such files, with nothing half
// done. They can be read, and written after a repair.
func TestH22NoValidSequence(t *testing.T) {
	garbage := logged()
	garbage.Log.Garbage = true
	other := logged(fixture.LogEntry{GUID: [16]byte{1, 2, 3}})
	rows(t, "disk.vhdx", []row{
		{name: "log of zeros", file: logged(), readOnly: "no valid entry", odd: []string{"vhdx.log.empty"}, also: logIs(ops.LogEmpty)},
		{name: "log of garbage", file: garbage, readOnly: "no valid entry", odd: []string{"vhdx.log.empty"}, also: logIs(ops.LogEmpty)},
		{name: "entries of another log", file: other, readOnly: "no valid entry", odd: []string{"vhdx.log.empty"}, also: logIs(ops.LogEmpty)},
	})
}

// damaged are entries that no reader may believe.
func damaged() []struct {
	name string
	e    fixture.LogEntry
} {
	good := func(change func(*fixture.LogEntry)) fixture.LogEntry {
		e := update(fixture.Descriptor{Off: 4*mib + 4096, Data: []byte("must not be seen")})
		change(&e)
		return e
	}
	type l = fixture.LogEntry
	return []struct {
		name string
		e    fixture.LogEntry
	}{
		{"checksum", good(func(e *l) { e.BadSum = true })},
		{"torn", good(func(e *l) { e.Torn = true })},
		{"data sector of another number", good(func(e *l) { e.BadDataSeq = true })},
		{"signature", good(func(e *l) { e.Signature = "LOGE" })},
		{"length 0", good(func(e *l) { e.Length = fixture.Ptr(uint32(0)) })},
		{"length of no whole sector", good(func(e *l) { e.Length = fixture.Ptr(uint32(8191)) })},
		{"length over the log", good(func(e *l) { e.Length = fixture.Ptr(uint32(1<<20 + 4096)) })},
		{"length 2^32-4096", good(func(e *l) { e.Length = fixture.Ptr(uint32(1<<32 - 4096)) })},
		{"length short of its data", good(func(e *l) { e.Length = fixture.Ptr(uint32(4096)) })},
		{"tail of no whole sector", good(func(e *l) { e.Tail = fixture.Ptr(int64(100)) })},
		{"tail at the end of the log", good(func(e *l) { e.Tail = fixture.Ptr(int64(1 << 20)) })},
		{"tail 2^32-4096", good(func(e *l) { e.Tail = fixture.Ptr(int64(1<<32 - 4096)) })},
		{"2 descriptors and one data sector", good(func(e *l) { e.Count = fixture.Ptr(uint32(2)) })},
		{"no descriptors and a data sector", good(func(e *l) { e.Count = fixture.Ptr(uint32(0)) })},
		{"2^32-1 descriptors", good(func(e *l) { e.Count = fixture.Ptr(uint32(math.MaxUint32)) })},
		{"descriptors over the entry", good(func(e *l) { e.Count = fixture.Ptr(uint32(127)) })},
		{"descriptor of another number", good(func(e *l) { e.Descriptors[0].Seq = 99 })},
		{"descriptor's signature", good(func(e *l) { e.Descriptors[0].Kind = "DESC" })},
		{"log of another id", good(func(e *l) { e.GUID = [16]byte{9} })},
	}
}

// Alone, a damaged entry is no entry; behind a good one, it ends the sequence.
func TestH23DamagedEntries(t *testing.T) {
	var family []row
	for _, c := range damaged() {
		family = append(family,
			row{
				name: c.name + ", alone", file: logged(c.e),
				readOnly: "no valid entry", odd: []string{"vhdx.log.empty"}, also: logIs(ops.LogEmpty),
			},
			row{
				name: c.name + ", behind a good one", file: logged(update(inBlock0()), c.e),
				want: replayed, odd: []string{"vhdx.log.dirty"}, also: logIs(ops.LogReplayed),
			},
		)
	}
	unreached := update(inBlock0())
	unreached.Tail = fixture.Ptr(int64(512 << 10))
	family = append(family, row{
		name: "tail where no entry is", file: logged(unreached),
		readOnly: "no valid entry", odd: []string{"vhdx.log.empty"}, also: logIs(ops.LogEmpty),
	})
	rows(t, "disk.vhdx", family)
}

func TestH24ZeroDescriptors(t *testing.T) {
	zero := func(off, n int64) fixture.VHDX {
		return logged(update(inBlock0()), update(fixture.Descriptor{Off: off, Zero: n}))
	}
	rows(t, "disk.vhdx", []row{
		{name: "64 GiB", file: zero(4*mib, 64*gib), class: ops.ErrCorrupt, says: "log entry 2: descriptor 0...0x1000000000 bytes at 0x400000"},
		{name: "2^63", file: zero(4*mib, math.MinInt64), class: ops.ErrCorrupt, says: "log entry 2: descriptor 0...0x8000000000000000 bytes at 0x400000"},
		{name: "around 2^64", file: zero(4*mib, -4*mib), class: ops.ErrCorrupt, says: "log entry 2: descriptor 0...0xffffffffffc00000 bytes"},
		{name: "offset that goes around 2^64", file: zero(-4096, 8192), class: ops.ErrCorrupt, says: "log entry 2: descriptor 0...at 0xfffffffffffff000"},
		{name: "length of no whole page", file: zero(4*mib, 512), class: ops.ErrCorrupt, says: "log entry 2: descriptor 0...0x200 bytes at 0x400000"},
		{name: "offset of no whole page", file: zero(4*mib+512, 4096), class: ops.ErrCorrupt, says: "log entry 2: descriptor 0...0x1000 bytes at 0x400200"},
		{name: "a page past the end", file: zero(7*mib, 4096), class: ops.ErrCorrupt, says: "log entry 2: descriptor 0...0x1000 bytes at 0x700000"},
		{name: "no bytes", file: zero(4*mib, 0), want: replayed, odd: []string{"vhdx.log.dirty"}},
		{
			name: "all of block 0", file: zero(4*mib, mib), want: base[1:], odd: []string{"vhdx.log.dirty"},
		},
		{
			name: "all of block 0 and then its second page",
			file: logged(update(fixture.Descriptor{Off: 4 * mib, Zero: mib}), update(inBlock0())),
			want: append([]fixture.Write{replayed[0]}, base[1:]...), odd: []string{"vhdx.log.dirty"},
		},
	})
}

func TestH25UpdatesOfWhatNoLogMayTouch(t *testing.T) {
	var family []row
	for _, c := range []struct {
		name string
		off  int64
		says string
	}{
		{"the identifier", 0, "at 0x0,"},
		{"the reserved page behind it", 4096, "at 0x1000,"},
		{"header 1", 64 * kib, "at 0x10000,"},
		{"header 2", 128 * kib, "at 0x20000,"},
		{"the last page below the region tables", 188 * kib, "at 0x2f000,"},
		{"the log's first page", mib, "at 0x100000 "},
		{"the log's last page", 2*mib - 4096, "at 0x1ff000 "},
		{"past the last file offset", 7 * mib, "at 0x700000,"},
		{"far past it", 1 << 62, "at 0x4000000000000000,"},
		{"the end of all offsets", -4096, "at 0xfffffffffffff000,"},
		{"no whole page", 4*mib + 8, "at 0x400008 "},
	} {
		family = append(family,
			row{
				name: c.name + ", data", file: logged(update(inBlock0()), update(fixture.Descriptor{Off: c.off, Data: []byte("x")})),
				class: ops.ErrCorrupt, says: "log entry 2: descriptor 0..." + c.says,
			},
			row{
				name: c.name + ", zeros", file: logged(update(inBlock0()), update(fixture.Descriptor{Off: c.off, Zero: 4096})),
				class: ops.ErrCorrupt, says: "log entry 2: descriptor 0..." + c.says,
			},
		)
	}
	family = append(family,
		row{name: "zeros that reach the log", file: logged(update(fixture.Descriptor{Off: 512 * kib, Zero: mib})), class: ops.ErrCorrupt, says: "0x100000 bytes at 0x80000"},
		row{name: "zeros over the whole file", file: logged(update(fixture.Descriptor{Off: 0, Zero: 7 * mib})), class: ops.ErrCorrupt, says: "0x700000 bytes at 0x0"},
	)
	rows(t, "disk.vhdx", family)
}

func TestH26FileOffsets(t *testing.T) {
	sizes := func(flushed, last int64) fixture.VHDX {
		e := update(inBlock0())
		e.Flushed, e.Last = fixture.Ptr(flushed), fixture.Ptr(last)
		return logged(e)
	}
	dirty := []string{"vhdx.log.dirty"}
	rows(t, "disk.vhdx", []row{
		{name: "flushed a byte past the end", file: sizes(7*mib+1, 7*mib), class: ops.ErrCorrupt, says: "log entry 1: the file had 0x700001 bytes and has 0x700000"},
		{name: "flushed 2^63", file: sizes(math.MinInt64, 7*mib), class: ops.ErrCorrupt, says: "log entry 1: the file had 0x8000000000000000 bytes"},
		{name: "flushed 2^64-1", file: sizes(-1, 7*mib), class: ops.ErrCorrupt, says: "log entry 1: the file had 0xffffffffffffffff bytes"},
		{name: "last 1 EiB", file: sizes(7*mib, 1<<60), class: ops.ErrCorrupt, says: "log entry 1: last file offset 0x1000000000000000"},
		{name: "last 2^63", file: sizes(7*mib, math.MinInt64), class: ops.ErrCorrupt, says: "log entry 1: last file offset 0x8000000000000000"},
		{name: "last 2^64-1", file: sizes(7*mib, -1), class: ops.ErrCorrupt, says: "log entry 1: last file offset 0xffffffffffffffff"},
		{name: "both 0", file: sizes(0, 0), want: replayed, odd: dirty},
		{name: "last 8 MiB", file: sizes(7*mib, 8*mib), want: replayed, odd: dirty},
		{name: "flushed of no whole MiB, as of QEMU", file: sizes(7*mib-100, 7*mib-100), want: replayed, odd: dirty},
	})
}
