package vhdx

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/need"
	"vhdfs/test/sim"
)

func TestCreateRefuses(t *testing.T) {
	parent := &ops.CreateParent{LinkID: ops.NewGUID()}
	for _, tt := range []struct {
		name string
		spec ops.CreateSpec
		err  string
	}{
		{"no type", ops.CreateSpec{Size: mib}, "type 0"},
		{"size 0", ops.CreateSpec{Type: ops.Dynamic}, "virtual size 0"},
		{"negative size", ops.CreateSpec{Type: ops.Dynamic, Size: -512}, "virtual size 0"},
		{"half a sector", ops.CreateSpec{Type: ops.Dynamic, Size: mib + 256}, "virtual size 1048832"},
		{"size for sectors of 4 KiB", ops.CreateSpec{Type: ops.Dynamic, Size: mib + 512, LogicalSector: 4096}, "multiple of 4096"},
		{"over 64 TiB", ops.CreateSpec{Type: ops.Dynamic, Size: 64<<40 + 512}, "up to 64 TiB"},
		{"block of 3 MiB", ops.CreateSpec{Type: ops.Dynamic, Size: mib, BlockSize: 3 << 20}, "block size 3145728"},
		{"block of 512 KiB", ops.CreateSpec{Type: ops.Dynamic, Size: mib, BlockSize: 512 << 10}, "block size 524288"},
		{"sector of 1024", ops.CreateSpec{Type: ops.Dynamic, Size: mib, LogicalSector: 1024}, "logical sector size 1024"},
		{"child without parent", ops.CreateSpec{Type: ops.Differencing, Size: mib}, "has a parent"},
		{"parent without child", ops.CreateSpec{Type: ops.Dynamic, Size: mib, Parent: parent}, "no other has"},
		{"endless path", ops.CreateSpec{Type: ops.Differencing, Size: mib, Parent: &ops.CreateParent{Absolute: strings.Repeat("/a", 9000)}}, "path is too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := sim.New()
			f, err := h.Dir("/img").Create(testImage, 0o600)
			require.NoError(t, err)
			err = Format.Create(f, tt.spec)
			require.ErrorIs(t, err, ops.ErrUsage)
			require.ErrorContains(t, err, tt.err)
			require.NoError(t, f.Close())
			require.Empty(t, image(t, h))
		})
	}
}

// A new dynamic disk is laid out like Windows' own and has its size.
func TestCreateLayout(t *testing.T) {
	id := ops.NewGUID()
	h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 127 << 30, DiskID: id})
	require.Len(t, image(t, h), 4_194_304)
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	info := d.Info()
	require.Equal(t, ops.Dynamic, info.Type)
	require.Equal(t, uint32(32<<20), info.BlockSize)
	require.Equal(t, [2]uint32{512, 4096}, [2]uint32{info.LogicalSector, info.PhysicalSector})
	require.Equal(t, id, info.DiskID)
	require.Equal(t, "vhdfs", info.Creator)
	require.Empty(t, info.Anomalies)
	require.Equal(t, span{mib, 2 * mib}, d.headers.current.logSpan())
	require.Equal(t, span{2 * mib, 3 * mib}, d.regions.metadata)
	require.Equal(t, span{3 * mib, 4 * mib}, d.regions.bat)
	require.Equal(t, uint64(2), d.headers.current.seq)
	require.Empty(t, check(t, d))
	b := image(t, h)
	require.Equal(t, b[192*kib:256*kib], b[256*kib:320*kib])
	require.Equal(t, byte(1), b[192*kib+16+28], "BAT is required (T4)")
	require.Equal(t, byte(1), b[192*kib+48+28], "so is metadata")
}

func TestCreateChild(t *testing.T) {
	link, disk := ops.NewGUID(), ops.NewGUID()
	h := created(t, ops.CreateSpec{Type: ops.Differencing, Size: 127 << 30, Parent: &ops.CreateParent{
		LinkID: link, DiskID: disk, Relative: "../base/p.vhdx", Absolute: "/vms/base/p.vhdx",
	}})
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	info := d.Info()
	require.Equal(t, ops.Differencing, info.Type)
	require.Equal(t, uint32(2<<20), info.BlockSize)
	require.Equal(t, disk, info.DiskID)
	require.Equal(t, &ops.Parent{IDs: []ops.GUID{link}, Paths: []ops.ParentPath{
		{Kind: ops.PathRelative, Path: `..\base\p.vhdx`}, {Kind: ops.PathAbsolute, Path: `\vms\base\p.vhdx`},
	}}, info.Parent)
	require.Contains(t, string(image(t, h)), string(encodeUTF16("{"+link.String()+"}")))
}

func TestCreateFixed(t *testing.T) {
	h := created(t, ops.CreateSpec{Type: ops.Fixed, Size: 9*mib + 512})
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	x, err := d.Extent(0, d.Size())
	require.NoError(t, err)
	require.Equal(t, ops.Extent{Len: 9*mib + 512, Kind: ops.Data, Pos: 4 * mib}, x, "one piece, in order")
	require.Equal(t, int64(14*mib), d.fileSize)
	require.GreaterOrEqual(t, h.Used(), 10*mib, "with real space")
	require.Empty(t, check(t, d))
}

