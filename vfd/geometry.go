package vfd

import (
	"encoding/binary"
	"fmt"
	"strings"

	"vhdfs/ops"
)

const (
	sectorSize  = 512
	defaultSize = 1440 << 10
	maxSize     = 2880 << 10
)

// drives are the sizes in bytes that floppy drives have, and whether new images
// of that size can be made.
var drives = []struct {
	size   int64
	create bool
}{
	{160 << 10, false},
	{180 << 10, false},
	{320 << 10, false},
	{360 << 10, false},
	{720 << 10, true},
	{1200 << 10, true},
	{1440 << 10, true},
	{1680 << 10, false}, // distribution media format
	{2880 << 10, true},
}

func known(size int64) bool {
	for _, d := range drives {
		if d.size == size {
			return true
		}
	}
	return false
}

func creatable(size int64) bool {
	for _, d := range drives {
		if d.size == size {
			return d.create
		}
	}
	return false
}

// bpb is the BIOS parameter block of a FAT boot sector: what the formatted disk
// says of its own geometry.
type bpb struct {
	bytesPerSector  uint16
	sectors         uint32
	sectorsPerTrack uint16
	heads           uint16
	label           string // without padding; "" when there is none
}

// decodeBPB reads a sector; false when it holds no FAT boot sector.
func decodeBPB(b []byte) (bpb, bool) {
	le := binary.LittleEndian
	g := bpb{
		bytesPerSector:  le.Uint16(b[11:]),
		sectors:         uint32(le.Uint16(b[19:])),
		sectorsPerTrack: le.Uint16(b[24:]),
		heads:           le.Uint16(b[26:]),
	}
	cluster, reserved, fats := b[13], le.Uint16(b[14:]), b[16]
	jump := b[0] == 0xeb || b[0] == 0xe9
	sector := g.bytesPerSector >= 128 && g.bytesPerSector <= 4096 && g.bytesPerSector&(g.bytesPerSector-1) == 0
	if !jump || !sector || cluster == 0 || cluster&(cluster-1) != 0 || reserved == 0 || fats == 0 || fats > 2 {
		return bpb{}, false
	}
	if g.sectors == 0 {
		g.sectors = le.Uint32(b[32:])
	}
	const extended = 0x29 // an extended BPB with id, label and type follows
	if b[38] == extended {
		label := strings.ToValidUTF8(strings.TrimRight(string(b[43:54]), " \x00"), "\ufffd")
		if label != "NO NAME" {
			g.label = label
		}
	}
	return g, true
}

// anomalies compares the size of the file with what drives know and with what
// the disk says of itself. Neither keeps the bytes from being served.
func (d *Disk) anomalies() []ops.Anomaly {
	var list []ops.Anomaly
	if !known(d.Size()) {
		list = append(list, ops.Anomaly{Name: "vfd.size", Severity: ops.Note, Where: "file",
			Text: fmt.Sprintf("%d bytes is the size of no floppy drive", d.Size())})
	}
	if says := int64(d.bpb.sectors) * int64(d.bpb.bytesPerSector); d.formatted && says != d.Size() {
		list = append(list, ops.Anomaly{Name: "vfd.bpb.size", Severity: ops.Warning, Where: "boot sector",
			Text: fmt.Sprintf("%d sectors of %d bytes, the disk has %d bytes", d.bpb.sectors, d.bpb.bytesPerSector, d.Size())})
	}
	if track := int64(d.bpb.sectorsPerTrack) * int64(d.bpb.heads); d.formatted && (track == 0 || int64(d.bpb.sectors)%track != 0) {
		list = append(list, ops.Anomaly{Name: "vfd.bpb.geometry", Severity: ops.Note, Where: "boot sector",
			Text: fmt.Sprintf("%d sectors are not whole tracks of %d sectors on %d sides",
				d.bpb.sectors, d.bpb.sectorsPerTrack, d.bpb.heads)})
	}
	return list
}
