package peers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

const size = 8 * mib

// Not one read of a disk whose parent is missing gives a byte: QEMU and others
// show zeros.
func TestA5_01MissingParentNeverZeros(t *testing.T) {
	own := []fixture.Write{fill(mib, mib, 'c')}
	for name, files := range map[string]folder.Files{
		"c.vhdx": {"c.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: own, Parent: linked(1, "relative_path", `.\p.vhdx`)}},
		"c.vhd":  {"c.vhd": fixture.VHD{Size: size, Type: 4, Writes: own, UUID: id(2), Parent: linkedV(1, "p.vhd")}},
		"g.vhdx": {
			"g.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(2, "relative_path", `.\m.vhdx`)},
			"m.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: id(2), Parent: linked(1, "relative_path", `.\p.vhdx`)},
		},
		"empty.vhdx": {"empty.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			folder.Watch(t)
			l := folder.Open(t, folder.Make(t, files))
			for _, a := range []ops.Access{ops.Read, ops.Write} {
				_, err := l.Open(l.Top(name), a)
				require.ErrorIs(t, err, ops.ErrParentMissing)
				require.Equal(t, syscall.ENOLINK, ops.Classify(err).Errno)
				require.ErrorContains(t, err, "b0010203-0405-4607-8809-0a0b0c0d0e01")
			}
			chain, err := l.ChainOf(l.Top(name))
			require.NoError(t, err)
			require.ErrorIs(t, chain[len(chain)-1].Err, ops.ErrParentMissing)
		})
	}
}

// Blocks that are zero, undefined or unmapped hide the parent: libvhdi shows the
// parent's old bytes.
func TestA5_02StatesBelowAParent(t *testing.T) {
	for _, sector := range []uint32{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			folder.Watch(t)
			all := []fixture.Write{fill(0, size, 'p')}
			part := fill(6*mib+4096, 4096, 'c')
			child := fixture.VHDX{
				Size: size, BlockSize: 1 << 20, LogicalSector: sector, DataWriteGUID: id(2), Parent: linked(1, "relative_path", `.\p.vhdx`),
				Writes: []fixture.Write{fill(5*mib, mib, 'c'), part}, States: map[int64]uint8{0: 0, 1: 1, 2: 2, 3: 3},
			}
			grandchild := fixture.VHDX{
				Size: size, BlockSize: 1 << 20, LogicalSector: sector, Parent: linked(2, "relative_path", `.\c.vhdx`),
				States: map[int64]uint8{5: 2, 6: 0},
			}
			dir := folder.Make(t, folder.Files{
				"p.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, LogicalSector: sector, DataWriteGUID: id(1), Writes: all},
				"c.vhdx": child, "g.vhdx": grandchild,
			})
			zeros := fixture.Write{Off: mib, Data: make([]byte, 3*mib)}
			want := model(size, all, child.Writes, []fixture.Write{zeros})
			same(t, want, content(t, dir, "c.vhdx"))
			clear(want[5*mib : 6*mib])
			same(t, want, content(t, dir, "g.vhdx"))
		})
	}
}

