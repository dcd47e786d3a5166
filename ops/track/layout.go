package track

import (
	"encoding/binary"
	"hash/crc32"

	"vhdfs/ops"
)

const (
	// Suffix ends the name of a tracking file, after the name of its image.
	Suffix = ".vct"

	magic       = "vhdfsvct"
	version     = 1
	headerSize  = 4096
	maxIDs      = 1024
	idSize      = 32
	sectorSize  = 512
	sectorHead  = 8
	perSector   = (sectorSize - sectorHead) / 8
	pageHead    = 16
	regionsAt   = 128 << 10
	pagesAt     = 2 << 20
	minPage     = 512
	maxPage     = 64 << 10
	minGranule  = 64 << 10
	maxGranule  = 1 << 30
	maxGranules = 32 << 20 // when a file is made
	maxNew      = 16384    // regions, when a file is made
	maxRegions  = (pagesAt - regionsAt) / sectorSize * perSector
	maxSize     = 1 << 50 // bytes of a disk, more than any format has
)

// headerAt is where the two headers stand.
var headerAt = [2]int64{0, 64 << 10}

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func corruptf(format string, args ...any) error {
	return ops.Corruptf(0, "tracking file: "+format, args...)
}

// checksum is the CRC-32C of b without the four bytes at off.
func checksum(b []byte, off int) uint32 {
	return crc32.Update(crc32.Checksum(b[:off], castagnoli), castagnoli, b[off+4:])
}

// geometry is how a table is cut.
type geometry struct {
	granule int64 // bytes of the disk
	page    int64 // bytes of the file
}

// newGeometry is that of a new file: 64 KiB granules up to 2 TiB, and pages as
// small as [maxNew] regions allow.
func newGeometry(size int64) geometry {
	g := geometry{granule: minGranule, page: minPage}
	for g.granules(size) > maxGranules {
		g.granule *= 2
	}
	for g.regions(size) > maxNew {
		g.page *= 2
	}
	return g
}

func (g geometry) granules(size int64) int64 { return (size + g.granule - 1) / g.granule }

// perRegion is how many granules have their numbers in one page.
func (g geometry) perRegion() int64 { return (g.page - pageHead) / 4 }

func (g geometry) regions(size int64) int64 {
	return (g.granules(size) + g.perRegion() - 1) / g.perRegion()
}

// bytes is how much of a disk a region covers.
func (g geometry) bytes() int64 { return g.perRegion() * g.granule }

func (g geometry) pageAt(region int64, version uint32) int64 {
	return pagesAt + (2*region+int64(version&1))*g.page
}

func (g geometry) check(size int64) error {
	power := func(n, lo, hi int64) bool { return n >= lo && n <= hi && n&(n-1) == 0 }
	switch {
	case !power(g.granule, minGranule, maxGranule):
		return corruptf("header: granule of %d bytes, want a power of 2 from %d to %d", g.granule, minGranule, maxGranule)
	case !power(g.page, minPage, maxPage):
		return corruptf("header: pages of %d bytes, want a power of 2 from %d to %d", g.page, minPage, maxPage)
	case size <= 0 || size > maxSize:
		return corruptf("header: a disk of %d bytes, want 1 to %d", size, int64(maxSize))
	case g.regions(size) > maxRegions:
		return corruptf("header: %d regions for a disk of %d bytes, want at most %d", g.regions(size), size, maxRegions)
	}
	return nil
}

// region is what the file says of one.
type region struct {
	version uint32 // of the page that counts; 0: none, nothing of it was ever written
	open    uint32 // the interval for which it is open; 0: closed
}

// encodeSector is sector i of the regions.
func encodeSector(i int64, list []region) []byte {
	b := make([]byte, sectorSize)
	le.PutUint32(b[4:], uint32(i))
	for k, r := range list {
		le.PutUint32(b[sectorHead+8*k:], r.version)
		le.PutUint32(b[sectorHead+8*k+4:], r.open)
	}
	le.PutUint32(b, checksum(b, 0))
	return b
}

// decodeSector reads sector i into list. A region is open for the present interval
// or not at all.
func decodeSector(b []byte, i int64, active uint32, list []region) error {
	if got, want := le.Uint32(b), checksum(b[:sectorSize], 0); got != want {
		return corruptf("regions, sector %d: checksum %#08x, want %#08x", i, got, want)
	}
	if got := le.Uint32(b[4:]); int64(got) != i {
		return corruptf("regions, sector %d: it says that it is sector %d", i, got)
	}
	for k := range list {
		list[k] = region{le.Uint32(b[sectorHead+8*k:]), le.Uint32(b[sectorHead+8*k+4:])}
		if open := list[k].open; open != 0 && open != active {
			return corruptf("region %d: open for interval %d, the present one is %d", i*perSector+int64(k), open, active)
		}
	}
	return nil
}

// encodePage is a page that has the numbers from byte pageHead on already.
func encodePage(b []byte, i int64, version uint32) {
	le.PutUint32(b[4:], uint32(i))
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], 0)
	le.PutUint32(b, checksum(b, 0))
}

// checkPage judges the page of region i.
func checkPage(b []byte, i int64, version, active uint32) error {
	if got, want := le.Uint32(b), checksum(b, 0); got != want {
		return corruptf("page of region %d: checksum %#08x, want %#08x", i, got, want)
	}
	if r, v := le.Uint32(b[4:]), le.Uint32(b[8:]); int64(r) != i || v != version {
		return corruptf("page of region %d: it is version %d of the page of region %d, want version %d", i, v, r, version)
	}
	for k := pageHead; k < len(b); k += 4 {
		if n := le.Uint32(b[k:]); n > active {
			return corruptf("page of region %d: granule %d was written in interval %d, the present one is %d", i, (k-pageHead)/4, n, active)
		}
	}
	return nil
}
