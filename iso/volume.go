package iso

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"vhdfs/ops"
)

const (
	firstDescriptor = 16 // sector
	// maxDescriptors bounds the volume recognition sequence; real ones have
	// three to six descriptors.
	maxDescriptors = 64

	typePrimary       = 1
	typeSupplementary = 2
	typeTerminator    = 255
)

// volume is what the descriptors of an image say.
type volume struct {
	iso9660  bool
	nsr      bool // an NSR02 or NSR03 descriptor announces UDF
	primary  string
	joliet   string
	udf      string // logical volume identifier
	creator  string // application, else data preparer, of the primary descriptor
	end      int64  // bytes that the volume needs; 0 when not known
	endWhere string // which structure says so
}

func (v *volume) known() bool { return v.iso9660 || v.nsr }

// label is the one that other systems show: UDF before Joliet before ISO 9660,
// each being the less restricted name.
func (v *volume) label() string {
	for _, s := range []string{v.udf, v.joliet} {
		if s != "" {
			return s
		}
	}
	return v.primary
}

// needs notes that the volume reaches up to end.
func (v *volume) needs(end int64, where string) {
	if end > v.end {
		v.end, v.endWhere = end, where
	}
}

// readVolume reads the descriptors of a file of size bytes: at most 64 sectors
// for recognition and about as many for UDF. The error is for I/O only.
func readVolume(f ops.File, size int64) (volume, error) {
	var v volume
	b := make([]byte, sectorSize)
	for i := range int64(maxDescriptors) {
		ok, err := readBlock(f, b, (firstDescriptor+i)*sectorSize)
		if err != nil {
			return v, err
		}
		if !ok || !v.add(b, fmt.Sprintf("sector %d", firstDescriptor+i)) {
			break
		}
	}
	if v.nsr {
		if err := v.readUDF(f, size); err != nil {
			return v, err
		}
	}
	return v, nil
}

// readBlock fills b from off; false when the file ends before.
func readBlock(f ops.File, b []byte, off int64) (bool, error) {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return true, nil
	}
	if err == nil || err == io.EOF {
		return false, nil
	}
	return false, fmt.Errorf("iso: descriptor at offset %d: %w", off, err)
}

// add takes one descriptor of the recognition sequence; false ends it.
func (v *volume) add(b []byte, where string) bool {
	switch string(b[1:6]) {
	case "CD001":
		v.addISO9660(b, where)
	case "NSR02", "NSR03":
		v.nsr = true
	case "BEA01", "TEA01", "BOOT2", "CDW02":
	default:
		return false
	}
	return true
}

// addISO9660 takes a CD001 descriptor (ECMA-119 8.4, 8.5).
func (v *volume) addISO9660(b []byte, where string) {
	switch b[0] {
	case typePrimary:
		if v.iso9660 {
			return // a copy; the first counts
		}
		v.iso9660 = true
		v.primary = text(b[40:72])
		if v.creator = text(b[574:702]); v.creator == "" {
			v.creator = text(b[446:574])
		}
		blocks, size := binary.LittleEndian.Uint32(b[80:]), binary.LittleEndian.Uint16(b[128:])
		v.needs(int64(blocks)*int64(size), where)
	case typeSupplementary:
		if isJoliet(b[88:91]) && v.joliet == "" {
			v.joliet = text([]byte(utf16BE(b[40:72])))
		}
	}
}

// isJoliet tells by its escape sequence whether names are UCS-2.
func isJoliet(escape []byte) bool {
	switch string(escape) {
	case "%/@", "%/C", "%/E":
		return true
	}
	return false
}

// text is an identifier without its padding; bytes that are no UTF-8 become
// replacement characters.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(strings.TrimRight(s, " "), "\ufffd")
}

func utf16BE(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.BigEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}
