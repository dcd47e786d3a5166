package vhdx

import (
	"bytes"
	"slices"

	"vhdfs/ops"
)

const (
	regionTableSize = 64 * kib
	maxRegions      = 2047 // [MS-VHDX] 2.2.3.1
)

var (
	regionOffset = [2]int64{192 * kib, 256 * kib}

	regionBAT      = mustGUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
	regionMetadata = mustGUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
)

// mustGUID reads an id of the specification.
func mustGUID(s string) ops.GUID {
	g, err := ops.ParseGUID(s)
	if err != nil {
		panic(err) // a constant of this package is misspelt
	}
	return g
}

// regions is a region table: where BAT and metadata are, and which other parts
// of the file belong to somebody.
type regions struct {
	bat, metadata span
	others        []span // optional regions that are not known here
	copy          int    // the table that was believed: 0 or 1
}

// all are the extents of every region.
func (r regions) all() []span { return append([]span{r.bat, r.metadata}, r.others...) }

// checkRegionTable tells whether a copy is to be believed: signature, checksum
// and count ([MS-VHDX] 2.2.3).
func checkRegionTable(b []byte) error {
	if got := string(b[0:4]); got != "regi" {
		return corruptf(ops.StatusMetadataRead, "signature %q, want %q", got, "regi")
	}
	if got, want := le.Uint32(b[4:]), checksum(b[:regionTableSize]); got != want {
		return corruptf(ops.StatusMetadataRead, "checksum %#08x, want %#08x", got, want)
	}
	if n := le.Uint32(b[8:]); n > maxRegions {
		return corruptf(ops.StatusMetadataRead, "%d entries, at most %d", n, maxRegions)
	}
	return nil
}

// decodeRegions reads a table whose checksum is right. QEMU leaves the Required
// bit of BAT and metadata unset, so it is not asked for.
func decodeRegions(b []byte) (regions, error) {
	var r regions
	var spans []span
	seen := map[ops.GUID]bool{}
	for i := range int(le.Uint32(b[8:])) {
		e := b[16+32*i:]
		id, off, length := ops.GUIDFromLE(e), le.Uint64(e[16:]), int64(le.Uint32(e[24:]))
		if off < uint64(mib) || off%uint64(mib) != 0 || off > uint64(maxFile) {
			return r, corruptf(ops.StatusMetadataRead, "region %d: offset %#x is not a multiple of 1 MiB from 1 MiB on", i, off)
		}
		if length == 0 || length%mib != 0 {
			return r, corruptf(ops.StatusMetadataRead, "region %d: length %#x is not a multiple of 1 MiB", i, length)
		}
		if seen[id] {
			return r, corruptf(ops.StatusMetadataRead, "region %d: id %s a second time", i, id)
		}
		seen[id] = true
		s := span{int64(off), int64(off) + length}
		spans = append(spans, s)
		switch {
		case id == regionBAT:
			r.bat = s
		case id == regionMetadata:
			r.metadata = s
		case e[28]&1 != 0:
			return r, corruptf(ops.StatusVersionUnsupported, "region %d: id %s is required and not known", i, id)
		default:
			r.others = append(r.others, s)
		}
	}
	if !seen[regionBAT] || !seen[regionMetadata] {
		return r, corruptf(ops.StatusMetadataRead, "region table: no BAT or no metadata region")
	}
	return r, checkDisjoint(spans)
}

// checkDisjoint sorts the extents of regions and finds two that overlap.
func checkDisjoint(spans []span) error {
	slices.SortFunc(spans, func(a, b span) int { return int(min(max(a.off-b.off, -1), 1)) })
	for i := 1; i < len(spans); i++ {
		if spans[i].overlaps(spans[i-1]) {
			return corruptf(ops.StatusMetadataRead, "region at %#x overlaps region at %#x", spans[i].off, spans[i-1].off)
		}
	}
	return nil
}

// pickRegions reads the first copy that is to be believed and names what is
// wrong with the pair.
func pickRegions(raw [2][]byte) (regions, []ops.Anomaly, error) {
	var bad [2]error
	var found []ops.Anomaly
	for i := range raw {
		if bad[i] = checkRegionTable(raw[i]); bad[i] != nil {
			found = append(found, ops.Anomaly{
				Name: "vhdx.region.invalid", Severity: ops.Warning,
				Where: [2]string{"region table 1", "region table 2"}[i], Text: bad[i].Error(),
			})
		}
	}
	use := 0
	if bad[0] != nil {
		use = 1
	}
	if bad[use] != nil {
		return regions{}, found, ops.Wrapf(bad[0], ops.ErrCorrupt, ops.StatusMetadataRead, "vhdx: both region tables are invalid")
	}
	if bad[0] == nil && bad[1] == nil && !bytes.Equal(raw[0], raw[1]) {
		found = append(found, ops.Anomaly{
			Name: "vhdx.region.mismatch", Severity: ops.Warning,
			Where: "region table 2", Text: "the two region tables differ; the first is used",
		})
	}
	r, err := decodeRegions(raw[use])
	r.copy = use
	return r, found, err
}