// A log that was not played back is seen as if it had been, on media that cannot
// be written, in a child and in its parent; the file stays as it is.
func TestA5_03DirtyLog(t *testing.T) {
	folder.Watch(t)
	writes := []fixture.Write{fill(0, 4096, 'd'), fill(5*mib+512, 512, 'd'), fill(size-512, 512, 'd')}
	// Every entry of the table stands in the log alone.
	dirty := fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: writes, DataWriteGUID: id(1), Log: &fixture.Log{Tables: true}}
	child := fixture.VHDX{
		Size: size, BlockSize: 1 << 20, Parent: linked(1, "relative_path", `.\dirty.vhdx`),
		Writes: []fixture.Write{fill(mib+512, 512, 'c')}, Log: &fixture.Log{Tables: true},
	}
	// A header that names an older log: entries of the newer one mean nothing.
	older := dirty
	older.Log = &fixture.Log{GUID: id(8), HeaderGUID: id(9), Entries: []fixture.LogEntry{{Seq: 99, Descriptors: []fixture.Descriptor{{Off: 4 * mib, Zero: 4096}}}}}
	older.DataWriteGUID = id(3)
	dir := folder.Make(t, folder.Files{"dirty.vhdx": dirty, "child.vhdx": child, "older.vhdx": older})
	for _, n := range []string{"dirty.vhdx", "child.vhdx", "older.vhdx"} {
		require.NoError(t, os.Chmod(filepath.Join(dir, n), 0o444))
	}
	folder.Untouched(t, dir)
	same(t, model(size, writes), content(t, dir, "dirty.vhdx"))
	same(t, model(size, writes, child.Writes), content(t, dir, "child.vhdx"))
	same(t, model(size, writes), content(t, dir, "older.vhdx"))
	l := folder.Open(t, dir)
	for name, want := range map[string]ops.LogState{"dirty.vhdx": ops.LogReplayed, "child.vhdx": ops.LogReplayed, "older.vhdx": ops.LogEmpty} {
		found, err := l.Inspect(l.Top(name))
		require.NoError(t, err)
		require.Equal(t, want, found.Info.Log, name)
	}
}

// A fixed VHD after a foreign tool had it: refused when its footer does not end
// it any more, never taken for a raw disk.
func TestA5_04FixedVHD(t *testing.T) {
	fixed := fixture.VHD{Size: size, Type: 2, Writes: []fixture.Write{fill(0, size, 'f')}}
	dynamic := fixture.VHD{Size: size, Writes: []fixture.Write{fill(mib, 4096, 'y')}}
	for _, tt := range []struct {
		name string
		v    fixture.VHD
		size int64  // what the tool left of it
		says string // "": it reads as before
	}{
		{"grown", fixed, 16 * mib, ""},
		{"grown by a sector", fixed, size + 1024, ""},
		{"cut", fixed, 4 * mib, "footer: cookie|no format knows"},
		{"without its footer", fixed, size, "footer: cookie|no format knows"},
		{"half a footer", fixed, size + 256, "no format knows"},
		{"dynamic, without its footer", dynamic, dynamic.Layout().Tail, ""},
		{"dynamic, half a footer", dynamic, dynamic.Layout().Tail + 256, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			folder.Watch(t)
			dir := folder.Make(t, folder.Files{"a.vhd": tt.v})
			require.NoError(t, os.Truncate(filepath.Join(dir, "a.vhd"), tt.size))
			folder.Untouched(t, dir)
			if tt.says == "" {
				same(t, model(size, tt.v.Writes), content(t, dir, "a.vhd"))
				return
			}
			l := folder.Open(t, dir)
			_, err := l.Open(l.Top("a.vhd"), ops.Read)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.Regexp(t, tt.says, err.Error())
		})
	}
}

// Overlaps are named by check, and stop the first write that would allocate:
// nothing in the file has changed then.
func TestA5_05OverlappingBlocks(t *testing.T) {
	writes := []fixture.Write{fill(0, mib, 'o'), fill(3*mib, mib, 'o')}
	x := fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: writes, Entries: map[int64]uint64{3: 4<<20 | 6}}
	v := fixture.VHD{Size: size, BlockSize: 1 << 20, Writes: writes}
	v.BAT = map[int64]uint32{3: uint32(v.Layout().Blocks[0] / 512)}
	dir := folder.Make(t, folder.Files{"a.vhdx": x, "a.vhd": v})
	for _, name := range []string{"a.vhdx", "a.vhd"} {
		t.Run(name, func(t *testing.T) {
			folder.Watch(t)
			folder.Untouched(t, dir)
			l := folder.Open(t, dir)
			layer, err := l.OpenLayer(l.Top(name))
			require.NoError(t, err)
			var where []string
			require.NoError(t, layer.(ops.Checker).Check(t.Context(), func(a ops.Anomaly) { where = append(where, a.Where) }))
			require.NoError(t, layer.Close())
			require.Contains(t, where, "bat entry 3")
			h, err := l.Open(l.Top(name), ops.Write)
			require.NoError(t, err)
			_, err = h.WriteAt(make([]byte, 512), 6*mib)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.ErrorContains(t, err, "bat entry 3")
			require.NoError(t, h.Close())
		})
	}
}

