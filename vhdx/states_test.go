package vhdx

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/fixture"
)

// What a block reads as in each state, whatever the file holds where its entry
// points (the table of states; traps T10-T12).
func TestStates(t *testing.T) {
	for _, tt := range []struct {
		state uint8
		alone ops.Kind
		child ops.Kind
	}{
		{0, ops.Zero, ops.Absent},
		{1, ops.Zero, ops.Zero},
		{2, ops.Zero, ops.Zero},
		{3, ops.Zero, ops.Zero},
		{6, ops.Data, ops.Data},
	} {
		for _, parent := range []*fixture.Locator{nil, parentLocator()} {
			want := tt.alone
			if parent != nil {
				want = tt.child
			}
			d := openRead(t, fixture.VHDX{
				Size: 16 * mib, Parent: parent, States: map[int64]uint8{1: tt.state},
				Writes: []fixture.Write{{Off: 2 * mib, Data: fill(int(2*mib), 9)}},
			})
			p := fill(4096, 0xee)
			n, kind, err := d.ReadRun(p, 2*mib+512)
			require.NoError(t, err)
			require.Equal(t, want, kind, "state %d, parent %v", tt.state, parent != nil)
			require.Equal(t, 4096, n)
			require.Equal(t, fill(4096, map[ops.Kind]byte{ops.Absent: 0xee, ops.Zero: 0, ops.Data: 9}[want]), p)
		}
	}
}

// A bad entry fails the reads that touch its block and no others (H11, H20).
func TestBadEntryFailsItsBlockOnly(t *testing.T) {
	for _, tt := range []struct {
		name   string
		entry  uint64
		parent *fixture.Locator
		err    string
	}{
		{"state 4", uint64(8*mib) | 4, nil, "bat entry 2: state 4 is reserved"},
		{"state 5", uint64(8*mib) | 5, nil, "bat entry 2: state 5 is reserved"},
		{"reserved bits in state 0", 1 << 3, nil, "bat entry 2: reserved bits set in 0x8"},
		{"reserved bits in state 6", uint64(8*mib) | 1<<19 | 6, nil, "bat entry 2: reserved bits"},
		{"partially present without parent", uint64(8*mib) | 7, nil, "bat entry 2: partially present in a disk without parent"},
		{"partially present without bitmap", uint64(8*mib) | 7, parentLocator(), "bat entry 2048: 0x0 is not a present sector bitmap"},
		{"no offset", 6, nil, "bat entry 2: offset 0x0 is inside the header section"},
		{"over the log", uint64(mib) | 6, nil, "overlaps the log or region at"},
		{"over the metadata", uint64(2*mib) | 6, nil, "overlaps the log or region at"},
		{"over the BAT", uint64(3*mib) | 6, nil, "overlaps the log or region at"},
		{"past the end", uint64(64*mib) | 6, nil, "past end of file 0x600000"},
		{"largest offset", 1<<64 - 1<<20 | 6, nil, "bat entry 2: offset 0xfffffffffff00000 is past what a file can hold"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := openRead(t, fixture.VHDX{
				Size: 16 * mib, Parent: tt.parent, Entries: map[int64]uint64{2: tt.entry},
				Writes: []fixture.Write{{Off: 0, Data: fill(int(2*mib), 9)}},
			})
			require.Equal(t, fill(512, 9), read(t, d, 2*mib-512, 512))
			for _, off := range []int64{4 * mib, 5 * mib, 6*mib - 1} {
				require.ErrorIs(t, readErr(d, off), ops.ErrCorrupt)
				require.ErrorContains(t, readErr(d, off), tt.err)
				_, err := d.Extent(off, mib)
				require.ErrorIs(t, err, ops.ErrCorrupt)
			}
			require.NoError(t, readErr(d, 6*mib))
			x, err := d.Extent(0, 16*mib)
			require.NoError(t, err)
			require.Equal(t, ops.Extent{Len: 2 * mib, Kind: ops.Data, Pos: 4 * mib}, x)
			x, err = d.Extent(2*mib, 14*mib)
			require.NoError(t, err)
			require.Equal(t, 2*mib, x.Len, "the run ends where the bad block begins")
			require.Empty(t, d.Info().ReadOnly)
			require.NotEmpty(t, check(t, d))
		})
	}
}

func TestBadBitmapEntry(t *testing.T) {
	for _, tt := range []struct {
		name  string
		entry uint64
		err   string
	}{
		{"state 7", uint64(8*mib) | 7, "is not a present sector bitmap"},
		{"state 0 with offset", uint64(8 * mib), "is not a present sector bitmap"},
		{"reserved bits", uint64(8*mib) | 1<<4 | 6, "is not a present sector bitmap"},
		{"in the header section", 6, "inside the header section"},
		{"over the log", uint64(mib) | 6, "overlaps the log"},
		{"past the end", uint64(64*mib) | 6, "file ends"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := openRead(t, fixture.VHDX{
				Size: 16 * mib, Parent: parentLocator(), Entries: map[int64]uint64{2048: tt.entry},
				Writes: []fixture.Write{{Off: 0, Data: fill(512, 9)}, {Off: 2 * mib, Data: fill(int(2*mib), 8)}},
			})
			require.ErrorIs(t, readErr(d, 0), ops.ErrCorrupt)
			require.ErrorContains(t, readErr(d, 0), tt.err)
			require.Equal(t, fill(512, 8), read(t, d, 2*mib, 512), "a fully present block needs no bitmap")
			require.Equal(t, fill(512, 0xee), read(t, d, 4*mib, 512))
		})
	}
}