// The largest disks have room in the BAT for what they can become, and open.
func TestCreateLargest(t *testing.T) {
	for _, s := range []ops.CreateSpec{
		{Type: ops.Dynamic, Size: 64 << 40, BlockSize: 1 << 20},
		childSpec(ops.CreateSpec{Size: 64 << 40, BlockSize: 1 << 20}),
		{Type: ops.Dynamic, Size: 64 << 40, BlockSize: 256 << 20, LogicalSector: 4096},
	} {
		h := created(t, s)
		w := openWriter(t, h)
		write(t, w, 64<<40-4096, fill(4096, 7))
		d := closed(t, h, w)
		require.Equal(t, fill(4096, 7), read(t, d, 64<<40-4096, 4096))
		require.Equal(t, min(roundUp(d.geometry.entries*entryBytes*5/4, mib), max(513*mib, roundUp(d.geometry.entries*entryBytes, mib))), d.regions.bat.len())
	}
}

// onDisk writes an image of a host in memory to a real file.
func onDisk(t *testing.T, h *sim.Host) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.vhdx")
	require.NoError(t, os.WriteFile(path, image(t, h), 0o600))
	return path
}

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(need.Tool(t, "qemu-img"), args...).CombinedOutput()
	require.NoError(t, err, "qemu-img %s: %s", strings.Join(args, " "), out)
	return string(out)
}

// What we write QEMU reads, finds sound and writes on; what it writes we read and
// write again.
func TestHandOver(t *testing.T) {
	for _, tt := range []struct {
		name string
		host func(t *testing.T) *sim.Host
	}{
		{"dynamic", func(t *testing.T) *sim.Host {
			return created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 20*mib + 512, BlockSize: 1 << 20})
		}},
		{"dynamic 32M", func(t *testing.T) *sim.Host {
			return created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 20*mib + 512})
		}},
		{"fixed", func(t *testing.T) *sim.Host {
			return created(t, ops.CreateSpec{Type: ops.Fixed, Size: 20*mib + 512})
		}},
		{"dirty log replayed", func(t *testing.T) *sim.Host {
			h, _ := place(t, fixture.VHDX{Size: 20*mib + 512, BlockSize: 1 << 20, Log: &fixture.Log{Tables: true}, Writes: []fixture.Write{{Off: mib, Data: fill(4096, 0x44)}}})
			return h
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := tt.host(t)
			w := openWriter(t, h)
			model := make([]byte, w.Size())
			copy(model, read(t, w.Disk, 0, w.Size()))
			put := func(w *Writer, off, n int64, b byte) {
				write(t, w, off, fill(int(n), b))
				copy(model[off:], fill(int(n), b))
			}
			put(w, 512, 5*mib, 1)
			put(w, 20*mib, 512, 2)
			require.NoError(t, w.Zero(2*mib, 2*mib, true))
			clear(model[2*mib : 4*mib])
			require.NoError(t, w.Close())
			path := onDisk(t, h)
			qemuImg(t, "check", "-f", "vhdx", path)
			raw := filepath.Join(t.TempDir(), "raw")
			require.NoError(t, os.WriteFile(raw, model, 0o600))
			require.Contains(t, qemuImg(t, "compare", "-f", "raw", "-F", "vhdx", raw, path), "identical")

			out, err := exec.Command(need.Tool(t, "qemu-io"), "-f", "vhdx", "-c", "write -P 9 10M 2M", "-c", "write -P 8 2M 512", path).CombinedOutput()
			require.NoError(t, err, "%s", out)
			copy(model[10*mib:], fill(int(2*mib), 9))
			copy(model[2*mib:], fill(512, 8))
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			h.Put("/img/"+testImage, b)
			w = openWriter(t, h)
			require.Equal(t, model, read(t, w.Disk, 0, w.Size()))
			put(w, 15*mib, 4096, 7)
			require.NoError(t, w.Close())
			path = onDisk(t, h)
			require.NoError(t, os.WriteFile(raw, model, 0o600))
			require.Contains(t, qemuImg(t, "compare", "-f", "raw", "-F", "vhdx", raw, path), "identical")
		})
	}
}

// A log that we leave, QEMU replays: to what the last flush acknowledged.
func TestQEMUReplaysOurLog(t *testing.T) {
	for _, flushes := range []int{1, 2, 90} {
		h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 200 * mib, BlockSize: 1 << 20})
		w := openWriter(t, h)
		model := make([]byte, w.Size())
		broken := false
		failTables(h, w.regions.bat, &broken)
		for i := range int64(flushes) {
			broken = int(i) == flushes-1
			off := i*2*mib + 512
			write(t, w, off, fill(512, byte(i+1)))
			copy(model[off:], fill(512, byte(i+1)))
			require.NoError(t, w.Flush())
		}
		path := onDisk(t, h)
		raw := filepath.Join(t.TempDir(), "raw")
		require.NoError(t, os.WriteFile(raw, model, 0o600))
		require.Equal(t, ops.LogReplayed, openFile(t, path).Info().Log)
		qemuImg(t, "check", "-r", "all", "-f", "vhdx", path)
		require.Contains(t, qemuImg(t, "compare", "-f", "raw", "-F", "vhdx", raw, path), "identical")
	}
}

// QEMU sees of a new image what was asked for.
func TestQEMUSeesWhatWasCreated(t *testing.T) {
	path := onDisk(t, created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 3 << 30, BlockSize: 8 << 20}))
	var info struct {
		Size    int64  `json:"virtual-size"`
		Cluster int64  `json:"cluster-size"`
		Format  string `json:"format"`
	}
	require.NoError(t, json.Unmarshal([]byte(qemuImg(t, "info", "--output=json", path)), &info))
	require.Equal(t, int64(3<<30), info.Size)
	require.Equal(t, int64(8<<20), info.Cluster)
	require.Equal(t, "vhdx", info.Format)
}
