package peers

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/test/hostile/folder"
	"vhdfs/test/need"
)

// made is an image that qemu-img makes and qemu-io writes.
type made struct {
	name   string
	format string // of QEMU
	opts   string
	size   int64
	block  int64 // where data is put: around borders of this
	chunk  int64 // and of this, 0: none
}

func images() []made {
	list := []made{
		{"fixed.vhd", "vpc", "subformat=fixed,force_size=on", 10*mib + 512, 2 * mib, 0},
		{"fixed-chs.vhd", "vpc", "subformat=fixed", 10 * mib, 2 * mib, 0},
		{"dynamic.vhd", "vpc", "subformat=dynamic,force_size=on", 9*mib + 512, 2 * mib, 0},
		{"dynamic-chs.vhd", "vpc", "subformat=dynamic", 33 * mib, 2 * mib, 0},
		{"5g.vhd", "vpc", "subformat=dynamic,force_size=on", 5*gib + 3*mib + 512, 2 * mib, 4 * gib},
		{"2040g.vhd", "vpc", "subformat=dynamic,force_size=on", 2040 * gib, 2 * mib, 1024 * gib},
		{"fixed.vhdx", "vhdx", "subformat=fixed,block_size=1M", 10*mib + 512, mib, 0},
		{"fixed-8.vhdx", "vhdx", "subformat=fixed,block_size=8M", 20*mib - 512, 8 * mib, 0},
		{"log-2.vhdx", "vhdx", "subformat=dynamic,block_size=2M,log_size=2M", 10 * mib, 2 * mib, 0},
		{"zero-off.vhdx", "vhdx", "subformat=dynamic,block_size=1M,block_state_zero=off", 10 * mib, mib, 0},
		{"9g.vhdx", "vhdx", "subformat=dynamic,block_size=1M", 9*gib + 512, mib, 4 * gib},
		{"9g-2.vhdx", "vhdx", "subformat=dynamic,block_size=2M", 9*gib - 512, 2 * mib, 4 * gib},
		{"9g-32.vhdx", "vhdx", "subformat=dynamic,block_size=32M", 9*gib + 33*mib, 32 * mib, 4 * gib},
		{"9g-256.vhdx", "vhdx", "subformat=dynamic,block_size=256M", 9*gib + 512, 256 * mib, 4 * gib},
		{"20t.vhdx", "vhdx", "subformat=dynamic,block_size=32M", 20 << 40, 32 * mib, 8 << 40},
	}
	for _, b := range []int64{1, 2, 4, 8, 16, 64, 128} {
		list = append(list, made{
			fmt.Sprintf("block-%d.vhdx", b), "vhdx", fmt.Sprintf("subformat=dynamic,block_size=%dM", b), 3*b*mib + 512, b * mib, 0,
		})
	}
	return list
}

// make creates the image and writes around its borders; size may be rounded.
// Places are what was written where.
func (m made) make(t *testing.T, dir string) (path string, size int64, places [][2]int64) {
	t.Helper()
	qemuImg, qemuIO := need.Tool(t, "qemu-img"), need.Tool(t, "qemu-io")
	path = filepath.Join(dir, m.name)
	run(t, qemuImg, "create", "-q", "-f", m.format, "-o", m.opts, path, fmt.Sprint(m.size))
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	require.NoError(t, json.Unmarshal(run(t, qemuImg, "info", "-f", m.format, "--output=json", path), &info))
	args := []string{"-f", m.format, path}
	tag := 1
	write := func(off, n int64) {
		if off < 0 || off+n > info.VirtualSize {
			return
		}
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", tag, off, n))
		places = append(places, [2]int64{off, n})
		tag++
	}
	write(0, 512)
	write(m.block-512, 1024)
	write(m.block+512*3, 512)
	write(2*m.block-1536, 3072)
	for i := int64(1); m.chunk > 0 && i <= 2; i++ {
		write(i*m.chunk-512, 512)
		write(i*m.chunk, 1024)
		write(i*m.chunk+m.block-512, 1024)
	}
	write(info.VirtualSize-512, 512)
	run(t, qemuIO, args...)
	return path, info.VirtualSize, places
}

// Everything that QEMU makes reads as QEMU reads it.
func TestImagesOfQEMU(t *testing.T) {
	qemuImg := need.Tool(t, "qemu-img")
	for _, m := range images() {
		t.Run(m.name, func(t *testing.T) {
			folder.Watch(t)
			dir := t.TempDir()
			path, size, places := m.make(t, dir)
			folder.Untouched(t, dir)
			h := open(t, dir, m.name)
			require.Equal(t, size, h.Size())
			raw := filepath.Join(t.TempDir(), "raw")
			if size > 1<<40 || m.block > 16*mib { // QEMU reads allocated blocks whole, and raw files end at 16 TiB
				sameAsQEMU(t, h, m.format, path, places)
				return
			}
			run(t, qemuImg, "convert", "-f", m.format, "-O", "raw", "-S", "4k", path, raw)
			sameAsRaw(t, h, raw)
		})
	}
}
