package vhdx

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// The image of the log tests: one block of 0x11 at 4 MiB, a second block's space
// of 0x22 at 6 MiB that only a log entry puts into the BAT.
func logged(l *fixture.Log) fixture.VHDX {
	return fixture.VHDX{
		Size: 16 * mib, Log: l, Entries: map[int64]uint64{1: 0},
		Writes: []fixture.Write{{Off: 0, Data: fill(int(2*mib), 0x11)}, {Off: 2 * mib, Data: fill(int(2*mib), 0x22)}},
	}
}

// bat is a data descriptor for the first page of the BAT: block 0 as it is,
// and block 1 at the given place.
func bat(second uint64) fixture.Descriptor {
	return fixture.Descriptor{Off: batOff, Data: append(le64(uint64(4*mib)|6), le64(second)...)}
}

var (
	shown  = bat(uint64(6*mib) | 6)
	hidden = bat(0)
	other  = fixture.MustGUID("99999999-0000-4000-8000-000000000009")
)

func data(ds ...fixture.Descriptor) fixture.LogEntry { return fixture.LogEntry{Descriptors: ds} }

// with changes a copy of an entry.
func with(e fixture.LogEntry, f func(*fixture.LogEntry)) fixture.LogEntry {
	f(&e)
	return e
}

func at(e fixture.LogEntry, off int64) fixture.LogEntry {
	return with(e, func(e *fixture.LogEntry) { e.At = fixture.Ptr(off) })
}

func seq(e fixture.LogEntry, n uint64) fixture.LogEntry {
	return with(e, func(e *fixture.LogEntry) { e.Seq = n })
}

// many are 127 descriptors, the last of which shows the block.
var many = func() []fixture.Descriptor {
	ds := make([]fixture.Descriptor, 127)
	for i := range ds {
		ds[i] = fixture.Descriptor{Off: batOff + 4096*int64(1+i), Data: fill(4096, 0)}
	}
	ds[126] = shown
	return ds
}()

type log = []fixture.LogEntry

