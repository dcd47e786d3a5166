package ops_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/fixture"
	"vhdfs/test/need"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// realWorld is a world with the real formats.
func realWorld(t *testing.T) *world {
	w := newWorld(t)
	o := w.options()
	o.Formats = []*ops.Format{vhd.Format, vhdx.Format, vhdx.SetFormat}
	w.lib = ops.NewLibrary(o)
	return w
}

// fixtureChain stores depth images i.EXT, each with writes at random sectors,
// and answers what the last one reads as.
func fixtureChain(w *world, ext string, depth int, sector int64) []byte {
	const size = 8 << 20
	rng := rand.New(rand.NewPCG(uint64(depth), uint64(sector)))
	model := make([]byte, size)
	for i := 1; i <= depth; i++ {
		var writes []fixture.Write
		for range 12 {
			n := (rng.Int64N(9) + 1) * sector
			off := rng.Int64N((size-n)/sector) * sector
			data := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, int(n))
			writes = append(writes, fixture.Write{Off: off, Data: data})
			copy(model[off:], data)
		}
		id, parentID := fixture.MustGUID(guid(i)), fixture.MustGUID(guid(i-1))
		parentName := strconv.Itoa(i-1) + "." + ext
		var b []byte
		if ext == "vhd" {
			v := fixture.VHD{Size: size, UUID: id, Writes: writes}
			if i > 1 {
				v.Type = 4
				v.Parent = &fixture.VHDParent{UUID: parentID, Name: parentName,
					Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\` + parentName}}}
			}
			b = v.Bytes()
		} else {
			v := fixture.VHDX{Size: size, BlockSize: 1 << 20, LogicalSector: uint32(sector), DataWriteGUID: id, Writes: writes}
			if i > 1 {
				v.Parent = &fixture.Locator{Entries: [][2]string{
					{"parent_linkage", "{" + guid(i-1) + "}"}, {"relative_path", `.\` + parentName}}}
			}
			b = v.Bytes()
		}
		w.put("/vms/"+strconv.Itoa(i)+"."+ext, b)
	}
	return model
}

func TestRealChains(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		for _, depth := range []int{1, 2, 5} {
			for _, sector := range []int64{512, 4096} {
				if ext == "vhd" && sector != 512 {
					continue
				}
				t.Run(ext+" "+strconv.Itoa(depth)+" "+strconv.FormatInt(sector, 10), func(t *testing.T) {
					w := realWorld(t)
					model := fixtureChain(w, ext, depth, sector)
					name := strconv.Itoa(depth) + "." + ext
					got, err := w.read(name)
					require.NoError(t, err)
					require.True(t, bytes.Equal(model, got))

					h := w.open(name, ops.Read)
					require.EqualValues(t, sector, h.Info().LogicalSector)
					var files [][]byte
					for _, r := range h.Layers() {
						b, err := w.host.ReadFile(r.Path())
						require.NoError(t, err)
						files = append(files, b)
					}
					for off := int64(0); off < h.Size(); {
						x, err := h.Extent(off, h.Size())
						require.NoError(t, err)
						stored := make([]byte, x.Len)
						if x.Kind == ops.Data {
							stored = files[x.Depth][x.Pos : x.Pos+x.Len]
						}
						require.True(t, bytes.Equal(model[off:off+x.Len], stored), "extent at %#x", off)
						off += x.Len
					}
					if depth == 1 {
						return
					}
					chain, err := w.lib.ChainOf(w.lib.Top(name))
					require.NoError(t, err)
					require.Len(t, chain, depth)
					require.NoError(t, w.dirs["/vms"].Rename(strconv.Itoa(depth-1)+"."+ext, "moved."+ext))
					require.NoError(t, h.Close())
					chain, err = w.lib.ChainOf(w.lib.Top(name))
					require.NoError(t, err)
					require.Equal(t, ops.RuleID, chain[1].Rule)
					require.NoError(t, w.dirs["/vms"].Rename("moved."+ext, "moved.txt"))
					_, err = w.read(name)
					require.ErrorIs(t, err, ops.ErrParentMissing)
				})
			}
		}
	}
}

// The real writers below the read-modify-write of a chain, against a slice.
func TestRealWrites(t *testing.T) {
	for _, tt := range []struct {
		ext    string
		depth  int
		sector int64
	}{{"vhdx", 1, 512}, {"vhdx", 1, 4096}, {"vhdx", 3, 512}, {"vhdx", 3, 4096}, {"vhd", 1, 512}, {"vhd", 3, 512}} {
		t.Run(tt.ext+" "+strconv.Itoa(tt.depth)+" "+strconv.FormatInt(tt.sector, 10), func(t *testing.T) {
			w := realWorld(t)
			model := fixtureChain(w, tt.ext, tt.depth, tt.sector)
			name := strconv.Itoa(tt.depth) + "." + tt.ext
			h, err := w.lib.Open(w.lib.Top(name), ops.Write)
			require.NoError(t, err)
			rng := rand.New(rand.NewPCG(7, uint64(tt.depth)))
			for step := range 300 {
				n := rng.Int64N(20000) + 1
				off := rng.Int64N(int64(len(model)) - n)
				if step%2 == 0 {
					off, n = off/tt.sector*tt.sector, max(n/tt.sector*tt.sector, tt.sector)
				}
				switch step % 6 {
				case 0, 1, 2:
					p := bytes.Repeat([]byte{byte(step + 1)}, int(n))
					_, err = h.WriteAt(p, off)
					copy(model[off:], p)
				case 3:
					err = h.Zero(off, n, step%4 == 0)
					clear(model[off : off+n])
				case 4:
					err = h.Flush()
				case 5:
					got := make([]byte, n)
					_, err = h.ReadAt(got, off)
					require.True(t, bytes.Equal(model[off:off+n], got), "step %d", step)
				}
				require.NoError(t, err, "step %d", step)
			}
			require.NoError(t, h.Close())
			got, err := w.read(name)
			require.NoError(t, err)
			require.True(t, bytes.Equal(model, got))
		})
	}
}

// Windows' own differencing disks, read through the parents they record, on the
// real host; their files stay as they are.
func TestCorpusChains(t *testing.T) {
	for _, row := range need.CorpusRows(t) {
		if row.Type != "differencing" {
			continue
		}
		t.Run(row.File, func(t *testing.T) {
			path := need.Corpus(t, row.File)
			dir, err := host.OpenDir(filepath.Dir(path))
			require.NoError(t, err)
			defer func() { require.NoError(t, dir.Close()) }()
			lib := ops.NewLibrary(ops.LibraryOptions{Top: dir, Formats: []*ops.Format{vhd.Format, vhdx.Format}})
			h, err := lib.Open(lib.Top(filepath.Base(path)), ops.Read)
			require.NoError(t, err)
			sum := sha256.New()
			n, err := io.Copy(sum, io.NewSectionReader(h, 0, h.Size()))
			require.NoError(t, err)
			require.Equal(t, row.VirtualSize, n)
			require.Equal(t, row.RawSHA256, hex.EncodeToString(sum.Sum(nil)))
			require.Len(t, h.Layers(), 2)
			require.NoError(t, h.Close())
			require.NoError(t, lib.Close())
		})
	}
}

// 10,000 images: listed without opening one, scanned once in bounded memory.
func BenchmarkFolder(b *testing.B) {
	path := b.TempDir()
	image := fixture.VHDX{Size: 1 << 30}
	for i := range 10000 {
		image.DataWriteGUID = fixture.MustGUID(guid(i + 1))
		require.NoError(b, image.WriteFile(filepath.Join(path, strconv.Itoa(i)+".vhdx")))
	}
	dir, err := host.OpenDir(path)
	require.NoError(b, err)
	open := func() *ops.Library {
		return ops.NewLibrary(ops.LibraryOptions{Top: dir, Formats: []*ops.Format{vhd.Format, vhdx.Format}})
	}
	time.Sleep(50 * time.Millisecond) // older than what is remembered at once
	lib := open()
	b.Run("scan first", func(b *testing.B) {
		for range b.N {
			lib = open()
			_, err := lib.Children(lib.Top("1.vhdx"))
			require.NoError(b, err)
		}
	})
	b.Run("scan again", func(b *testing.B) {
		for range b.N {
			_, err := lib.Children(lib.Top("1.vhdx"))
			require.NoError(b, err)
		}
	})
	b.Run("list", func(b *testing.B) {
		for range b.N {
			_, err := lib.List(".")
			require.NoError(b, err)
		}
	})
}

// Ids and bytes stay put until something is written, and then only in the image
// that is written.
func TestRealImagesStayPut(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		t.Run(ext, func(t *testing.T) {
			w := realWorld(t)
			fixtureChain(w, ext, 2, 512)
			look := func() (files [2][]byte, ids [2]ops.GUID) {
				for i := range 2 {
					name := strconv.Itoa(i+1) + "." + ext
					b, err := w.host.ReadFile("/vms/" + name)
					require.NoError(t, err)
					found, err := w.lib.Inspect(w.lib.Top(name))
					require.NoError(t, err)
					require.NoError(t, found.Err)
					files[i], ids[i] = b, found.Info.LinkID
				}
				return files, ids
			}
			files, ids := look()
			h := w.open("2."+ext, ops.Write)
			_, err := h.ReadAt(make([]byte, 1<<20), 12345)
			require.NoError(t, err)
			require.NoError(t, h.Flush())
			require.NoError(t, h.Close())
			after, afterIDs := look()
			require.True(t, bytes.Equal(files[0], after[0]) && bytes.Equal(files[1], after[1]))
			require.Equal(t, ids, afterIDs)

			h = w.open("2."+ext, ops.Write)
			var written [2]ops.GUID
			for i := range written {
				_, err = h.WriteAt([]byte("x"), int64(i+3)<<20)
				require.NoError(t, err)
				require.NoError(t, h.Flush())
				after, afterIDs = look()
				require.True(t, bytes.Equal(files[0], after[0]), "the parent")
				require.Equal(t, ids[0], afterIDs[0])
				written[i] = afterIDs[1]
			}
			require.Equal(t, ext == "vhdx", ids[1] != written[0])
			require.Equal(t, written[0], written[1], "one change for each session")
			require.NoError(t, h.Close())
			_, afterIDs = look()
			require.Equal(t, written[0], afterIDs[1])
		})
	}
}
