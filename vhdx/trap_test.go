package vhdx

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// T1: tables are sized by the indexes that are used, for every type.
func TestTrapT1EntryCount(t *testing.T) {
	for _, tt := range []struct {
		name          string
		m             metadata
		ratio, blocks int64
		entries       int64
		lastBitmap    int64
	}{
		{"64 TiB in 1 MiB blocks", metadata{size: 64 << 40, blockSize: 1 << 20, logical: 512}, 4096, 67108864, 67125247, 67125247},
		{"64 TiB child in 1 MiB blocks", metadata{size: 64 << 40, blockSize: 1 << 20, logical: 512, hasParent: true}, 4096, 67108864, 67125248, 67125247},
		{"one block", metadata{size: 512, blockSize: 1 << 20, logical: 512}, 4096, 1, 1, 4096},
		{"one block, child", metadata{size: 512, blockSize: 1 << 20, logical: 512, hasParent: true}, 4096, 1, 4097, 4096},
		{"a chunk and a block", metadata{size: 17 * 256 << 20, blockSize: 256 << 20, logical: 512}, 16, 17, 18, 33},
		{"a chunk and a block, child", metadata{size: 17 * 256 << 20, blockSize: 256 << 20, logical: 512, hasParent: true}, 16, 17, 34, 33},
		{"4 KiB sectors", metadata{size: 1 << 40, blockSize: 32 << 20, logical: 4096}, 1024, 32768, 32799, 32799},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGeometry(tt.m)
			require.Equal(t, tt.ratio, g.ratio)
			require.Equal(t, tt.blocks, g.blocks)
			require.Equal(t, tt.entries, g.entries)
			require.Equal(t, tt.lastBitmap, g.bitmapIndex(g.chunks()-1))
			require.Less(t, g.payloadIndex(g.blocks-1), g.entries)
		})
	}
}

// T2: the slot of a sector bitmap stands after every chunk's payload entries.
func TestTrapT2ChunkInterleave(t *testing.T) {
	for _, parent := range []*fixture.Locator{nil, parentLocator()} {
		v := fixture.VHDX{Size: 40 * 256 * mib, BlockSize: 256 << 20, Parent: parent}
		for b := range int64(40) {
			v.Writes = append(v.Writes, fixture.Write{Off: b*256*mib + 4096, Data: fill(512, byte(b+1))})
		}
		d := openRead(t, v)
		for b := range int64(40) {
			require.Equal(t, fill(512, byte(b+1)), read(t, d, b*256*mib+4096, 512), "block %d", b)
		}
		require.Equal(t, int64(16), d.geometry.bitmapIndex(0))
		for b, i := range map[int64]int64{0: 0, 15: 15, 16: 17, 31: 32, 32: 34} {
			require.Equal(t, i, d.geometry.payloadIndex(b))
			require.Equal(t, b, d.geometry.payloadOf(i))
		}
	}
}

// T2: a run of empty blocks that reaches over the slot of a bitmap ends where the
// next block is stored.
func TestTrapT2RunEndsBehindABitmap(t *testing.T) {
	for _, parent := range []*fixture.Locator{nil, parentLocator()} {
		const chunk = 16 * 256 * mib
		d := openRead(t, fixture.VHDX{
			Size: 3 * chunk, BlockSize: 256 << 20, Parent: parent,
			Writes: []fixture.Write{{Off: 2 * chunk, Data: fill(512, 7)}},
		})
		x, err := d.Extent(512, 3*chunk)
		require.NoError(t, err)
		require.Equal(t, int64(2*chunk-512), x.Len)
		require.NotEqual(t, ops.Data, x.Kind)
		require.Equal(t, fill(512, 7), read(t, d, 2*chunk, 512))
	}
}

// T5: equal sequence numbers are accepted when the headers are identical, and
// refused when not (the refusal is a row of TestOpenRejects).
func TestTrapT5EqualHeaders(t *testing.T) {
	d := openRead(t, fixture.VHDX{Size: 16 * mib, Sequence: [2]uint64{1, 1}})
	require.Empty(t, d.Info().ReadOnly)
}

