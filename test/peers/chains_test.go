package peers

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
	"vhdfs/test/need"
)

// random3 is a chain of three images of random writes in whole units, and what
// the leaf shows.
func random3(ext string, seed uint64, unit int64) (folder.Files, []byte) {
	rng := rand.New(rand.NewPCG(seed, 3))
	layers := [][]fixture.Write{
		random(rng, size, unit, 30, 'a'), random(rng, size, unit, 60, 'b'), random(rng, size, unit, 60, 'c'),
	}
	files := folder.Files{}
	for i, writes := range layers {
		parent := fmt.Sprintf("%d.%s", i, ext)
		x := fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: id(byte(i + 1)), DiskID: id(9), Writes: writes}
		v := fixture.VHD{Size: size, BlockSize: 512 << 10, UUID: id(byte(i + 1)), Writes: writes}
		if i > 0 {
			x.Parent = linked(byte(i), "relative_path", `.\`+parent, "absolute_win32_path", `C:\disks\`+parent)
			v.Type, v.Parent = 4, linkedV(byte(i), parent)
		}
		if ext == "vhdx" {
			files[fmt.Sprintf("%d.vhdx", i+1)] = x
		} else {
			files[fmt.Sprintf("%d.vhd", i+1)] = v
		}
	}
	return files, model(size, layers...)
}

// 7-Zip reads chains of both formats by their parents' names beside the child.
func TestChainsOf7Zip(t *testing.T) {
	sevenZip := need.Tool(t, "7z")
	for _, ext := range []string{"vhdx", "vhd"} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%s seed %d", ext, seed), func(t *testing.T) {
				folder.Watch(t)
				files, want := random3(ext, seed, 512)
				dir := folder.Make(t, files)
				for i := 1; i <= 3; i++ {
					name := fmt.Sprintf("%d.%s", i, ext)
					same(t, run(t, sevenZip, "e", "-so", "-t"+ext, filepath.Join(dir, name)), content(t, dir, name))
				}
				same(t, want, content(t, dir, "3."+ext))
			})
		}
	}
}

// libvhdi reads chains too. It may look at a neighbour's bit within a byte of a
// bitmap, so that writes are of eight sectors here, and it shows the parent's
// bytes for blocks of zeros, so that there are none.
func TestChainsOfLibvhdi(t *testing.T) {
	need.Fuse(t)
	vhdimount, fusermount := need.Tool(t, "vhdimount"), need.Tool(t, "fusermount")
	for _, ext := range []string{"vhdx", "vhd"} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%s seed %d", ext, seed), func(t *testing.T) {
				folder.Watch(t)
				files, want := random3(ext, 100+seed, 4096)
				dir, mnt := folder.Make(t, files), t.TempDir()
				run(t, vhdimount, filepath.Join(dir, "3."+ext), mnt)
				t.Cleanup(func() { require.NoError(t, exec.Command(fusermount, "-u", mnt).Run()) })
				for i := 1; i <= 3; i++ {
					theirs, err := os.ReadFile(filepath.Join(mnt, fmt.Sprintf("vhdi%d", i)))
					require.NoError(t, err)
					same(t, theirs, content(t, dir, fmt.Sprintf("%d.%s", i, ext)))
				}
				same(t, want, content(t, dir, "3."+ext))
			})
		}
	}
}

// A hole punched into a child hides what any ancestor holds there, at any
// alignment, now and after the next open; 7-Zip agrees.
func TestA5_06HoleHidesTheParent(t *testing.T) {
	for _, ext := range []string{"vhdx", "vhd"} {
		t.Run(ext, func(t *testing.T) {
			folder.Watch(t)
			files, want := random3(ext, 6, 512)
			dir := folder.Make(t, files)
			l := folder.Open(t, dir)
			leaf := "3." + ext
			h, err := l.Open(l.Top(leaf), ops.Write)
			require.NoError(t, err)
			for _, hole := range [][2]int64{{0, 1}, {513, 1000}, {mib - 7, 2*mib + 14}, {4 * mib, mib}, {5*mib + 512, 512}, {size - 4097, 4097}} {
				require.NoError(t, h.Zero(hole[0], hole[1], true))
				clear(want[hole[0] : hole[0]+hole[1]])
			}
			got := make([]byte, size)
			_, err = h.ReadAt(got, 0)
			require.NoError(t, err)
			same(t, want, got)
			require.NoError(t, h.Flush())
			require.NoError(t, h.Close())
			same(t, want, content(t, dir, leaf))
			same(t, want, run(t, need.Tool(t, "7z"), "e", "-so", "-t"+ext, filepath.Join(dir, leaf)))
		})
	}
}

// Zeros written over a grandparent's data are not left out because the parent
// holds nothing there.
func TestA5_07ZerosOverAGrandparent(t *testing.T) {
	for _, ext := range []string{"vhdx", "vhd"} {
		t.Run(ext, func(t *testing.T) {
			folder.Watch(t)
			x := func(n byte) fixture.VHDX {
				return fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: id(n), Parent: linked(n-1, "relative_path", fmt.Sprintf(`.\%d.vhdx`, n-1))}
			}
			v := func(n byte) fixture.VHD {
				return fixture.VHD{Size: size, Type: 4, UUID: id(n), Parent: linkedV(n-1, fmt.Sprintf("%d.vhd", n-1))}
			}
			dir := folder.Make(t, folder.Files{
				"1.vhdx": parentX(1), "2.vhdx": x(2), "3.vhdx": x(3), "1.vhd": parentV(1), "2.vhd": v(2), "3.vhd": v(3),
			})
			l := folder.Open(t, dir)
			h, err := l.Open(l.Top("3."+ext), ops.Write)
			require.NoError(t, err)
			_, err = h.WriteAt(make([]byte, 1024), 512)
			require.NoError(t, err)
			require.NoError(t, h.Zero(size-512, 512, true))
			require.NoError(t, h.Close())
			want := model(size, inParent)
			clear(want[512 : 512+1024])
			clear(want[size-512:])
			same(t, want, content(t, dir, "3."+ext))
		})
	}
}
