package track_test

import (
	"encoding/binary"
	"hash/crc32"

	"vhdfs/test/sim"
)

// mend makes the checksums of headers and of the first sector of regions right, so
// that what stands there is looked at.
func mend(b sim.Bytes) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for _, at := range []int64{0, 64 << 10} {
		h := b.Get(at, 4096+32*1024)
		if n := binary.LittleEndian.Uint32(h[36:]); n <= 1024 {
			h = h[:4096+32*n]
		}
		sum := crc32.Update(crc32.Checksum(h[:8], table), table, h[12:])
		b.Write(at+8, binary.LittleEndian.AppendUint32(nil, sum))
	}
	s := b.Get(128<<10, 512)
	b.Write(128<<10, binary.LittleEndian.AppendUint32(nil, crc32.Checksum(s[4:], table)))
}
