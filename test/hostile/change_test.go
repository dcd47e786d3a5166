package hostile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

func pairOf(ext string) folder.Files {
	if ext == ".vhd" {
		return folder.Files{"p.vhd": rootV(2), "c.vhd": childV(1, 2, "W2ru", `.\p.vhd`)}
	}
	return folder.Files{"p.vhdx": rootX(2), "c.vhdx": childX(1, 2, "relative_path", `.\p.vhdx`)}
}

func both(t *testing.T, test func(t *testing.T, ext string)) {
	for _, ext := range []string{".vhdx", ".vhd"} {
		t.Run(ext, func(t *testing.T) {
			folder.Watch(t)
			test(t, ext)
		})
	}
}

func readStart(t *testing.T, h *ops.Handle) string {
	t.Helper()
	p := make([]byte, 512)
	_, err := h.ReadAt(p, 0)
	require.NoError(t, err)
	return string(p)
}

// Another file takes the parent's name: who has it open goes on with what was
// opened, who comes later is told.
func TestH43ParentReplaced(t *testing.T) {
	both(t, func(t *testing.T, ext string) {
		dir := folder.Make(t, pairOf(ext))
		l := folder.Open(t, dir)
		h, err := l.Open(l.Top("c"+ext), ops.Read)
		require.NoError(t, err)
		other := rootX(3)
		other.Writes = guest([]byte("another disk"))
		v := rootV(3)
		v.Writes = other.Writes
		folder.Add(t, dir, folder.Files{"new.vhdx": other, "new.vhd": v})
		require.NoError(t, os.Rename(filepath.Join(dir, "new"+ext), filepath.Join(dir, "p"+ext)))
		require.Equal(t, string(base[0].Data), readStart(t, h))
		require.NoError(t, h.Close())
		_, err = l.Open(l.Top("c"+ext), ops.Read)
		require.ErrorIs(t, err, ops.ErrParentMismatch)
		says(t, err, "0d0003, recorded is a0010203-0405-4607-8809-0a0b0c0d0002")
	})
}