// sequences says which entries are replayed. want is byte 0 of block 1: 0x22 when
// the entry that shows it counts, 0 when not. state is "" for the normal one.
var sequences = []struct {
	name    string
	entries log
	want    byte
	state   ops.LogState
}{
	{"one entry", log{data(shown)}, 0x22, ""},
	{"two entries, the later wins", log{data(hidden), data(shown)}, 0x22, ""},
	{"two entries, the later hides", log{data(shown), data(hidden)}, 0, ""},
	{"no descriptors", log{data()}, 0, ""},
	{"an empty entry after one with data", log{data(shown), data()}, 0x22, ""},
	{"127 descriptors in two sectors", log{data(many...)}, 0x22, ""},
	{"at the end of the ring", log{at(data(shown), mib-8192)}, 0x22, ""},
	{"entry wraps between header and data", log{at(data(shown), mib-4096)}, 0x22, ""},
	{"sequence wraps", log{at(data(hidden), mib-8192), data(shown)}, 0x22, ""},
	{"127 descriptors wrap inside the data", log{at(data(many...), mib-300*1024)}, 0x22, ""},
	{"two sequences, the higher head wins", log{seq(data(hidden), 5), at(seq(data(shown), 90), 64*kib)}, 0x22, ""},
	{"two sequences, the higher head comes first", log{seq(data(shown), 90), at(seq(data(hidden), 5), 64*kib)}, 0x22, ""},
	{"longer sequence with a lower head", log{seq(data(shown), 9), at(seq(data(hidden), 3), 64*kib), data(hidden), data(hidden)}, 0x22, ""},
	{"sequence number gap ends the sequence", log{data(shown), seq(data(hidden), 3)}, 0x22, ""},
	{"sequence number in 64 bits", log{seq(data(shown), 1<<32), data(shown)}, 0x22, ""},
	{"tail names the last entry", log{data(shown), with(data(), func(e *fixture.LogEntry) { e.Tail = fixture.Ptr(int64(8192)) })}, 0, ""},
	{"tail before the sequence", log{at(with(data(shown), func(e *fixture.LogEntry) { e.Tail = fixture.Ptr(int64(0)) }), 64*kib)}, 0, ops.LogEmpty},
	{"tail inside an entry", log{with(data(shown), func(e *fixture.LogEntry) { e.Tail = fixture.Ptr(int64(4096)) })}, 0, ops.LogEmpty},
	{"tail not aligned", log{with(data(shown), func(e *fixture.LogEntry) { e.Tail = fixture.Ptr(int64(512)) })}, 0, ops.LogEmpty},
	{"tail outside the log", log{with(data(shown), func(e *fixture.LogEntry) { e.Tail = fixture.Ptr(mib) })}, 0, ops.LogEmpty},
	{"torn last sector", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.Torn = true })}, 0x22, ""},
	{"only a torn entry", log{with(data(shown), func(e *fixture.LogEntry) { e.Torn = true })}, 0, ops.LogEmpty},
	{"bad checksum", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.BadSum = true })}, 0x22, ""},
	{"data sector of another write", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.BadDataSeq = true })}, 0x22, ""},
	{"descriptor of another write", log{data(shown), data(fixture.Descriptor{Off: batOff, Data: hidden.Data, Seq: 7})}, 0x22, ""},
	{"descriptor signature", log{data(shown), data(fixture.Descriptor{Off: batOff, Data: hidden.Data, Kind: "DESC"})}, 0x22, ""},
	{"entry signature", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.Signature = "LOGE" })}, 0x22, ""},
	{"sequence number 0", log{with(data(shown), func(e *fixture.LogEntry) { e.Seq = math.MaxUint64 }), data(hidden)}, 0x22, ""},
	{"length 0", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.Length = fixture.Ptr(uint32(0)) })}, 0x22, ""},
	{"length over the log", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.Length = fixture.Ptr(uint32(2 << 20)) })}, 0x22, ""},
	{"length not whole sectors", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.Length = fixture.Ptr(uint32(8191)) })}, 0x22, ""},
	{"length of one more sector", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.Length = fixture.Ptr(uint32(12288)) })}, 0x22, ""},
	{"2^32-1 descriptors", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.Count = fixture.Ptr(uint32(math.MaxUint32)) })}, 0x22, ""},
	{"other log, higher numbers", log{data(shown), at(seq(with(data(hidden), func(e *fixture.LogEntry) { e.GUID = other }), 99), 64*kib)}, 0x22, ""},
	{"other log, next number", log{data(shown), with(data(hidden), func(e *fixture.LogEntry) { e.GUID = other })}, 0x22, ""},
	{"only another log", log{with(data(shown), func(e *fixture.LogEntry) { e.GUID = other })}, 0, ops.LogEmpty},
	{"zeros over the BAT", log{data(shown), data(fixture.Descriptor{Off: batOff, Zero: 4096}), data(shown)}, 0x22, ""},
}

func TestLogFindsTheActiveSequence(t *testing.T) {
	for _, tt := range sequences {
		t.Run(tt.name, func(t *testing.T) {
			for _, garbage := range []bool{false, true} {
				d := openRead(t, logged(&fixture.Log{Entries: tt.entries, Garbage: garbage}))
				if tt.state == "" {
					tt.state = ops.LogReplayed
				}
				require.Equal(t, tt.state, d.Info().Log)
				require.Equal(t, []byte{tt.want}, read(t, d, 2*mib, 1))
				require.Equal(t, []byte{0x11}, read(t, d, 0, 1))
			}
		})
	}
}

func TestCleanLogIsNotRead(t *testing.T) {
	v := logged(&fixture.Log{Entries: []fixture.LogEntry{data(shown)}})
	v.Patches = bothHeaders(48, make([]byte, 16))
	d := openRead(t, v)
	require.Equal(t, ops.LogClean, d.Info().Log)
	require.Equal(t, []byte{0}, read(t, d, 2*mib, 1))
}

