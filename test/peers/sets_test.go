package peers

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/hostile/folder"
	"vhdfs/test/need"
)

// The disks of a set are plain VHDX: 7-Zip and libvhdi read each layer, and
// QEMU the set as one disk, without the set. 7-Zip reads its chain, copied, in either
// format.
func TestDisksOfSets(t *testing.T) {
	dir := t.TempDir()
	l := folder.Open(t, dir)
	do := func(name, image, request string) ops.Answer {
		op := ops.All[slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == name })]
		args, err := op.Parse(request)
		require.NoError(t, err)
		a := op.Do(context.Background(), &ops.Request{Library: l, Image: l.Top(image), Args: args})
		require.NoError(t, a.Err)
		return a
	}
	do("create", ".", "path=d.vhds block=1M size=8M")
	h, err := l.Open(l.Top("d.vhds"), ops.Write)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(8, 8))
	for _, label := range []string{"a", "b", ""} {
		for _, w := range random(rng, 8<<20, 4096, 40, 'a'+byte(len(label))) {
			_, err := h.WriteAt(w.Data, w.Off)
			require.NoError(t, err)
		}
		if label != "" {
			do("snapshot", "d.vhds", label)
		}
	}
	require.NoError(t, h.Close())
	do("convert", "d.vhds", "path=flat.vhdx type=dynamic")
	do("convert", "d.vhds", "path=plain type=chain")
	do("convert", "d.vhds", "path=other type=chain format=vhd")
	found, err := l.Inspect(l.Top("d.vhds"))
	require.NoError(t, err)
	names := []string{found.Set.Leaf}
	for _, n := range found.Set.Snapshots {
		names = append(names, n.Path)
	}
	want := content(t, dir, "d.vhds")
	t.Run("7z", func(t *testing.T) {
		sevenZip := need.Tool(t, "7z")
		same(t, want, run(t, sevenZip, "e", "-so", "-tvhdx", filepath.Join(dir, names[0])))
		for _, n := range names {
			same(t, content(t, dir, n), run(t, sevenZip, "e", "-so", "-tvhdx", filepath.Join(dir, n)))
		}
		same(t, want, run(t, sevenZip, "e", "-so", "-tvhdx", filepath.Join(dir, "plain", "d.vhdx")))
		same(t, want, run(t, sevenZip, "e", "-so", "-tvhd", filepath.Join(dir, "other", "d.vhd")))
		for _, n := range names[1:] {
			same(t, content(t, dir, n), run(t, sevenZip, "e", "-so", "-tvhdx", filepath.Join(dir, "plain", n)))
		}
	})
	t.Run("qemu-img", func(t *testing.T) {
		img := need.Tool(t, "qemu-img")
		raw := filepath.Join(t.TempDir(), "flat.raw")
		run(t, img, "convert", "-f", "vhdx", "-O", "raw", filepath.Join(dir, "flat.vhdx"), raw)
		b, err := os.ReadFile(raw)
		require.NoError(t, err)
		same(t, want, b)
	})
	t.Run("libvhdi", func(t *testing.T) {
		need.Fuse(t)
		vhdimount, fusermount := need.Tool(t, "vhdimount"), need.Tool(t, "fusermount")
		for _, n := range names {
			mnt := t.TempDir()
			run(t, vhdimount, filepath.Join(dir, n), mnt)
			files, err := filepath.Glob(filepath.Join(mnt, "*"))
			var b []byte
			if err == nil {
				b, err = os.ReadFile(slices.Max(files))
			}
			run(t, fusermount, "-u", mnt)
			require.NoError(t, err)
			same(t, content(t, dir, n), b)
		}
	})
}