// The parent is changed in place by another program while a child is open: the
// next who opens it is told, not shown a mix.
func TestH43ParentChangedInPlace(t *testing.T) {
	both(t, func(t *testing.T, ext string) {
		dir := folder.Make(t, pairOf(ext))
		l := folder.Open(t, dir)
		h, err := l.Open(l.Top("c"+ext), ops.Read)
		require.NoError(t, err)
		f, err := os.OpenFile(filepath.Join(dir, "p"+ext), os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		_, err = f.Write(make([]byte, 4096))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		_, err = l.Open(l.Top("p"+ext), ops.Read)
		require.ErrorIs(t, err, ops.ErrChanged)
		says(t, err, "p"+ext)
		require.NoError(t, h.Close())
	})
}

// A parent that has children is not written, whether they are open or not, and
// nothing was changed by asking.
func TestH44ParentIsReadOnly(t *testing.T) {
	both(t, func(t *testing.T, ext string) {
		dir := folder.Make(t, pairOf(ext))
		folder.Untouched(t, dir)
		l := folder.Open(t, dir)
		_, err := l.Open(l.Top("p"+ext), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		says(t, err, "c"+ext)
		child, err := l.Open(l.Top("c"+ext), ops.Write)
		require.NoError(t, err)
		_, err = l.Open(l.Top("p"+ext), ops.Write)
		require.Error(t, err)
		parent, err := l.Open(l.Top("p"+ext), ops.Read)
		require.NoError(t, err)
		require.Equal(t, readStart(t, parent), readStart(t, child))
		require.NoError(t, parent.Close())
		require.NoError(t, child.Close())
	})
}

// The same from two programs: locks of the open files decide.
func TestH44TwoPrograms(t *testing.T) {
	both(t, func(t *testing.T, ext string) {
		dir := folder.Make(t, pairOf(ext))
		folder.Add(t, dir, folder.Files{"alone" + ext: pairOf(ext)["p"+ext]})
		folder.Untouched(t, dir)
		a, b := folder.Open(t, dir), folder.Open(t, dir)
		h, err := a.Open(a.Top("c"+ext), ops.Write)
		require.NoError(t, err)
		for _, access := range []ops.Access{ops.Read, ops.Write} {
			_, err = b.Open(b.Top("c"+ext), access)
			require.ErrorIs(t, err, ops.ErrBusy)
		}
		require.NoError(t, h.Close())
		h, err = b.Open(b.Top("c"+ext), ops.Write)
		require.NoError(t, err)
		require.NoError(t, h.Close())
	})
}

// A folder of a thousand images, each damaged in its own way, and one good one.
func TestH45ThousandImages(t *testing.T) {
	folder.Watch(t)
	x, v := small().Bytes(), smallVHD().Bytes()
	rng := rand.New(rand.NewPCG(45, 0))
	files := folder.Files{"good.vhdx": rootX(2)}
	for i := range 1000 {
		whole, ext := x, ".vhdx"
		hot := []int64{0, 64 * kib, 128 * kib, 192 * kib, 256 * kib, metadataAt, metadataAt + 64*kib, 3 * mib}
		if i%2 == 1 {
			whole, ext, hot = v, ".vhd", []int64{0, 512, 1536, int64(len(v)) - 512}
		}
		bad := folder.Func(func(path string) error {
			f, err := os.Create(path)
			if err != nil {
				return err
			}
			if err := f.Truncate(int64(len(whole))); err != nil {
				return err
			}
			for _, at := range append([]int64{int64(len(whole)) - 512}, hot...) {
				if _, err := f.WriteAt(whole[at:at+512], at); err != nil {
					return err
				}
			}
			for range 1 + i%8 {
				at := hot[rng.IntN(len(hot))] + rng.Int64N(128)
				if _, err := f.WriteAt(le64(rng.Uint64()), at); err != nil {
					return err
				}
			}
			return f.Close()
		})
		files[fmt.Sprintf("bad%03d%s", i, ext)] = bad
	}
	dir := folder.Make(t, files)
	folder.Untouched(t, dir)
	l := folder.Open(t, dir)
	list, err := l.List(".")
	require.NoError(t, err)
	require.Len(t, list, 1001)
	refused := 0
	for _, e := range list {
		s, h := folder.See(l, e.Name)
		if h != nil {
			require.NoError(t, s.Read(h))
			continue
		}
		refused++
		require.NotContains(t, []string{"", "EIO"}, ops.Errno(s.Err), "%s: %v", e.Name, s.Err)
	}
	require.Greater(t, refused, 600)
	g, err := l.Graph()
	require.NoError(t, err)
	require.Len(t, g.Images, 1001)
	h, err := l.Open(l.Top("good.vhdx"), ops.Read)
	require.NoError(t, err)
	require.Equal(t, string(base[0].Data), readStart(t, h))
	require.NoError(t, h.Close())
}

// Millions of runs of a sector cannot fill the cache over its budget.
func TestH47BitmapBomb(t *testing.T) {
	folder.Watch(t)
	const chunk = 4 * gib
	child := childX(1, 2, "relative_path", `.\p.vhdx`)
	child.Size = 64 * chunk
	for i := range int64(64) {
		for s := range int64(64) {
			child.Writes = append(child.Writes, fixture.Write{Off: i*chunk + s*mib + s*1024, Data: make([]byte, 512)})
		}
	}
	root := fixture.VHDX{Size: 64 * chunk, BlockSize: 1 << 20, DataWriteGUID: idOf(2)}
	dir := folder.Make(t, folder.Files{"c.vhdx": child, "p.vhdx": root})
	folder.Untouched(t, dir)
	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	const budget = 1 << 20
	cache := ops.NewCache(budget)
	l := ops.NewLibrary(ops.LibraryOptions{Top: d, Formats: folder.Formats(), Cache: cache})
	h, err := l.Open(l.Top("c.vhdx"), ops.Read)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(47, 0))
	p := make([]byte, 512)
	for range 100_000 {
		_, err := h.ReadAt(p, rng.Int64N(64)*chunk+rng.Int64N(64*mib/512)*512)
		require.NoError(t, err)
	}
	require.LessOrEqual(t, cache.Used(), int64(budget))
	require.NotZero(t, cache.Used())
	require.NoError(t, h.Close())
	require.NoError(t, l.Close())
	require.NoError(t, d.Close())
}
