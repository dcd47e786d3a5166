package iso_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/test/sim"
)

// FuzzOpen changes a bridge of ISO 9660, Joliet and UDF at the places that its
// descriptors take, 3 bytes of input for each change; UDF tags are summed again.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{}, uint32(512*sector))
	f.Add([]byte{0x00, 1, 'X', 0x28, 84, 9}, uint32(100))
	f.Add([]byte{0x31, 20, 0xff, 0x31, 21, 0xff}, uint32(20*sector))
	f.Fuzz(func(t *testing.T, patches []byte, size uint32) {
		d := udf(2048)
		d.primary(16, "PRIMARY", 512)
		d.joliet(17, "Joliet", "%/E")
		d.recognise(18, "NSR02")
		blocks := []int{16, 17, 18, 256, 300, 301}
		for i := 0; i+3 <= len(patches) && i < 90; i += 3 {
			b := d.at(blocks[int(patches[i]>>4)%len(blocks)])
			b[(int(patches[i]&0xf)<<8|int(patches[i+1]))%sector] = patches[i+2]
		}
		for _, at := range []int{256, 300, 301} {
			b := d.at(at)
			b[4] = 0
			for i, c := range b[:16] {
				if i != 4 {
					b[4] += c
				}
			}
		}
		image := d[:min(int(size), len(d))]

		h := sim.New()
		h.Put("/d/f.iso", image)
		h.Freeze()
		reads := 0
		h.SetFault(func(c sim.Call) error {
			if c.Op == sim.OpRead {
				reads++
			}
			return nil
		})
		file, err := h.Dir("/d").Open("f.iso", ops.Read)
		require.NoError(t, err)
		l, err := iso.Format.Open(file, ops.OpenOptions{Ext: ".iso"})
		require.Zero(t, h.Refused())
		require.Less(t, reads, 64+4*3*(1+2*64))
		if err != nil {
			require.ErrorIs(t, err, ops.ErrCorrupt)
			return
		}
		require.Equal(t, int64(len(image)), l.Size())
		require.NoError(t, l.Close())
	})
}
