package vhdx

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

const (
	metaOff = 2 * mib
	batOff  = 3 * mib
)

func le16(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// both patches a field of both headers, or of both region tables.
func both(first, at int64, b []byte) []fixture.Patch {
	return []fixture.Patch{{Off: first + at, Data: b, Repair: true}, {Off: first + 64*kib + at, Data: b, Repair: true}}
}

func meta(at int64, b []byte) []fixture.Patch {
	return []fixture.Patch{{Off: metaOff + at, Data: b}}
}

// itemAt is where field at of metadata entry i stands.
func itemAt(i, at int64) int64 { return 32 + 32*i + at }

func bothHeaders(at int64, b []byte) []fixture.Patch { return both(fixture.VHDXHeader1, at, b) }
func bothRegions(at int64, b []byte) []fixture.Patch { return both(fixture.VHDXRegion1, at, b) }

func guidLE(s string) []byte {
	b := make([]byte, 16)
	fixture.PutGUID(b, fixture.MustGUID(s))
	return b
}

const (
	guidBAT     = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	guidSize    = "2fa54224-cd1b-4876-b211-5dbed83bf4b8"
	guidUnknown = "11111111-2222-3333-4444-555555555555"
)

// rejected has a row for each way in which a field can be wrong. The image is a
// good one apart from the patch.
var rejected = []struct {
	name  string
	patch []fixture.Patch
	err   string
}{
	{"identifier", []fixture.Patch{{Off: 0, Data: []byte("VHDXFILE")}}, `identifier: signature "VHDXFILE"`},
	{"header signatures", bothHeaders(0, []byte("haed")), "both headers are invalid"},
	{"header checksums", []fixture.Patch{{Off: fixture.VHDXHeader1 + 100, Data: []byte{1}}, {Off: fixture.VHDXHeader2 + 100, Data: []byte{1}}}, "both headers are invalid"},
	{"header version 0", bothHeaders(66, le16(0)), "header: version 0, want 1"},
	{"header version 2", bothHeaders(66, le16(2)), "header: version 2, want 1"},
	{"equal sequence numbers, different headers", []fixture.Patch{{Off: fixture.VHDXHeader1 + 8, Data: le64(8), Repair: true}, {Off: fixture.VHDXHeader1 + 20, Data: []byte{0xAA}, Repair: true}}, "two different copies with sequence number 8"},
	{"log length not MiB", bothHeaders(68, le32(0x80000)), "log length 0x80000"},
	{"log offset not MiB", bothHeaders(72, le64(0x180000)), "log offset 0x180000"},
	{"log offset in the header section", bothHeaders(72, le64(0)), "log offset 0x0"},
	{"log past the end", bothHeaders(72, le64(1<<40)), "past end of file"},
	{"log offset wraps", bothHeaders(72, le64(math.MaxUint64-0xfffff)), "past end of file"},
	{"log length past the end", bothHeaders(68, le32(0xfff00000)), "past end of file"},
	{"log over a region", bothHeaders(72, le64(uint64(metaOff))), "overlaps the log"},

	{"region signatures", bothRegions(0, []byte("rigi")), "both region tables are invalid"},
	{"region checksums", []fixture.Patch{{Off: fixture.VHDXRegion1 + 100, Data: []byte{1}}, {Off: fixture.VHDXRegion2 + 100, Data: []byte{1}}}, "both region tables are invalid"},
	{"region count 2048", bothRegions(8, le32(2048)), "both region tables are invalid"},
	{"region count 2^32-1", bothRegions(8, le32(math.MaxUint32)), "both region tables are invalid"},
	{"region count 0", bothRegions(8, le32(0)), "no BAT or no metadata"},
	{"no metadata region", bothRegions(8, le32(1)), "no BAT or no metadata"},
	{"region twice", bothRegions(48, guidLE(guidBAT)), "a second time"},
	{"unknown region required", bothRegions(48, guidLE(guidUnknown)), "is required and not known"},
	{"region offset not MiB", bothRegions(32, le64(uint64(batOff)+4096)), "region 0: offset 0x301000"},
	{"region offset in the header section", bothRegions(32, le64(0)), "region 0: offset 0x0"},
	{"region offset wraps", bothRegions(32, le64(math.MaxUint64-0xfffff)), "region 0: offset"},
	{"region length not MiB", bothRegions(40, le32(4096)), "region 0: length 0x1000"},
	{"region length 0", bothRegions(40, le32(0)), "region 0: length 0x0"},
	{"regions are the same", bothRegions(32, le64(uint64(metaOff))), "overlaps region"},
	{"regions overlap by one MiB", append(bothRegions(32, le64(uint64(metaOff-mib))), bothRegions(40, le32(2<<20))...), "overlaps region"},
	{"region over the log", bothRegions(32, le64(uint64(mib))), "overlaps the log"},
	{"metadata region past the end", bothRegions(64, le64(1<<40)), "metadata table: file ends"},
	{"BAT past the end", bothRegions(32, le64(1<<40)), "past end of file"},

	{"metadata signature", meta(0, []byte("METADATA")), "metadata table: signature"},
	{"metadata count 2048", meta(10, le16(2048)), "2048 entries"},
	{"metadata count 65535", meta(10, le16(65535)), "65535 entries"},
	{"item offset inside the table", meta(itemAt(1, 16), le32(65535)), "offset 0xffff is inside the table"},
	{"item past the region", meta(itemAt(1, 16), le32(uint32(mib)-7)), "past the end of the region"},
	{"item offset 2^32-1", meta(itemAt(1, 16), le32(math.MaxUint32)), "past the end of the region"},
	{"item length over 1 MiB", meta(itemAt(1, 20), le32(uint32(mib)+1)), "length 1048577"},
	{"items overlap", meta(itemAt(1, 16), le32(fixture.VHDXItemDiskID-1)), "overlaps item"},
	{"item twice", meta(itemAt(2, 0), guidLE(guidSize)), "a second time"},
	{"required item missing", meta(10, le16(4)), "metadata item cda348c7-445d-4471-9cc9-e9885251c556"},
	{"unknown item required", meta(itemAt(4, 0), guidLE(guidUnknown)), "is required and not known"},
	{"known item as required user item", meta(itemAt(4, 24), le32(7)), "is required and not known"},
	{"item id zero", meta(itemAt(4, 0), make([]byte, 16)), "id is zero"},
	{"item reserved flags", meta(itemAt(1, 24), le32(8|6)), "reserved flags 0xe"},
	{"item of wrong length", meta(itemAt(1, 20), le32(4)), "4 bytes, want 8"},
	{"incomplete file", append(meta(itemAt(4, 0), guidLE("71cc85f0-1b69-4e28-9558-c3bf83ae75d3")), meta(itemAt(4, 20), le32(0))...), "never finished"},

	{"block size 0", meta(fixture.VHDXItemParameters, le32(0)), "block size 0 "},
	{"block size 512 KiB", meta(fixture.VHDXItemParameters, le32(512<<10)), "block size 524288 "},
	{"block size 3 MiB", meta(fixture.VHDXItemParameters, le32(3<<20)), "block size 3145728 "},
	{"block size 512 MiB", meta(fixture.VHDXItemParameters, le32(512<<20)), "block size 536870912 "},
	{"block size 2^32-1", meta(fixture.VHDXItemParameters, le32(math.MaxUint32)), "block size 4294967295 "},
	{"logical sector 0", meta(fixture.VHDXItemLogical, le32(0)), "logical sector size 0"},
	{"logical sector 1", meta(fixture.VHDXItemLogical, le32(1)), "logical sector size 1"},
	{"logical sector 513", meta(fixture.VHDXItemLogical, le32(513)), "logical sector size 513"},
	{"logical sector 1024", meta(fixture.VHDXItemLogical, le32(1024)), "logical sector size 1024"},
	{"physical sector 0", meta(fixture.VHDXItemPhysical, le32(0)), "physical sector size 0"},
	{"physical sector 4097", meta(fixture.VHDXItemPhysical, le32(4097)), "physical sector size 4097"},
	{"virtual size 0", meta(fixture.VHDXItemSize, le64(0)), "virtual size 0 "},
	{"virtual size unaligned", meta(fixture.VHDXItemSize, le64(511)), "virtual size 511 "},
	{"virtual size over 64 TiB", meta(fixture.VHDXItemSize, le64(64<<40+512)), "virtual size 70368744178176 "},
	{"virtual size with a 32-bit BAT count of 25", meta(fixture.VHDXItemSize, le64((1<<32+25)<<20)), "virtual size"},
	{"virtual size 2^63", meta(fixture.VHDXItemSize, le64(1<<63)), "virtual size"},
	{"virtual size 2^64-512", meta(fixture.VHDXItemSize, le64(math.MaxUint64-511)), "virtual size"},
	{"BAT shorter than the disk needs", meta(fixture.VHDXItemSize, le64(64<<40)), "the region has 0x100000"},
}

// Every field that opening refuses.
func TestOpenRejects(t *testing.T) {
	for _, tt := range rejected {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := place(t, fixture.VHDX{Size: 16 * mib, Patches: tt.patch})
			h.Freeze()
			_, err := openHost(t, h, ops.Read)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, tt.err)
			require.ErrorContains(t, err, "vhdx: ")
			require.Zero(t, h.Refused())
		})
	}
}

