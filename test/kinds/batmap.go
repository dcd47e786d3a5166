package kinds

import (
	"encoding/binary"
	"fmt"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// batmapTells makes every state keep blktap's map of full blocks true, as long as
// the map has its cookie: right checksum, and full is said only of blocks that are.
func batmapTells(s *crash.Subject, _ *crash.Prepared) error {
	s.Also = func(h *sim.Host, _ ops.Layer, _ *crash.View) error {
		b, be := h.Bytes(s.Path), binary.BigEndian
		u32 := func(off int64) int64 { return int64(be.Uint32(b.Get(off, 4))) }
		u64 := func(off int64) int64 { return int64(be.Uint64(b.Get(off, 8))) }
		header := u64(b.Size() - 512 + 16)
		table, entries, sectors := u64(header+16), u32(header+28), u32(header+32)/512
		at := (table + entries*4 + 511) / 512 * 512
		if string(b.Get(at, 8)) != "tdbatmap" {
			return nil
		}
		full := b.Get(u64(at+8), u32(at+16)*512)
		sum := uint32(0)
		for _, c := range full {
			sum += uint32(c)
		}
		if got := uint32(u32(at + 24)); got != ^sum {
			return fmt.Errorf("batmap: checksum %#x, want %#x", got, ^sum)
		}
		for i := range entries {
			if full[i/8]&(0x80>>(i%8)) == 0 {
				continue
			}
			bitmap := u32(table+4*i) * 512
			for k := range sectors {
				if b.Get(bitmap+k/8, 1)[0]&(0x80>>(k%8)) == 0 {
					return fmt.Errorf("batmap: block %d is full, says the map; sector %d of it is not there", i, k)
				}
			}
		}
		return nil
	}
	return nil
}
