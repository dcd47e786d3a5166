package vhd

import (
	"encoding/binary"
	"fmt"
	"time"

	"vhdfs/ops"
)

const (
	sectorSize      = 512
	footerSize      = 512
	shortFooterSize = 511 // before Virtual PC 2004

	// maxSparseSize bounds dynamic and differencing disks: sector numbers have
	// 32 bits, and Microsoft's tools stop at 2040 GiB.
	maxSparseSize = 2040 << 30

	noDataOffset = ^uint64(0) // DataOffset of a fixed disk

	// offsets of the checksums
	footerSumAt = 64
	headerSumAt = 36
)

const (
	footerCookie = "conectix"
	poisonCookie = "v_poison" // blktap puts it over the cookie of a file that must not be used
)

// epoch is what timestamps count seconds from.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const creatorTap = "tap\x00" // blktap, which has extensions of its own

// sizeCreators are the creators that QEMU believes to mean the geometry, not
// CurrentSize, and what a disk says instead whose size no geometry has: QEMU itself
// then says qem2.
var sizeCreators = map[string]string{"vpc ": newCreator, "qemu": "qem2"}

// footer is the last sector of every image; dynamic and differencing ones keep
// a copy at 0 (vhd specification, "Hard Disk Footer Format").
type footer struct {
	raw     [footerSize]byte // as stored: bytes without a field below survive a rewrite
	version uint32
	// dataOffset is the byte offset of the dynamic header; meaningless when fixed.
	dataOffset     uint64
	timestamp      uint32
	creator        string
	creatorVersion uint32
	originalSize   uint64
	currentSize    uint64
	chs            geometry
	diskType       uint32
	sum            uint32
	id             ops.GUID
	savedState     bool
}

// decodeFooter reads the fields of b, 511 or 512 bytes, and judges none of them.
func decodeFooter(b []byte) footer {
	var f footer
	copy(f.raw[:], b)
	be := binary.BigEndian
	f.version = be.Uint32(f.raw[12:])
	f.dataOffset = be.Uint64(f.raw[16:])
	f.timestamp = be.Uint32(f.raw[24:])
	f.creator = string(f.raw[28:32])
	f.creatorVersion = be.Uint32(f.raw[32:])
	f.originalSize = be.Uint64(f.raw[40:])
	f.currentSize = be.Uint64(f.raw[48:])
	f.chs = geometry{be.Uint16(f.raw[56:]), f.raw[58], f.raw[59]}
	f.diskType = be.Uint32(f.raw[60:])
	f.sum = be.Uint32(f.raw[64:])
	copy(f.id[:], f.raw[68:84])
	f.savedState = f.raw[84] != 0
	return f
}

// encode is the sector to store: the raw bytes with the fields of f and a
// fresh checksum.
func (f *footer) encode() []byte {
	b := make([]byte, footerSize)
	copy(b, f.raw[:])
	copy(b, footerCookie)
	be := binary.BigEndian
	be.PutUint32(b[12:], f.version)
	be.PutUint64(b[16:], f.dataOffset)
	be.PutUint32(b[24:], f.timestamp)
	copy(b[28:32], f.creator)
	be.PutUint32(b[32:], f.creatorVersion)
	be.PutUint64(b[40:], f.originalSize)
	be.PutUint64(b[48:], f.currentSize)
	be.PutUint16(b[56:], f.chs.cylinders)
	b[58], b[59] = f.chs.heads, f.chs.sectors
	be.PutUint32(b[60:], f.diskType)
	copy(b[68:84], f.id[:])
	b[84] = 0
	if f.savedState {
		b[84] = f.raw[84]
	}
	putChecksum(b, footerSumAt)
	return b
}

// checksum is the complement of the sum of all bytes of b, the four at skip
// taken as zero.
func checksum(b []byte, skip int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < skip || i >= skip+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

func putChecksum(b []byte, at int) { binary.BigEndian.PutUint32(b[at:], checksum(b, at)) }

// sumGood accepts the right checksum, and the one of old blktap, which set its
// hidden flag in byte 85 without counting it.
func (f *footer) sumGood() bool {
	want := checksum(f.raw[:], footerSumAt)
	return f.sum == want || f.sum == want+uint32(f.raw[85])
}

// validate says which field makes the footer at where unusable.
func (f *footer) validate(where string) error {
	if f.version>>16 != 1 {
		return ops.Corruptf(ops.StatusVersionUnsupported, "vhd: %s: version %#08x, want 0x00010000", where, f.version)
	}
	switch ops.Type(f.diskType) {
	case ops.Fixed, ops.Dynamic, ops.Differencing:
	default:
		return ops.Corruptf(ops.StatusFooterCorrupt, "vhd: %s: disk type %d, want 2, 3 or 4", where, f.diskType)
	}
	if f.currentSize == 0 || f.currentSize%sectorSize != 0 || f.currentSize > 1<<62 {
		return ops.Corruptf(ops.StatusSizeInvalid, "vhd: %s: size %d is not a whole number of sectors above 0", where, f.currentSize)
	}
	if f.typ() != ops.Fixed && f.currentSize > maxSparseSize {
		return ops.Corruptf(ops.StatusSizeInvalid, "vhd: %s: size %d is over 2040 GiB", where, f.currentSize)
	}
	return nil
}

func (f *footer) typ() ops.Type { return ops.Type(f.diskType) }

// misread tells whether QEMU would see another size than CurrentSize.
func (f *footer) misread() bool {
	chs := f.chs.bytes()
	return sizeCreators[f.creator] != "" && chs != int64(f.currentSize) && chs < maxCHS*sectorSize
}

// geometryNote is the anomaly of a size that QEMU misreads, if it does.
func (f *footer) geometryNote(where string) []ops.Anomaly {
	if !f.misread() {
		return nil
	}
	return []ops.Anomaly{{
		Name: "vhd.geometry", Severity: ops.Note, Where: where,
		Text: fmt.Sprintf("geometry says %d bytes, the size field %d: QEMU goes by the geometry", f.chs.bytes(), f.currentSize),
	}}
}

func (f *footer) creatorText() string {
	return fmt.Sprintf("%s %d.%d", f.creator, f.creatorVersion>>16, f.creatorVersion&0xffff)
}

// sameButSwitched tells whether f and g differ at most in what a change of header
// or size sets: DataOffset, size, geometry, timestamp, creator if QEMU would go by
// the geometry, and so the checksum.
func (f *footer) sameButSwitched(g *footer) bool {
	a, b := f.raw, g.raw
	for _, r := range [][2]int{{16, 28}, {48, 60}, {64, 68}} {
		clear(a[r[0]:r[1]])
		clear(b[r[0]:r[1]])
	}
	if sizeCreators[f.creator] == g.creator || sizeCreators[g.creator] == f.creator {
		clear(a[28:32])
		clear(b[28:32])
	}
	return a == b
}

// stamp turns a stored timestamp into a time; 0 is no time.
func stamp(t uint32) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return epoch.Add(time.Duration(t) * time.Second)
}

// unstamp is the stored form of t, 0 when it cannot be stored.
func unstamp(t time.Time) uint32 {
	s := t.Unix() - epoch.Unix()
	if t.IsZero() || s < 0 || s > 0xffffffff {
		return 0
	}
	return uint32(s)
}
