package vhd

// geometry is the CHS field. It can only understate a size: CurrentSize is what
// counts, except for QEMU reading disks of creators "vpc " and "qemu".
type geometry struct {
	cylinders uint16
	heads     uint8
	sectors   uint8 // in a track
}

// maxCHS is the number of sectors that the largest geometry can say.
const maxCHS = 65535 * 16 * 255

// geometryFor is the geometry of a disk of size bytes (vhd specification,
// appendix "CHS Calculation").
func geometryFor(size int64) geometry {
	total := min(size/sectorSize, maxCHS)
	var heads, spt, tracks int64
	if total >= 65535*16*63 {
		heads, spt = 16, 255
		tracks = total / spt
	} else {
		spt = 17
		tracks = total / spt
		heads = max((tracks+1023)/1024, 4)
		if tracks >= heads*1024 || heads > 16 {
			heads, spt = 16, 31
			tracks = total / spt
		}
		if tracks >= heads*1024 {
			heads, spt = 16, 63
			tracks = total / spt
		}
	}
	return geometry{uint16(tracks / heads), uint8(heads), uint8(spt)}
}

// bytes is the size that g says.
func (g geometry) bytes() int64 {
	return int64(g.cylinders) * int64(g.heads) * int64(g.sectors) * sectorSize
}
