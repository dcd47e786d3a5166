package view_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/view"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// images is a library of real images on a host in memory.
type images struct {
	*testing.T
	lib  *ops.Library
	host *sim.Host
}

func newImages(t *testing.T) *images {
	h := sim.New()
	lib := ops.NewLibrary(ops.LibraryOptions{Top: h.Dir("/vms"), Formats: []*ops.Format{vhd.Format, vhdx.Format, setFormat}})
	t.Cleanup(func() { require.NoError(t, lib.Close()) })
	return &images{T: t, lib: lib, host: h}
}

// run carries out a request of an operation.
func (w *images) run(name, image, request string) {
	w.Helper()
	for _, o := range ops.All {
		if o.Name == name {
			args, err := o.Parse(request)
			require.NoError(w, err)
			require.NoError(w, o.Do(context.Background(), &ops.Request{Library: w.lib, Image: w.lib.Top(image), Args: args}).Err)
		}
	}
}

func (w *images) write(name string, off int64, b []byte) {
	w.Helper()
	h, err := w.lib.Open(w.lib.Top(name), ops.Write)
	require.NoError(w, err)
	_, err = h.WriteAt(b, off)
	require.NoError(w, err)
	require.NoError(w, h.Close())
}

func (w *images) document(name, document string, into any) {
	w.Helper()
	for _, d := range view.Documents {
		if d.Name == document {
			var b bytes.Buffer
			require.NoError(w, d.Render(&b, &view.Source{Library: w.lib, Image: w.lib.Top(name)}))
			require.NoError(w, json.Unmarshal(b.Bytes(), into))
		}
	}
}

// mbrOf is sector 0 with one partition, in bytes.
func mbrOf(start, end int64) []byte {
	b := make([]byte, 512)
	b[446+4] = 7
	binary.LittleEndian.PutUint32(b[446+8:], uint32(start/512))
	binary.LittleEndian.PutUint32(b[446+12:], uint32((end-start)/512))
	b[510], b[511] = 0x55, 0xaa
	return b
}

// gptOf is the start of a disk of size bytes with one partition, in bytes.
func gptOf(size, start, end int64) []byte {
	le, b := binary.LittleEndian, make([]byte, 34*512)
	copy(b, mbrOf(512, size))
	b[446+4] = 0xee
	e := b[1024:]
	e[0], e[16] = 1, 1 // some type, some id
	le.PutUint64(e[32:], uint64(start/512))
	le.PutUint64(e[40:], uint64(end/512-1))
	h := b[512:1024]
	copy(h, "EFI PART\x00\x00\x01\x00\x5c")
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], uint64(size/512-1))
	le.PutUint64(h[40:], 34)
	le.PutUint64(h[48:], uint64(size/512-34))
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(b[1024:]))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return b
}