// Zeros in the log are zeros, wherever data stood before them in it, and data
// after them is data.
func TestLogZeroDescriptors(t *testing.T) {
	payload := func(off int64, b byte) fixture.Descriptor {
		return fixture.Descriptor{Off: off, Data: fill(4096, b)}
	}
	zero := func(off, n int64) fixture.Descriptor { return fixture.Descriptor{Off: off, Zero: n} }
	d := openRead(t, logged(&fixture.Log{Entries: []fixture.LogEntry{
		data(shown, payload(4*mib+4096, 0x33), payload(4*mib+12288, 0x44), payload(4*mib+3*64*kib, 0x55)),
		data(zero(4*mib+4096, 8192), zero(4*mib+64*kib, 2*mib)),
		data(payload(4*mib+128*kib, 0x66)),
	}}))
	for off, want := range map[int64]byte{
		0: 0x11, 4095: 0x11, 4096: 0, 8192: 0, 12287: 0, 12288: 0x44, 16383: 0x44, 16384: 0x11,
		64*kib - 1: 0x11, 64 * kib: 0, 128*kib - 1: 0, 128 * kib: 0x66, 132*kib - 1: 0x66, 132 * kib: 0, 192 * kib: 0,
		2*mib - 1: 0, 2 * mib: 0, 2*mib + 64*kib - 1: 0, 2*mib + 64*kib: 0x22,
	} {
		require.Equal(t, []byte{want}, read(t, d, off, 1), "at %d", off)
	}
	whole := read(t, d, 0, 4*mib)
	require.Equal(t, byte(0x44), whole[12288])
	require.Equal(t, byte(0x22), whole[4*mib-1])
}

// T32: the ends of a page stand in its descriptor, the first 8 bytes at 8 and the
// last 4 at 4.
func TestTrapT32PageEnds(t *testing.T) {
	page := make([]byte, 4096)
	for i := range page {
		page[i] = byte(i*31 + i>>8)
	}
	d := openRead(t, logged(&fixture.Log{Entries: []fixture.LogEntry{data(fixture.Descriptor{Off: 4 * mib, Data: page})}}))
	require.Equal(t, page, read(t, d, 0, 4096))
	require.Equal(t, page[5:4093], read(t, d, 5, 4088))
}

// T7, H23-H26: what makes a log unfit to be replayed refuses the whole file
// before anything of it is believed.
func TestLogRejects(t *testing.T) {
	for _, tt := range []struct {
		name  string
		entry fixture.LogEntry
		err   string
	}{
		{"file was truncated", with(data(shown), func(e *fixture.LogEntry) { e.Flushed = fixture.Ptr(9 * mib) }), "the file had 0x900000 bytes and has 0x800000: it was truncated"},
		{"flushed 2^63", with(data(shown), func(e *fixture.LogEntry) { e.Flushed = fixture.Ptr(int64(math.MinInt64)) }), "it was truncated"},
		{"extension of 1 EiB", with(data(shown), func(e *fixture.LogEntry) { e.Last = fixture.Ptr(int64(1 << 60)) }), "last file offset 0x1000000000000000"},
		{"target in the identifier", data(fixture.Descriptor{Off: 0, Data: []byte{1}}), "descriptor 0"},
		{"target in a header", data(shown, fixture.Descriptor{Off: 64 * kib, Data: []byte{1}}), "descriptor 1: image is corrupt (vhdx: 0x1000 bytes at 0x10000"},
		{"target below the region tables", data(fixture.Descriptor{Off: 192*kib - 4096, Data: []byte{1}}), "allowed from 0x30000"},
		{"target in the log", data(fixture.Descriptor{Off: mib, Data: []byte{1}}), "touch the log itself"},
		{"last page of the log", data(fixture.Descriptor{Off: 2*mib - 4096, Data: []byte{1}}), "touch the log itself"},
		{"target past the last offset", data(fixture.Descriptor{Off: 8 * mib, Data: []byte{1}}), "to 0x800000"},
		{"target not a page", data(fixture.Descriptor{Off: batOff + 512, Data: []byte{1}}), "are not whole pages"},
		{"zeros over the headers", data(fixture.Descriptor{Off: 128 * kib, Zero: 64 * kib}), "allowed from"},
		{"zeros over the log", data(fixture.Descriptor{Off: 256 * kib, Zero: 4 * mib}), "touch the log itself"},
		{"zeros of 2^36 bytes", data(fixture.Descriptor{Off: batOff, Zero: 1 << 36}), "0x1000000000 bytes"},
		{"zeros of 2^63 bytes", data(fixture.Descriptor{Off: batOff, Zero: math.MinInt64}), "0x8000000000000000 bytes"},
		{"zeros that wrap", data(fixture.Descriptor{Off: batOff, Zero: -4096}), "0xfffffffffffff000 bytes"},
		{"zeros of half a page", data(fixture.Descriptor{Off: batOff, Zero: 512}), "are not whole pages"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := place(t, logged(&fixture.Log{Entries: []fixture.LogEntry{data(shown), tt.entry}}))
			h.Freeze()
			_, err := openHost(t, h, ops.Read)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, "log entry 2")
			require.ErrorContains(t, err, tt.err)
			require.Zero(t, h.Refused())
		})
	}
}