// T6: a log that is in use without a valid entry is shown as the file stands,
// and not written.
func TestTrapT6LogWithoutEntry(t *testing.T) {
	for _, garbage := range []bool{false, true} {
		v := fixture.VHDX{Size: 16 * mib, Writes: []fixture.Write{{Off: 0, Data: fill(512, 3)}}, Log: &fixture.Log{Garbage: garbage}}
		d := openRead(t, v)
		require.Equal(t, fill(512, 3), read(t, d, 0, 512))
		require.Equal(t, ops.LogEmpty, d.Info().Log)
		require.Contains(t, d.Info().ReadOnly, "no valid entry")
		require.Equal(t, "vhdx.log.empty", d.Info().Anomalies[0].Name)
		h, _ := place(t, v)
		_, err := openHost(t, h, ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		require.Zero(t, h.Refused())
	}
}

// T12: what has no content is cleared, not left to the caller's buffer.
func TestTrapT12HolesAreZeroFilled(t *testing.T) {
	for _, sector := range [][2]uint32{{512, 512}, {4096, 512}, {4096, 4096}} {
		d := openRead(t, fixture.VHDX{Size: 16 * mib, LogicalSector: sector[0], PhysicalSector: sector[1]})
		require.Equal(t, make([]byte, 4096), read(t, d, 3*mib-100, 4096))
	}
}

// T15: a sector bitmap in a disk without parent is not looked at.
func TestTrapT15BitmapWithoutParent(t *testing.T) {
	d := openRead(t, fixture.VHDX{
		Size: 5 << 30, Writes: []fixture.Write{{Off: 4<<30 + 512, Data: fill(512, 3)}},
		Entries: map[int64]uint64{2048: uint64(4*mib) | 7},
	})
	require.Equal(t, fill(512, 3), read(t, d, 4<<30+512, 512))
	x, err := d.Extent(0, 5<<30)
	require.NoError(t, err)
	require.Equal(t, ops.Extent{Len: 4 << 30, Kind: ops.Zero, Pos: -1}, x)
}

// T15: nor does it keep a disk from being written, wherever it points.
func TestTrapT15BitmapWithoutParentIsWritten(t *testing.T) {
	for _, at := range []int64{4 * mib, mib, 5 * mib, 1 << 50} {
		h, _ := place(t, fixture.VHDX{
			Size: 5 << 30, Writes: []fixture.Write{{Off: 4<<30 + 512, Data: fill(512, 3)}, {Off: 0, Data: fill(512, 4)}},
			Entries: map[int64]uint64{2048: uint64(at) | 6},
		})
		w := openWriter(t, h)
		write(t, w, 2*mib, fill(512, 5))
		require.NoError(t, w.Close())
		d, err := openHost(t, h, ops.Read)
		require.NoError(t, err)
		for off, b := range map[int64]byte{4<<30 + 512: 3, 0: 4, 2 * mib: 5} {
			require.Equal(t, fill(512, b), read(t, d, off, 512))
		}
		require.Equal(t, []string{"vhdx.bat.bitmap-unused bat entry 2048"}, check(t, d))
		require.Equal(t, 10*mib, d.fileSize)
		require.NoError(t, d.Close())
	}
}

// T17: a file may end inside its last block. Bytes below the virtual size that
// are not there fail the read that needs them, and are never zeros.
func TestTrapT17FileEndsInsideABlock(t *testing.T) {
	v := fixture.VHDX{Size: 3*mib + 512, Writes: []fixture.Write{{Off: 2 * mib, Data: fill(int(mib)+512, 5)}}}
	v.Cut = 5*mib + 512 // the second block needs no more than that
	d := openRead(t, v)
	require.Equal(t, fill(int(mib)+512, 5), read(t, d, 2*mib, mib+512))
	require.Empty(t, check(t, d))

	v.Cut = 5*mib + 511
	d = openRead(t, v)
	require.Equal(t, fill(int(mib)+511, 5), read(t, d, 2*mib, mib+511))
	require.ErrorIs(t, readErr(d, 3*mib+511), ops.ErrCorrupt)
	require.ErrorContains(t, readErr(d, 3*mib+511), "bat entry 1: offset 0x5001ff past end of file 0x5001ff")
	require.Equal(t, []string{"vhdx.bat.past-end bat entry 1"}, check(t, d))
}

// T18: a virtual size that ends inside a block is the virtual size.
func TestTrapT18SizeNotRounded(t *testing.T) {
	d := openRead(t, fixture.VHDX{Size: 3*mib + 512, Writes: []fixture.Write{{Off: 3 * mib, Data: fill(512, 5)}}})
	require.Equal(t, 3*mib+512, d.Size())
	n, _, err := d.ReadRun(make([]byte, 4096), 3*mib)
	require.NoError(t, err)
	require.Equal(t, 512, n)
}

// T20, T21: paths in the order in which they are tried; a non-zero
// parent_linkage2 is a second id.
func TestTrapT20Locator(t *testing.T) {
	l := parentLocator()
	p := openRead(t, fixture.VHDX{Size: 16 * mib, Parent: l}).Info().Parent
	id, err := ops.ParseGUID("7584F8FB-36D3-4091-AFB5-B1AFE587BFA8")
	require.NoError(t, err)
	require.Equal(t, []ops.GUID{id}, p.IDs)
	require.Equal(t, []ops.ParentPath{
		{Kind: ops.PathRelative, Path: `.\parent.vhdx`},
		{Kind: ops.PathAbsolute, Path: `C:\vm\parent.vhdx`},
		{Kind: ops.PathVolume, Path: `\\?\Volume{f9b1a4c6-0000-0000-0000-100000000000}\vm\parent.vhdx`},
	}, p.Paths)

	second := "{BBBBBBBB-0000-4000-8000-000000000002}"
	l.Entries[1][1] = second
	p = openRead(t, fixture.VHDX{Size: 16 * mib, Parent: l}).Info().Parent
	require.Len(t, p.IDs, 2)
	require.Equal(t, strings.ToLower(second), "{"+p.IDs[1].String()+"}")
}

// T24: with sectors of 4 KiB a chunk is eight times as long and a bit of the
// bitmap counts 4 KiB.
func TestTrapT24LargeSectors(t *testing.T) {
	d := openRead(t, fixture.VHDX{Size: 40 << 30, LogicalSector: 4096, PhysicalSector: 512, Parent: parentLocator(), Writes: []fixture.Write{
		{Off: 8192, Data: fill(4096, 1)}, {Off: 33 << 30, Data: fill(4096, 2)},
	}})
	require.Equal(t, int64(16384), d.geometry.ratio)
	require.Equal(t, fill(4096, 1), read(t, d, 8192, 4096))
	require.Equal(t, fill(4096, 2), read(t, d, 33<<30, 4096))
	require.Equal(t, fill(512, 0xee), read(t, d, 8192-512, 512))
	require.Equal(t, fill(512, 0xee), read(t, d, 33<<30+4096, 512))
}

// T25: content decides what a file is; the extension breaks ties.
func TestTrapT25Probe(t *testing.T) {
	img := fixture.VHDX{Size: 16 * mib}.Bytes()
	footer := make([]byte, 512)
	copy(footer, "conectix")
	var sum uint32
	for _, c := range footer {
		sum += uint32(c)
	}
	copy(footer[64:], []byte{byte(^sum >> 24), byte(^sum >> 16), byte(^sum >> 8), byte(^sum)})
	badFooter := append([]byte(nil), footer...)
	badFooter[20] = 1
	damaged := append([]byte("XXXX"), img[4:]...)
	for _, tt := range []struct {
		name, ext string
		file      []byte
		want      bool
	}{
		{"image", ".vhdx", img, true},
		{"image", ".vhd", img, true},
		{"with a VHD footer", ".vhd", append(img[:len(img):len(img)], footer...), false},
		{"with a VHD footer", ".vhdx", append(img[:len(img):len(img)], footer...), true},
		{"with a VHD footer", ".avhdx", append(img[:len(img):len(img)], footer...), true},
		{"with a bad VHD footer", ".vhd", append(img[:len(img):len(img)], badFooter...), true},
		{"identifier damaged", ".vhdx", damaged, true},
		{"identifier damaged", ".vhd", damaged, false},
		{"raw", ".vhdx", make([]byte, 1<<20), false},
		{"a VHD", ".vhdx", footer, false},
		{"empty", ".vhdx", nil, false},
		{"identifier only", ".avhdx", []byte("vhdxfile"), true},
	} {
		t.Run(tt.name+tt.ext, func(t *testing.T) {
			h := hostWith(&fixture.Sparse{})
			h.Put("/img/"+testImage, tt.file)
			f, err := h.Dir("/img").Open(testImage, ops.Read)
			require.NoError(t, err)
			got, err := Format.Probe(f, tt.ext)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			require.NoError(t, f.Close())
		})
	}
}

// T27: sizes are 64-bit all the way.
func TestTrapT27WideSums(t *testing.T) {
	const size = 10 << 40
	v := fixture.VHDX{Size: size, BlockSize: 256 << 20, Parent: parentLocator()}
	for _, off := range []int64{1<<32 - 4096, 1 << 32, 1<<41 + 512, size - 512} {
		v.Writes = append(v.Writes, fixture.Write{Off: off, Data: fill(512, byte(off>>40)+1)})
	}
	d := openRead(t, v)
	for _, w := range v.Writes {
		require.Equal(t, w.Data, read(t, d, w.Off, 512), "at %d", w.Off)
	}
}
