package peers

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

// Where a block lies is what the table says: strides, gaps and orders differ by
// who wrote the file.
func TestA5_08Strides(t *testing.T) {
	writes := []fixture.Write{fill(0, size, 's')}
	for name, v := range map[string]fixture.VHD{
		"4097 sectors":       {Unaligned: true},
		"4 KiB aligned":      {},
		"gaps":               {Unaligned: true, Gap: 1536},
		"gaps, 4 KiB":        {Gap: 4096},
		"backwards":          {Unaligned: true, Blocks: []int64{3, 2, 1, 0}},
		"blocks of 512 KiB":  {Unaligned: true, BlockSize: 512 << 10},
		"blocks of 4 KiB":    {Unaligned: true, BlockSize: 4 << 10},
		"blocks of 512":      {Unaligned: true, BlockSize: 512},
		"blocks of 32 MiB":   {Unaligned: true, BlockSize: 32 << 20},
		"batmap behind":      {Creator: "tap\x00", Batmap: true},
		"a table of slack":   {Entries: 5000},
		"exact bitmaps":      {ExactBitmap: true},
		"trailing structure": {ShortFooter: true},
	} {
		t.Run(name, func(t *testing.T) {
			folder.Watch(t)
			v.Size, v.Writes = size, writes
			same(t, model(size, writes), content(t, folder.Make(t, folder.Files{"a.vhd": v}), "a.vhd"))
		})
	}
}

// Every block size with either sector size: data at the borders of blocks and
// chunks, a virtual size that is no whole number of blocks, more than two chunks.
func TestA5_09BlocksAndChunks(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, block := range []int64{1, 2, 8, 32, 128, 256} {
			t.Run(fmt.Sprintf("%d/%d", block, sector), func(t *testing.T) {
				folder.Watch(t)
				bs, chunk := block*mib, sector<<23
				n := 2*chunk + bs + 3*sector
				at := func(off int64) fixture.Write { return fill(off, 2*sector, byte(off>>20)) }
				below := []fixture.Write{at(0), at(bs - sector), at(chunk - sector), at(chunk + bs), at(2*chunk - sector), at(n - 2*sector)}
				above := []fixture.Write{at(sector), at(chunk + bs - sector), at(2*chunk + sector), at(2*chunk + bs)}
				for i := range above {
					above[i].Data = fill(above[i].Off, 2*sector, 'c').Data
				}
				v := fixture.VHDX{Size: n, BlockSize: uint32(bs), LogicalSector: uint32(sector), DataWriteGUID: id(1), Writes: below}
				c := fixture.VHDX{Size: n, BlockSize: uint32(bs), LogicalSector: uint32(sector), Parent: linked(1, "relative_path", `.\p.vhdx`), Writes: above}
				dir := folder.Make(t, folder.Files{"p.vhdx": v, "c.vhdx": c})
				borders(t, open(t, dir, "p.vhdx"), sector, below)
				borders(t, open(t, dir, "c.vhdx"), sector, below, above)
			})
		}
	}
}

// borders reads five sectors around every write and compares them.
func borders(t *testing.T, h *ops.Handle, sector int64, layers ...[]fixture.Write) {
	t.Helper()
	for _, writes := range layers {
		for _, w := range writes {
			lo, hi := max(0, w.Off-sector), min(h.Size(), w.Off+int64(len(w.Data))+2*sector)
			want, got := make([]byte, hi-lo), make([]byte, hi-lo)
			for _, layer := range layers {
				for _, o := range layer {
					from, to := max(lo, o.Off), min(hi, o.Off+int64(len(o.Data)))
					if from < to {
						copy(want[from-lo:to-lo], o.Data[from-o.Off:])
					}
				}
			}
			_, err := h.ReadAt(got, lo)
			require.NoError(t, err)
			same(t, want, got)
		}
	}
}

