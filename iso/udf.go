package iso

import (
	"encoding/binary"
	"fmt"

	"vhdfs/ops"
)

// Tag identifiers of descriptors (ECMA-167 3/7.2.1).
const (
	tagAnchor        = 2
	tagPointer       = 3
	tagPartition     = 5
	tagLogicalVolume = 6
	tagTerminator    = 8

	tagSize      = 16
	anchorBlock  = 256
	udfBlockRead = 512 // all fields read here lie in the first 512 bytes of a block
	// maxSequence bounds a volume descriptor sequence; real ones have up to 16
	// blocks and end with a terminator.
	maxSequence = 64
)

// udfBlockSizes are tried in order of likelihood for an image of a disc.
var udfBlockSizes = []int64{2048, 512, 1024, 4096}

// readUDF finds the anchor and takes label and extent from the descriptors that
// it names, else from their copies. Nothing is known of them when there is none.
func (v *volume) readUDF(f ops.File, size int64) error {
	for _, bs := range udfBlockSizes {
		blocks := size / bs
		for _, at := range []int64{anchorBlock, blocks - 1, blocks - 1 - anchorBlock} {
			b, err := readTag(f, bs, at)
			if err != nil {
				return err
			}
			if b == nil || tagOf(b) != tagAnchor {
				continue
			}
			for _, extent := range [][]byte{b[16:24], b[24:32]} { // main, reserve
				done, err := v.readSequence(f, bs, extent)
				if err != nil || done {
					return err
				}
			}
		}
	}
	return nil
}

// readSequence reads the volume descriptors of extent, 8 bytes of length and
// first block; true when they hold a logical volume.
func (v *volume) readSequence(f ops.File, bs int64, extent []byte) (bool, error) {
	length, first := binary.LittleEndian.Uint32(extent), binary.LittleEndian.Uint32(extent[4:])
	found := false
	for i := range min(int64(length)/bs, maxSequence) {
		at := int64(first) + i
		b, err := readTag(f, bs, at)
		if err != nil {
			return false, err
		}
		if b == nil || tagOf(b) == tagTerminator {
			break
		}
		switch tagOf(b) {
		case tagPointer:
			// A sequence that goes on elsewhere is legal; discs do not use it.
			return found, nil
		case tagLogicalVolume:
			v.udf, found = dstring(b[84:212]), true
		case tagPartition:
			start, count := binary.LittleEndian.Uint32(b[188:]), binary.LittleEndian.Uint32(b[192:])
			v.needs((int64(start)+int64(count))*bs, fmt.Sprintf("udf partition descriptor, block %d", at))
		}
	}
	return found, nil
}

// readTag reads the block at and checks its tag: the sum and the block number
// that it holds. nil when there is no descriptor.
func readTag(f ops.File, bs, at int64) ([]byte, error) {
	if at < 1 {
		return nil, nil
	}
	b := make([]byte, udfBlockRead)
	ok, err := readBlock(f, b, at*bs)
	if err != nil || !ok {
		return nil, err
	}
	var sum byte
	for i, c := range b[:tagSize] {
		if i != 4 {
			sum += c
		}
	}
	if sum != b[4] || tagOf(b) == 0 || int64(binary.LittleEndian.Uint32(b[12:])) != at {
		return nil, nil
	}
	return b, nil
}

func tagOf(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }

// dstring decodes a fixed field of compressed Unicode (OSTA UDF 2.1.1, 2.1.3):
// compression 8 or 16 first, the used length in the last byte.
func dstring(b []byte) string {
	n := int(b[len(b)-1])
	if n < 1 || n > len(b)-1 {
		return ""
	}
	switch s := b[1:n]; b[0] {
	case 8:
		r := make([]rune, len(s))
		for i, c := range s {
			r[i] = rune(c)
		}
		return text([]byte(string(r)))
	case 16:
		return text([]byte(utf16BE(s)))
	}
	return ""
}