// What looks odd and is legal, or harmless, opens.
func TestOpenTolerates(t *testing.T) {
	for _, tt := range []struct {
		name    string
		image   fixture.VHDX
		anomaly string
	}{
		{"region entries not marked as required", fixture.VHDX{NotRequired: true}, ""},
		{"header 1 damaged", fixture.VHDX{BadHeader: [2]bool{true, false}}, "vhdx.header.invalid"},
		{"header 2 damaged", fixture.VHDX{BadHeader: [2]bool{false, true}}, "vhdx.header.invalid"},
		{"region table 1 damaged", fixture.VHDX{BadRegion: [2]bool{true, false}}, "vhdx.region.invalid"},
		{"region table 2 damaged", fixture.VHDX{BadRegion: [2]bool{false, true}}, "vhdx.region.invalid"},
		{"region tables differ", fixture.VHDX{Patches: []fixture.Patch{{Off: fixture.VHDXRegion2 + 12, Data: []byte{1}, Repair: true}}}, "vhdx.region.mismatch"},
		{"identical headers", fixture.VHDX{Sequence: [2]uint64{3, 3}}, "vhdx.header.equal"},
		{"unknown optional item", fixture.VHDX{Items: []fixture.Item{{ID: fixture.MustGUID(guidUnknown), Data: []byte{1}}}}, ""},
		{"unknown user item", fixture.VHDX{Items: []fixture.Item{{ID: fixture.MustGUID(guidUnknown), Flags: 1, Data: []byte{1}}}}, ""},
		{"physical sector not required", fixture.VHDX{Patches: meta(itemAt(4, 24), le32(2))}, ""},
		{"log version without a log in use", fixture.VHDX{Patches: bothHeaders(64, le16(9))}, ""},
		{"reserved bytes of the headers", fixture.VHDX{Patches: bothHeaders(4000, []byte{1, 2, 3})}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.image.Size = 16 * mib
			tt.image.Writes = []fixture.Write{{Off: 5 * mib, Data: fill(512, 7)}}
			d := openRead(t, tt.image)
			require.Equal(t, fill(512, 7), read(t, d, 5*mib, 512))
			require.Empty(t, d.Info().ReadOnly)
			var names []string
			for _, a := range d.Info().Anomalies {
				names = append(names, a.Name)
			}
			if tt.anomaly == "" {
				require.Empty(t, names)
			} else {
				require.Equal(t, []string{tt.anomaly}, names)
			}
		})
	}
}