// Reads of every offset and length near set and clear bits: readers decided a
// whole request by its first sector, or took the neighbour's bit.
func TestA5_09BitmapsAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	below, above := random(rng, size, 512, 60, 'p'), random(rng, size, 512, 200, 'c')
	want := model(size, below, above)
	dir := folder.Make(t, folder.Files{
		"p.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: id(1), Writes: below},
		"c.vhdx": fixture.VHDX{Size: size, BlockSize: 2 << 20, Parent: linked(1, "relative_path", `.\p.vhdx`), Writes: above},
		"p.vhd":  fixture.VHD{Size: size, UUID: id(1), Writes: below},
		"c.vhd":  fixture.VHD{Size: size, Type: 4, UUID: id(2), BlockSize: 512 << 10, Parent: linkedV(1, "p.vhd"), Writes: above},
	})
	for _, name := range []string{"c.vhdx", "c.vhd"} {
		t.Run(name, func(t *testing.T) {
			folder.Watch(t)
			same(t, want, content(t, dir, name))
			h := open(t, dir, name)
			for range 3000 {
				off := rng.Int64N(size)
				p := make([]byte, min(1+rng.Int64N(9000), size-off))
				_, err := h.ReadAt(p, off)
				require.NoError(t, err)
				same(t, want[off:off+int64(len(p))], p)
			}
		})
	}
}

// A child larger than its parent reads zeros past the parent's end, a smaller
// one ends where it ends.
func TestA5_09SizesOfParents(t *testing.T) {
	for _, parent := range []int64{mib + 512, 5 * mib, size, 3*size + 512} {
		t.Run(fmt.Sprint(parent), func(t *testing.T) {
			folder.Watch(t)
			below, above := []fixture.Write{fill(0, parent, 'p')}, []fixture.Write{fill(2*mib+512, 4096, 'c')}
			dir := folder.Make(t, folder.Files{
				"p.vhdx": fixture.VHDX{Size: parent, BlockSize: 1 << 20, DataWriteGUID: id(1), Writes: below},
				"c.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(1, "relative_path", `.\p.vhdx`), Writes: above},
				"p.vhd":  fixture.VHD{Size: parent, UUID: id(1), Writes: below},
				"c.vhd":  fixture.VHD{Size: size, Type: 4, UUID: id(2), Parent: linkedV(1, "p.vhd"), Writes: above},
			})
			want := make([]byte, size)
			copy(want, below[0].Data)
			copy(want[2*mib+512:], above[0].Data)
			same(t, want, content(t, dir, "c.vhdx"))
			same(t, want, content(t, dir, "c.vhd"))
		})
	}
}

// Another program copies over the file or cuts it while it is open.
func TestA5_10FileChangesUnderneath(t *testing.T) {
	for _, name := range []string{"a.vhdx", "a.vhd"} {
		t.Run(name, func(t *testing.T) {
			folder.Watch(t)
			files := func(tag byte) folder.Files {
				writes := []fixture.Write{fill(0, 4096, tag), fill(size-4096, 4096, tag)}
				return folder.Files{
					"a.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: writes}, "a.vhd": fixture.VHD{Size: size, Writes: writes},
				}
			}
			dir := folder.Make(t, files('1'))
			l := folder.Open(t, dir)
			h, err := l.Open(l.Top(name), ops.Read)
			require.NoError(t, err)
			require.NoError(t, files('2')[name].WriteFile(filepath.Join(dir, name)))
			_, err = l.Open(l.Top(name), ops.Read)
			require.ErrorIs(t, err, ops.ErrChanged)
			require.NoError(t, os.Truncate(filepath.Join(dir, name), 2*mib))
			_, err = h.ReadAt(make([]byte, 4096), size-4096)
			require.Error(t, err, "bytes that are gone were read")
			require.NoError(t, h.Close())
			require.NoError(t, files('3')[name].WriteFile(filepath.Join(dir, name)))
			same(t, model(size, []fixture.Write{fill(0, 4096, '3'), fill(size-4096, 4096, '3')}), content(t, dir, name))
		})
	}
}
