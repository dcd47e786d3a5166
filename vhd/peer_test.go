package vhd

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/fixture"
	"vhdfs/test/need"
)

// run executes a tool in a folder and gives what it prints.
func run(t *testing.T, dir, tool string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(need.Tool(t, tool), args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %v\n%s", tool, args, out)
	return out
}

// openIn opens an image of a real folder.
func openIn(t *testing.T, dir, name string, a ops.Access) ops.Layer {
	t.Helper()
	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	f, err := d.Open(name, a)
	require.NoError(t, err)
	l, err := Open(f, ops.OpenOptions{Write: a&ops.Write != 0, Ext: filepath.Ext(name), Cache: ops.NewCache(1 << 20)})
	require.NoError(t, err)
	return l
}

func createIn(t *testing.T, dir, name string, s ops.CreateSpec) {
	t.Helper()
	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	f, err := d.Create(name, 0o644)
	require.NoError(t, err)
	s.Now = now
	require.NoError(t, create(f, s))
	require.NoError(t, f.Close())
}

// scribble changes a disk and its model by n random writes and zeroes.
func scribble(t *testing.T, w ops.Writer, disk []byte, rng *rand.Rand, n int) {
	t.Helper()
	for range n {
		off := rng.Int64N(int64(len(disk))/512) * 512
		k := min(512*(1+rng.Int64N(300)), int64(len(disk))-off)
		if rng.IntN(4) == 0 {
			require.NoError(t, w.Zero(off, k, rng.IntN(2) == 0))
			clear(disk[off : off+k])
			continue
		}
		p := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(k))
		_, err := w.WriteAt(p, off)
		require.NoError(t, err)
		copy(disk[off:], p)
	}
}

// requireSame asks QEMU whether d.vhd is what the file raw is, size included.
func requireSame(t *testing.T, dir string) {
	t.Helper()
	require.Equal(t, "Images are identical.\n", string(run(t, dir, "qemu-img", "compare", "-f", "vpc", "-F", "raw", "d.vhd", "raw")))
}

// QEMU finds nothing wrong with what was written here, and reads the same.
func TestQEMUReadsWhatIsWritten(t *testing.T) {
	for _, s := range []ops.CreateSpec{
		{Type: ops.Fixed, Size: 5 << 20},
		{Type: ops.Dynamic, Size: 21<<20 + 512},
		{Type: ops.Dynamic, Size: 21<<20 + 512, BlockSize: 512 << 10},
	} {
		t.Run(fmt.Sprintf("%s %d", s.Type, s.BlockSize), func(t *testing.T) {
			dir := t.TempDir()
			createIn(t, dir, "d.vhd", s)
			model := make([]byte, s.Size)
			rng := rand.New(rand.NewPCG(1, uint64(s.BlockSize)))
			for range 3 {
				w := openIn(t, dir, "d.vhd", ops.Write).(ops.Writer)
				scribble(t, w, model, rng, 12)
				require.NoError(t, w.Close())
				require.NoError(t, os.WriteFile(filepath.Join(dir, "raw"), model, 0o600))
				requireSame(t, dir)
			}
		})
	}
}

// Disks that QEMU made read the same here.
func TestReadsWhatQEMUMakes(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 0))
	for _, size := range []int64{104448, 3 << 20, 4<<20 + 512, 9<<20 - 512} {
		for _, format := range []string{"fixed", "dynamic"} {
			t.Run(fmt.Sprintf("%s %d", format, size), func(t *testing.T) {
				dir := t.TempDir()
				model := make([]byte, size)
				for range 5 {
					off := rng.Int64N(size)
					copy(model[off:], bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, rng.IntN(9000)))
				}
				require.NoError(t, os.WriteFile(filepath.Join(dir, "raw"), model, 0o600))
				run(t, dir, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on,subformat="+format, "raw", "d.vhd")
				l := openIn(t, dir, "d.vhd", ops.Read)
				require.Equal(t, size, l.Size())
				require.Equal(t, format, l.Info().Type.String())
				got, err := readLayer(l, 0, size, 0)
				require.NoError(t, err)
				require.Equal(t, model, got)
				require.NoError(t, l.Close())
			})
		}
	}
}

// QEMU and this package go on writing each other's file, ten times.
func TestHandOversWithQEMU(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, "qemu-img", "create", "-f", "vpc", "-o", "force_size=on", "d.vhd", "64M")
	model := make([]byte, 64<<20)
	rng := rand.New(rand.NewPCG(3, 0))
	for range 10 {
		w := openIn(t, dir, "d.vhd", ops.Write).(ops.Writer)
		scribble(t, w, model, rng, 4)
		require.NoError(t, w.Close())
		for range 3 {
			off, n, b := rng.Int64N(63<<11)*512, 512*(1+rng.Int64N(500)), byte(1+rng.IntN(255))
			run(t, dir, "qemu-io", "-f", "vpc", "-c", fmt.Sprintf("write -P %d %d %d", b, off, n), "d.vhd")
			copy(model[off:off+n], bytes.Repeat([]byte{b}, int(n)))
		}
		l := openIn(t, dir, "d.vhd", ops.Read)
		require.Empty(t, l.Info().Anomalies)
		require.Empty(t, findings(t, l))
		got, err := readLayer(l, 0, int64(len(model)), 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(model, got))
		require.NoError(t, l.Close())
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "raw"), model, 0o600))
	requireSame(t, dir)
}

// 7-Zip reads a differencing disk that was made and written here through its
// parent. (QEMU cannot: it takes it for a dynamic one.)
func TestSevenZipReadsDifferencing(t *testing.T) {
	dir := t.TempDir()
	base := fixture.VHD{Size: 9 << 20, Writes: someWrites()}
	require.NoError(t, base.WriteFile(filepath.Join(dir, "p.vhd")))
	st, err := os.Stat(filepath.Join(dir, "p.vhd"))
	require.NoError(t, err)
	createIn(t, dir, "c.vhd", ops.CreateSpec{Type: ops.Differencing, Size: base.Size, Parent: &ops.CreateParent{
		LinkID: ops.GUID(fixture.VHDUUID), Timestamp: st.ModTime(), Relative: "./p.vhd", Absolute: filepath.Join(dir, "p.vhd"),
	}})
	disk := model(base, 0)
	w := openIn(t, dir, "c.vhd", ops.Write).(ops.Writer)
	scribble(t, w, disk, rand.New(rand.NewPCG(4, 0)), 12)
	require.NoError(t, w.Close())
	cmd := exec.Command(need.Tool(t, "7z"), "e", "-so", "-tvhd", "c.vhd")
	cmd.Dir = dir
	out, err := cmd.Output()
	require.NoError(t, err)
	require.True(t, bytes.Equal(disk, out))
}
