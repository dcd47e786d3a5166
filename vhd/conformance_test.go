package vhd

import (
	"testing"

	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/fixture"
)

// expected is what a layer of v holds, for the conformance suite: whole sectors.
func expected(v fixture.VHD) *conformance.Disk {
	want := conformance.NewDisk(v.Size)
	bytes := model(v, 0)
	for _, w := range v.Writes {
		lo, hi := w.Off/512*512, min(roundUp(w.Off+int64(len(w.Data)), 512), v.Size)
		want.Write(lo, bytes[lo:hi])
	}
	return want
}

func TestLayerConformance(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"fixed":              {Size: 9<<20 + 512, Type: 2, Writes: someWrites()},
		"dynamic":            {Size: 9<<20 + 512, Type: 3, Writes: someWrites()},
		"dynamic unaligned":  {Size: 9<<20 + 512, Type: 3, Writes: someWrites(), Unaligned: true, Blocks: []int64{3, 0}},
		"differencing":       {Size: 9<<20 + 512, Type: 4, Writes: someWrites(), Parent: parent()},
		"differencing 4 KiB": {Size: 9<<20 + 512, Type: 4, BlockSize: 4096, Writes: someWrites(), Parent: parent()},
	} {
		t.Run(name, func(t *testing.T) {
			image := v.Bytes()
			conformance.Layer(t, func(t *testing.T) ops.Layer {
				t.Helper()
				l, err := Open(openFile(t, disk(image), ops.Read), ops.OpenOptions{Cache: ops.NewCache(1 << 20)})
				if err != nil {
					t.Fatal(err)
				}
				return l
			}, expected(v))
		})
	}
}