func check(t testing.TB, d *Disk) []string {
	t.Helper()
	var names []string
	require.NoError(t, d.Check(context.Background(), func(a ops.Anomaly) { names = append(names, a.Name+" "+a.Where) }))
	return names
}

func TestCheck(t *testing.T) {
	two := []fixture.Write{{Off: 0, Data: fill(512, 1)}, {Off: 2 * mib, Data: fill(512, 2)}}
	for _, tt := range []struct {
		name  string
		image fixture.VHDX
		want  []string
	}{
		{"healthy", fixture.VHDX{Writes: two}, nil},
		{"healthy child", fixture.VHDX{Writes: two, Parent: parentLocator()}, nil},
		{"healthy fixed", fixture.VHDX{Writes: two, Fixed: true}, nil},
		{"same space", fixture.VHDX{Writes: two, Entries: map[int64]uint64{1: uint64(4*mib) | 6}}, []string{"vhdx.bat.overlap bat entry 1", "vhdx.space.leaked file"}},
		{"half the space", fixture.VHDX{Writes: two, Entries: map[int64]uint64{1: uint64(5*mib) | 6}}, []string{"vhdx.bat.overlap bat entry 1", "vhdx.space.leaked file"}},
		{"on the bitmap", fixture.VHDX{Writes: two, Parent: parentLocator(), Entries: map[int64]uint64{1: uint64(4*mib) | 6}}, []string{"vhdx.bat.overlap bat entry 1", "vhdx.bat.overlap bat entry 2048", "vhdx.space.leaked file"}},
		{"past the end", fixture.VHDX{Writes: two, Entries: map[int64]uint64{3: uint64(90*mib) | 6}}, []string{"vhdx.bat.past-end bat entry 3"}},
		{"bad state", fixture.VHDX{Writes: two, Entries: map[int64]uint64{3: 4}}, []string{"vhdx.bat.invalid bat entry 3"}},
		{"no bitmap", fixture.VHDX{Writes: two, Parent: parentLocator(), Entries: map[int64]uint64{2048: 0}}, []string{"vhdx.bat.bitmap bat entry 0", "vhdx.bat.bitmap bat entry 1", "vhdx.space.leaked file"}},
		{"released block", fixture.VHDX{Writes: two, States: map[int64]uint8{1: 2}}, []string{"vhdx.space.leaked file"}},
		{"kept space", fixture.VHDX{Writes: two, States: map[int64]uint8{1: 3}}, nil},
		{"kept space of another", fixture.VHDX{Writes: two, Entries: map[int64]uint64{1: uint64(4*mib) | 3}}, []string{"vhdx.bat.overlap bat entry 1", "vhdx.space.leaked file"}},
		{"zero block with offset", fixture.VHDX{Writes: two, Entries: map[int64]uint64{1: uint64(6*mib) | 2}}, []string{"vhdx.bat.offset bat entry 1", "vhdx.space.leaked file"}},
		{"fixed with a hole", fixture.VHDX{Fixed: true, States: map[int64]uint8{1: 0}}, []string{"vhdx.fixed.missing bat", "vhdx.space.leaked file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.image.Size = 16 * mib
			require.Equal(t, tt.want, check(t, openRead(t, tt.image)))
		})
	}
}

func TestCheckStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d := openRead(t, fixture.VHDX{Size: 16 * mib})
	require.ErrorIs(t, d.Check(ctx, func(ops.Anomaly) {}), context.Canceled)
}

func TestBitRun(t *testing.T) {
	b := make([]byte, 32)
	b[1], b[8], b[9] = 0xf0, 0xff, 0x01
	for _, tt := range []struct {
		first, limit int64
		set          bool
		n            int64
	}{
		{0, 256, false, 12},
		{0, 5, false, 5},
		{12, 256, true, 4},
		{13, 2, true, 2},
		{16, 256, false, 48},
		{64, 256, true, 9},
		{70, 256, true, 3},
		{73, 256, false, 183},
		{255, 9, false, 1},
	} {
		set, n := bitRun(b, tt.first, tt.limit)
		require.Equal(t, tt.set, set, "bit %d", tt.first)
		require.Equal(t, tt.n, n, "run from %d up to %d", tt.first, tt.limit)
	}
	for i := range b {
		b[i] = 0xff
	}
	_, n := bitRun(b, 3, 1000)
	require.Equal(t, int64(253), n)
}