// Text that repeats the identifier is data, and a block that is not there is
// zeros: libvhdi showed the start of the file.
func TestA5_12IdentifierInData(t *testing.T) {
	folder.Watch(t)
	text := fixture.Write{Off: 2 * mib, Data: bytes.Repeat([]byte("vhdxfileconectix"), 4096)}
	dir := folder.Make(t, folder.Files{
		"a.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Writes: []fixture.Write{text}},
		"b.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, LogicalSector: 4096, PhysicalSector: 512, Writes: []fixture.Write{text}},
		"a.vhd":  fixture.VHD{Size: size, Writes: []fixture.Write{text}},
	})
	for _, name := range []string{"a.vhdx", "b.vhdx", "a.vhd"} {
		same(t, model(size, []fixture.Write{text}), content(t, dir, name))
	}
}

// What was used once can be used again: headers stay readable over sessions.
func TestA5_13UsedAgainAndAgain(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{
		"a.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20}, "a.vhd": fixture.VHD{Size: size},
	})
	for _, name := range []string{"a.vhdx", "a.vhd"} {
		t.Run(name, func(t *testing.T) {
			var all []fixture.Write
			for i := range int64(12) {
				l := folder.Open(t, dir)
				h, err := l.Open(l.Top(name), ops.Write)
				require.NoError(t, err)
				w := fill(i*611*kib/512*512, 1024, byte(i))
				_, err = h.WriteAt(w.Data, w.Off)
				require.NoError(t, err)
				all = append(all, w)
				require.NoError(t, h.Close())
				same(t, model(size, all), content(t, dir, name))
			}
		})
	}
}

// A merge that was cut off leaves a VHD without its end footer.
func TestA5_14NoEndFooter(t *testing.T) {
	folder.Watch(t)
	p := fixture.VHD{Size: size, UUID: id(1), Writes: []fixture.Write{fill(0, 3*mib, 'p')}, NoTail: true}
	c := fixture.VHD{Size: size, Type: 4, UUID: id(2), Parent: linkedV(1, "p.vhd"), Writes: []fixture.Write{fill(mib+512, 2*mib, 'c')}, NoTail: true}
	dir := folder.Make(t, folder.Files{"p.vhd": p, "c.vhd": c})
	folder.Untouched(t, dir)
	same(t, model(size, p.Writes), content(t, dir, "p.vhd"))
	same(t, model(size, p.Writes, c.Writes), content(t, dir, "c.vhd"))
}

// The size is the size field's, whatever the geometry says and whoever wrote it.
func TestA5_15SizeAndGeometry(t *testing.T) {
	for _, creator := range []string{"win ", "vpc ", "qemu", "qem2", "tap\x00", "vbox"} {
		for _, n := range []int64{512, 20*mib + 512, 127*gib - 512, 2040 * gib} {
			t.Run(fmt.Sprintf("%.4q %d", creator, n), func(t *testing.T) {
				folder.Watch(t)
				v := fixture.VHD{Size: n, Creator: creator, Writes: []fixture.Write{fill(n-512, 512, 'l')}}
				h := open(t, folder.Make(t, folder.Files{"a.vhd": v}), "a.vhd")
				require.Equal(t, n, h.Size())
				p := make([]byte, 512)
				_, err := h.ReadAt(p, n-512)
				require.NoError(t, err)
				require.Equal(t, v.Writes[0].Data, p)
			})
		}
	}
}