func TestHeaderWithTheHigherSequenceNumberCounts(t *testing.T) {
	a, b := fixture.MustGUID("aaaaaaaa-0000-4000-8000-000000000001"), fixture.MustGUID("bbbbbbbb-0000-4000-8000-000000000002")
	for _, tt := range []struct {
		name string
		seq  [2]uint64
		want ops.GUID
	}{
		{"first", [2]uint64{9, 8}, a},
		{"second", [2]uint64{8, 9}, b},
		{"by far", [2]uint64{1 << 63, 9}, a},
	} {
		t.Run(tt.name, func(t *testing.T) {
			le := func(g [16]byte) []byte { p := make([]byte, 16); fixture.PutGUID(p, g); return p }
			d := openRead(t, fixture.VHDX{Size: 16 * mib, Sequence: tt.seq, Patches: []fixture.Patch{
				{Off: fixture.VHDXHeader1 + 32, Data: le(a), Repair: true}, {Off: fixture.VHDXHeader2 + 32, Data: le(b), Repair: true},
			}})
			require.Equal(t, tt.want, d.Info().LinkID)
		})
	}
}

func TestLastSequenceNumberIsReadOnly(t *testing.T) {
	v := fixture.VHDX{Size: 16 * mib, Sequence: [2]uint64{math.MaxUint64, 5}}
	require.NotEmpty(t, openRead(t, v).Info().ReadOnly)
	h, _ := place(t, v)
	_, err := openHost(t, h, ops.Write)
	require.ErrorIs(t, err, ops.ErrReadOnly)
}

// A file that ends inside any structure that is needed is refused; one that ends
// later opens.
func TestTruncatedFile(t *testing.T) {
	whole, err := fixture.VHDX{Size: 16 * mib}.Build()
	require.NoError(t, err)
	for _, tt := range []struct {
		cut int64
		err string
	}{
		{0, "identifier"},
		{1, "identifier"},
		{511, "identifier"},
		{64 * kib, "header 1"},
		{64*kib + 4095, "header 1"},
		{128*kib + 1, "header 2"},
		{192 * kib, "past end of file"},
		{256 * kib, "past end of file"},
		{mib, "past end of file"},
		{2*mib - 1, "past end of file"},
		{2 * mib, "metadata table"},
		{2*mib + 64*kib, "metadata item"},
		{3 * mib, "bat: 0x40 bytes"},
		{3*mib + 4096, ""},
		{4 * mib, ""},
	} {
		m := whole.Clone()
		m.Truncate(tt.cut)
		h := hostWith(m)
		h.Freeze()
		d, err := openHost(t, h, ops.Read)
		if tt.err == "" {
			require.NoError(t, err, "cut at %d", tt.cut)
			require.NoError(t, d.Close())
			continue
		}
		require.ErrorIs(t, err, ops.ErrCorrupt, "cut at %d", tt.cut)
		require.ErrorContains(t, err, tt.err, "cut at %d", tt.cut)
	}
}