// Layers of every type against a byte model.
func TestLayerConformance(t *testing.T) {
	for _, tt := range []struct {
		name  string
		image fixture.VHDX
	}{
		{"dynamic 32M 512", fixture.VHDX{BlockSize: 32 << 20}},
		{"dynamic 1M 4K", fixture.VHDX{BlockSize: 1 << 20, LogicalSector: 4096}},
		{"fixed 2M 512", fixture.VHDX{Fixed: true}},
		{"child 1M 512", fixture.VHDX{BlockSize: 1 << 20, Parent: parentLocator()}},
		{"child 32M 4K", fixture.VHDX{BlockSize: 32 << 20, LogicalSector: 4096, Parent: parentLocator()}},
		{"child 2M 512, tables in the log", fixture.VHDX{Parent: parentLocator(), Log: &fixture.Log{Tables: true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, want := modelled(tt.image)
			conformance.Layer(t, func(t *testing.T) ops.Layer {
				h, _ := place(t, v)
				d, err := openHost(t, h, ops.Read)
				require.NoError(t, err)
				return d
			}, want)
		})
	}
}

// modelled writes small and large runs into an image and a model.
func modelled(v fixture.VHDX) (fixture.VHDX, *conformance.Disk) {
	v.Size, v.Order = 100*mib+4096, []int64{2, 0}
	want := conformance.NewDisk(v.Size)
	put := func(off int64, n int, b byte) {
		v.Writes = append(v.Writes, fixture.Write{Off: off, Data: fill(n, b)})
		want.Write(off, fill(n, b))
	}
	for i := range int64(9) {
		put(i*12288+4096, 4096, byte(i+1))
	}
	put(3*mib-4096, 8192, 0x31)
	put(40*mib, int(33*mib), 0x32)
	put(v.Size-4096, 4096, 0x33)
	if v.BlockSize != 32<<20 && !v.Fixed {
		v.States = map[int64]uint8{20: 2, 21: 1, 22: 3}
		bs := int64(max(v.BlockSize, 1<<20))
		if v.BlockSize == 0 {
			bs = 2 * mib
		}
		want.Zero(20*bs, 3*bs)
	}
	return v, want
}

// A disk of 64 TiB with blocks of 1 MiB has a table of half a GiB: it opens by
// a few pages, and long holes cost a look at the host's map (H19).
func TestLargestDisk(t *testing.T) {
	const size = 64 << 40
	v := fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: []fixture.Write{
		{Off: 5 << 40, Data: fill(512, 5)}, {Off: size - 512, Data: fill(512, 6)},
	}}
	d := openRead(t, v)
	require.Equal(t, fill(512, 5), read(t, d, 5<<40, 512))
	require.Equal(t, fill(512, 6), read(t, d, size-512, 512))
	x, err := d.Extent(0, size)
	require.NoError(t, err)
	require.Equal(t, ops.Extent{Len: 5 << 40, Kind: ops.Zero, Pos: -1}, x)
	x, err = d.Extent(5<<40+mib, size)
	require.NoError(t, err)
	require.Equal(t, ops.Extent{Len: size - 5<<40 - 2*mib, Kind: ops.Zero, Pos: -1}, x)
	require.Empty(t, check(t, d))
}

// The BAT of a 64 TiB child is read page by page too, with bitmaps between.
func TestLargestChild(t *testing.T) {
	const size = 64 << 40
	d := openRead(t, fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: parentLocator(), Writes: []fixture.Write{
		{Off: size - 4096, Data: fill(512, 6)},
	}})
	require.Equal(t, append(fill(512, 6), fill(512, 0xee)...), read(t, d, size-4096, 1024))
	x, err := d.Extent(0, size)
	require.NoError(t, err)
	require.Equal(t, ops.Extent{Len: size - 4096, Kind: ops.Absent, Pos: -1}, x)
}

// A dense table of the same entries is scanned around the cache.
func TestLongRunsInADenseTable(t *testing.T) {
	v := fixture.VHDX{Size: 1 << 40, BlockSize: 1 << 20, Parent: parentLocator()}
	m, err := v.Build()
	require.NoError(t, err)
	const blocks = 300_000
	table := make([]byte, 0, blocks*8+1024)
	for b := range int64(blocks) {
		if b > 0 && b%4096 == 0 {
			table = binary.LittleEndian.AppendUint64(table, 0)
		}
		table = binary.LittleEndian.AppendUint64(table, 2)
	}
	m.Write(m.BATOff, table)
	d, err := openHost(t, hostWith(m.Sparse), ops.Read)
	require.NoError(t, err)
	x, err := d.Extent(512, 1<<40)
	require.NoError(t, err)
	require.Equal(t, ops.Extent{Len: blocks*mib - 512, Kind: ops.Zero, Pos: -1}, x)
	require.NoError(t, d.Close())
}