// The flushed size of the head counts, not those of older entries; sizes need
// not be multiples of 1 MiB (T7).
func TestTrapT7OnlyTheHeadsSizesCount(t *testing.T) {
	old := with(data(shown), func(e *fixture.LogEntry) { e.Flushed, e.Last = fixture.Ptr(90*mib), fixture.Ptr(90*mib) })
	head := with(data(), func(e *fixture.LogEntry) { e.Flushed, e.Last = fixture.Ptr(8*mib-1), fixture.Ptr(9*mib+1) })
	d := openRead(t, logged(&fixture.Log{Entries: []fixture.LogEntry{old, head}}))
	require.Equal(t, 9*mib+1, d.fileSize)
	require.Equal(t, []byte{0x22}, read(t, d, 2*mib, 1))
}

// LastFileOffset extends the file as far as reading is concerned: a block in that
// space reads as zeros, one past it fails.
func TestLogExtendsTheFile(t *testing.T) {
	e := with(data(bat(uint64(8*mib)|6)), func(e *fixture.LogEntry) { e.Last = fixture.Ptr(9*mib + 4096) })
	d := openRead(t, logged(&fixture.Log{Entries: []fixture.LogEntry{e}}))
	require.Equal(t, make([]byte, mib+4096), read(t, d, 2*mib, mib+4096))
	require.ErrorIs(t, readErr(d, 3*mib+4096), ops.ErrCorrupt)
}

// H28: what the log makes of the file is judged like a file.
func TestReplayedImageIsValidated(t *testing.T) {
	for _, tt := range []struct {
		name string
		d    fixture.Descriptor
		err  string
	}{
		{"metadata table", fixture.Descriptor{Off: metaOff, Data: []byte("metadatum")}, "metadata table"},
		{"items", fixture.Descriptor{Off: metaOff + 64*kib, Data: le32(3 << 20)}, "block size 3145728"},
		{"zeroed metadata", fixture.Descriptor{Off: metaOff, Zero: 128 * kib}, "metadata table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := place(t, logged(&fixture.Log{Entries: []fixture.LogEntry{data(tt.d)}}))
			h.Freeze()
			_, err := openHost(t, h, ops.Read)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, tt.err)
		})
	}
	d := openRead(t, logged(&fixture.Log{Entries: []fixture.LogEntry{data(bat(uint64(mib) | 6))}}))
	require.ErrorContains(t, readErr(d, 2*mib), "overlaps the log")
}

// H27: a ring full of minimal entries, and the largest ring that is replayed.
func TestLogFullOfEntries(t *testing.T) {
	l := &fixture.Log{}
	for range 254 {
		l.Entries = append(l.Entries, data())
	}
	l.Entries = append(l.Entries, data(shown))
	d := openRead(t, logged(l))
	require.Equal(t, []byte{0x22}, read(t, d, 2*mib, 1))

	v := logged(&fixture.Log{Entries: []fixture.LogEntry{data(shown)}})
	v.LogLength = 65 << 20
	h, _ := place(t, v)
	_, err := openHost(t, h, ops.Read)
	require.ErrorIs(t, err, ops.ErrCorrupt)
	require.ErrorContains(t, err, "65 MiB to replay, at most 64")
}

// Entries inside entries cannot make the finder verify the same bytes for ever.
func TestLogOfNestedEntries(t *testing.T) {
	m, err := fixture.VHDX{Size: 16 * mib, LogLength: 16 << 20, Log: &fixture.Log{}}.Build()
	require.NoError(t, err)
	head := data().Raw(m.LogGUID(), 1)
	for at := int64(0); at < 16*mib; at += 4096 {
		copy(head[8:], le32(uint32(16<<20)))
		m.Write(m.LogOff+at, head)
	}
	h := hostWith(m.Sparse)
	_, err = openHost(t, h, ops.Read)
	require.ErrorIs(t, err, ops.ErrCorrupt)
	require.ErrorContains(t, err, "entries overlap each other")
}