// What the service answers on Windows for such disks.
func TestWhatTheServiceAnswers(t *testing.T) {
	number := func(n int64) *int64 { return &n }
	zero := uint32(0)
	old := fixture.VHD{Size: 10 * gib, BlockSize: uint32(2 * mib), Unaligned: true}
	for b := range int64(33) {
		old.Blocks = append(old.Blocks, b*100)
	}
	old.Writes = []fixture.Write{{Off: 0, Data: mbrOf(mib, 10735321088)}}
	aged := old
	aged.Blocks = append(append([]int64{0}, old.Blocks[3:]...), old.Blocks[1], old.Blocks[2])
	for _, tt := range []struct {
		name             string
		make             func(w *images)
		image            string
		fileSize, size   int64
		floor            *int64
		logical, phys    uint32
		block            uint32
		fragmented       *uint32
		anyFragmentation bool
		aligned          uint32
	}{
		{name: "new dynamic VHDX 5 GiB", image: "a.vhdx", make: func(w *images) { w.run("create", ".", "a.vhdx size=5G") },
			fileSize: 4194304, size: 5368709120, logical: 512, phys: 4096, block: 33554432, fragmented: &zero, aligned: 1},
		{name: "new dynamic VHDX 32 GiB", image: "a.vhdx", make: func(w *images) { w.run("create", ".", "a.vhdx size=32G") },
			fileSize: 4194304, size: 32 * gib, logical: 512, phys: 4096, block: 33554432, fragmented: &zero, aligned: 1},
		{name: "new dynamic VHDX 60 GiB", image: "a.vhdx", make: func(w *images) { w.run("create", ".", "a.vhdx size=60G") },
			fileSize: 4194304, size: 60 * gib, logical: 512, phys: 4096, block: 33554432, fragmented: &zero, aligned: 1},
		{name: "new differencing VHDX on 100 GiB with a GPT", image: "a.avhdx", make: func(w *images) {
			w.run("create", ".", "base.vhdx size=100G")
			w.write("base.vhdx", 0, gptOf(100*gib, mib, 100*gib-mib))
			w.run("create", ".", "a.avhdx parent=base.vhdx")
		}, fileSize: 4194304, size: 107374182400, floor: number(107373150720), logical: 512, phys: 4096, block: 2097152, aligned: 1},
		{name: "new fixed VHD 10 MiB", image: "a.vhd", make: func(w *images) { w.run("create", ".", "a.vhd size=10M type=fixed") },
			fileSize: 10486272, size: 10485760, logical: 512, phys: 512, fragmented: &zero, aligned: 1},
		{name: "fixed VHD 64 GiB with data", image: "a.vhd", make: func(w *images) {
			w.run("create", ".", "a.vhd size=64G type=fixed")
			w.write("a.vhd", 0, mbrOf(mib, 30*gib))
		}, fileSize: 68719477248, size: 68719476736, floor: number(32212254720), logical: 512, phys: 512, fragmented: &zero, aligned: 1},
		{name: "old dynamic VHD 10 GiB", image: "a.vhd", make: func(w *images) { w.host.Put("/vms/a.vhd", aged.Bytes()) },
			fileSize: 69245440, size: 10737418240, floor: number(10735321088), logical: 512, phys: 512, block: 2097152, anyFragmentation: true},
		{name: "the same, converted", image: "b.vhd", make: func(w *images) {
			w.host.Put("/vms/a.vhd", old.Bytes())
			w.run("convert", "a.vhd", "b.vhd type=dynamic")
		}, fileSize: 0, size: 10737418240, floor: number(10735321088), logical: 512, phys: 512, block: 2097152, fragmented: &zero, aligned: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newImages(t)
			tt.make(w)
			var state view.State
			var set view.SettingData
			w.document(tt.image, "state.json", &state)
			w.document(tt.image, "settings.json", &set)
			if tt.fileSize > 0 {
				require.Equal(t, tt.fileSize, state.FileSize)
			}
			require.False(t, state.InUse)
			require.Equal(t, tt.floor, state.MinInternalSize)
			require.Equal(t, tt.aligned, state.Alignment)
			if tt.anyFragmentation {
				require.NotNil(t, state.FragmentationPercentage)
				require.Positive(t, *state.FragmentationPercentage)
				require.LessOrEqual(t, *state.FragmentationPercentage, uint32(100))
			} else {
				require.Equal(t, tt.fragmented, state.FragmentationPercentage)
			}
			require.Equal(t, tt.size, set.MaxInternalSize)
			require.Equal(t, tt.logical, set.LogicalSectorSize)
			require.Equal(t, tt.phys, set.PhysicalSectorSize)
			require.Equal(t, tt.block, set.BlockSize)
		})
	}
}

// State of a disk in use is that of its writer, with what is not flushed.
func TestStateOfADiskInUse(t *testing.T) {
	w := newImages(t)
	w.run("create", ".", "a.vhdx size=1G block=1M")
	h, err := w.lib.Open(w.lib.Top("a.vhdx"), ops.Write)
	require.NoError(t, err)
	for i := range int64(8) { // backwards
		_, err = h.WriteAt([]byte{1}, (100-i)*mib)
		require.NoError(t, err)
	}
	_, err = h.WriteAt(mbrOf(mib, 512*mib), 0)
	require.NoError(t, err)
	var state view.State
	w.document("a.vhdx", "state.json", &state)
	require.Equal(t, 512*mib, *state.MinInternalSize)
	require.Positive(t, *state.FragmentationPercentage)
	require.NoError(t, h.Close())
}

// A table that cannot be read leaves numbers out, not the document.
func TestStateOfADamagedTable(t *testing.T) {
	w := newImages(t)
	v := fixture.VHD{Size: 64 * mib, BlockSize: uint32(2 * mib), Blocks: []int64{1, 2}, BAT: map[int64]uint32{2: 1 << 30}}
	w.host.Put("/vms/a.vhd", v.Bytes())
	var state view.State
	w.document("a.vhd", "state.json", &state)
	require.Nil(t, state.FragmentationPercentage)
	require.NotZero(t, state.FileSize)
}

// setFormat is of files that name their active disk, and no more.
var setFormat = &ops.Format{
	Name: "set", Number: ops.FormatSet, Extensions: []string{".vhds"},
	Probe: func(_ ops.File, ext string) (bool, error) { return ext == ".vhds", nil },
	Set: func(f ops.File) (ops.Set, error) {
		b := make([]byte, 6)
		_, err := f.ReadAt(b, 0)
		return ops.Set{Leaf: string(b)}, err
	},
}

// The state of a set is that of its active disk.
func TestStateOfASet(t *testing.T) {
	w := newImages(t)
	w.run("create", ".", "a.vhdx size=1G")
	w.host.Put("/vms/s.vhds", []byte("a.vhdx"))
	w.write("s.vhds", 0, bytes.Repeat([]byte{1}, int(mib)))
	var state view.State
	w.document("s.vhds", "state.json", &state)
	require.Greater(t, state.FileSize, 4*mib)
	require.GreaterOrEqual(t, state.AllocatedSize, mib)
}
