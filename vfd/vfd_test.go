package vfd_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/need"
	"vhdfs/test/sim"
	"vhdfs/vfd"
)

func openBytes(t *testing.T, b []byte) (ops.Layer, error) {
	t.Helper()
	h := sim.New()
	h.Put("/d/f.vfd", b)
	f, err := h.Dir("/d").Open("f.vfd", ops.Read)
	require.NoError(t, err)
	h.Freeze()
	l, err := vfd.Format.Open(f, ops.OpenOptions{Ext: ".vfd"})
	require.Zero(t, h.Refused())
	if err != nil {
		require.ErrorIs(t, f.Close(), fs.ErrClosed, "a failed open closes the file")
	}
	return l, err
}

func TestSizes(t *testing.T) {
	for _, tt := range []struct {
		size int64
		want string // anomaly
		err  string
	}{
		{163840, "", ""},
		{184320, "", ""},
		{327680, "", ""},
		{368640, "", ""},
		{737280, "", ""},
		{1228800, "", ""},
		{1474560, "", ""},
		{1720320, "", ""},
		{2949120, "", ""},
		{512, "vfd.size: 512 bytes is the size of no floppy drive", ""},
		{1474560 + 512, "vfd.size: 1475072 bytes is the size of no floppy drive", ""},
		{0, "", "vfd: file of 0 bytes: want a multiple of 512 from 512 to 2949120"},
		{1, "", "file of 1 bytes"},
		{511, "", "file of 511 bytes"},
		{1474560 - 1, "", "file of 1474559 bytes"},
		{2949120 + 512, "", "file of 2949632 bytes"},
	} {
		t.Run(fmt.Sprint(tt.size), func(t *testing.T) {
			l, err := openBytes(t, make([]byte, tt.size))
			if tt.err != "" {
				require.ErrorIs(t, err, ops.ErrCorrupt)
				require.Equal(t, ops.StatusFileSizeInvalid, ops.StatusOf(err))
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.size, l.Size())
			info := l.Info()
			require.Equal(t, tt.want, anomaly(info))
			info.Anomalies = nil
			require.Equal(t, ops.Info{LogicalSector: 512, PhysicalSector: 512}, info)
			require.NoError(t, l.Close())
		})
	}
}

// anomaly is the first of info as "name: text".
func anomaly(info ops.Info) string {
	if len(info.Anomalies) == 0 {
		return ""
	}
	return info.Anomalies[0].Name + ": " + info.Anomalies[0].Text
}

// fat is a formatted 1.44 MB floppy, its boot sector changed by change.
func fat(change func(b []byte)) []byte {
	b := make([]byte, 1474560)
	copy(b, "\xeb\x3c\x90MSDOS5.0")
	le := binary.LittleEndian
	le.PutUint16(b[11:], 512)
	b[13] = 1
	le.PutUint16(b[14:], 1)
	b[16] = 2
	le.PutUint16(b[17:], 224)
	le.PutUint16(b[19:], 2880)
	b[21] = 0xf0
	le.PutUint16(b[22:], 9)
	le.PutUint16(b[24:], 18)
	le.PutUint16(b[26:], 2)
	b[38] = 0x29
	copy(b[43:], "BACKUP 1   FAT12   ")
	change(b)
	return b
}

func TestBPB(t *testing.T) {
	put16 := func(off int, v uint16) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[off:], v) }
	}
	for _, tt := range []struct {
		name    string
		change  func(b []byte)
		label   string
		anomaly string
	}{
		{"whole", func([]byte) {}, "BACKUP 1", ""},
		{"near jump", func(b []byte) { b[0] = 0xe9 }, "BACKUP 1", ""},
		{"sectors in 32 bits", func(b []byte) { put16(19, 0)(b); put16(32, 2880)(b) }, "BACKUP 1", ""},
		{"no label", func(b []byte) { copy(b[43:], "NO NAME    ") }, "", ""},
		{"label that is no UTF-8", func(b []byte) { b[43] = 0x8e }, "\ufffdACKUP 1", ""},
		{"no extended block", func(b []byte) { b[38] = 0 }, "", ""},
		{"no jump", func(b []byte) { b[0] = 0 }, "", ""},
		{"sectors of 0 bytes", put16(11, 0), "", ""},
		{"sectors of 500 bytes", put16(11, 500), "", ""},
		{"sectors of 8192 bytes", put16(11, 8192), "", ""},
		{"clusters of 0 sectors", func(b []byte) { b[13] = 0 }, "", ""},
		{"clusters of 3 sectors", func(b []byte) { b[13] = 3 }, "", ""},
		{"no reserved sector", put16(14, 0), "", ""},
		{"no FAT", func(b []byte) { b[16] = 0 }, "", ""},
		{"three FATs", func(b []byte) { b[16] = 3 }, "", ""},
		{"another size", put16(19, 1440), "BACKUP 1", "vfd.bpb.size: 1440 sectors of 512 bytes, the disk has 1474560 bytes"},
		{"no sides", put16(26, 0), "BACKUP 1", "vfd.bpb.geometry: 2880 sectors are not whole tracks of 18 sectors on 0 sides"},
		{"tracks of 17", put16(24, 17), "BACKUP 1", "vfd.bpb.geometry: 2880 sectors are not whole tracks of 17 sectors on 2 sides"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := openBytes(t, fat(tt.change))
			require.NoError(t, err)
			require.Equal(t, tt.label, l.Info().Label)
			require.Equal(t, tt.anomaly, anomaly(l.Info()))
		})
	}
}

func TestMkfs(t *testing.T) {
	tool := need.Tool(t, "mkfs.vfat")
	path := filepath.Join(t.TempDir(), "f.vfd")
	out, err := exec.Command(tool, "-C", "-n", "MY FLOPPY", path, "1440").CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	l, err := openBytes(t, b)
	require.NoError(t, err)
	require.Equal(t, "MY FLOPPY", l.Info().Label)
	require.Empty(t, l.Info().Anomalies)
}

func TestSamples(t *testing.T) {
	for _, name := range []string{
		"openpreserve_format-corpus/hello-world-untitled-volume.img",
		"openpreserve_format-corpus/blank-untitled-volume.img",
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(need.Corpus(t, name))
			require.NoError(t, err)
			want := conformance.NewDisk(int64(len(b)))
			want.Write(0, b)
			conformance.Layer(t, func(t *testing.T) ops.Layer {
				l, err := openBytes(t, b)
				require.NoError(t, err)
				require.Empty(t, l.Info().Anomalies)
				require.Empty(t, l.Info().Label) // HFS, whatever its source says
				return l
			}, want)
		})
	}
}

func TestCreate(t *testing.T) {
	for _, tt := range []struct {
		spec ops.CreateSpec
		want int64
		err  string
	}{
		{ops.CreateSpec{}, 1474560, ""},
		{ops.CreateSpec{Size: 720 << 10}, 737280, ""},
		{ops.CreateSpec{Size: 1200 << 10}, 1228800, ""},
		{ops.CreateSpec{Size: 1440 << 10, LogicalSector: 512}, 1474560, ""},
		{ops.CreateSpec{Size: 2880 << 10}, 2949120, ""},
		{ops.CreateSpec{Size: 360 << 10}, 0, "vfd: size 368640: want 720K, 1200K, 1440K or 2880K"},
		{ops.CreateSpec{Size: 1440<<10 + 1}, 0, "size 1474561"},
		{ops.CreateSpec{Size: -1}, 0, "size -1"},
		{ops.CreateSpec{Type: ops.Fixed}, 0, "a floppy has no type"},
		{ops.CreateSpec{BlockSize: 2 << 20}, 0, "blocks"},
		{ops.CreateSpec{LogicalSector: 4096}, 0, "sectors other than 512"},
		{ops.CreateSpec{Parent: &ops.CreateParent{}}, 0, "parent"},
	} {
		t.Run(fmt.Sprint(tt.spec), func(t *testing.T) {
			h := sim.New()
			f, err := h.Dir("/d").Create("f.vfd", 0o600)
			require.NoError(t, err)
			h.Record()
			err = vfd.Format.Create(f, tt.spec)
			if tt.err != "" {
				require.ErrorIs(t, err, ops.ErrUsage)
				require.ErrorContains(t, err, tt.err)
				require.Empty(t, h.Events())
				return
			}
			require.NoError(t, err)
			events := h.Events()
			require.Equal(t, sim.OpSync, events[len(events)-1].Op)
			b, err := h.ReadFile("/d/f.vfd")
			require.NoError(t, err)
			require.Equal(t, make([]byte, tt.want), b)
			l, err := openBytes(t, b)
			require.NoError(t, err)
			require.Empty(t, l.Info().Anomalies)
		})
	}
}

func TestCreateErrors(t *testing.T) {
	for _, op := range []sim.Op{sim.OpTruncate, sim.OpSync} {
		h := sim.New()
		f, err := h.Dir("/d").Create("f.vfd", 0o600)
		require.NoError(t, err)
		h.SetFault(func(c sim.Call) error {
			if c.Op == op {
				return syscall.ENOSPC
			}
			return nil
		})
		require.ErrorIs(t, vfd.Format.Create(f, ops.CreateSpec{}), syscall.ENOSPC, "%v", op)
	}
}

func TestProbe(t *testing.T) {
	for ext, want := range map[string]bool{".vfd": true, ".vhd": false, ".iso": false, "": false} {
		got, err := vfd.Format.Probe(nil, ext)
		require.NoError(t, err)
		require.Equal(t, want, got, ext)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, op := range []sim.Op{sim.OpStat, sim.OpRead} {
		h := sim.New()
		h.Put("/d/f.vfd", make([]byte, 1474560))
		f, err := h.Dir("/d").Open("f.vfd", ops.Read)
		require.NoError(t, err)
		h.SetFault(func(c sim.Call) error {
			if c.Op == op {
				return syscall.EIO
			}
			return nil
		})
		_, err = vfd.Format.Open(f, ops.OpenOptions{Ext: ".vfd"})
		require.ErrorIs(t, err, syscall.EIO)
		require.True(t, errors.Is(f.Close(), fs.ErrClosed))
	}
}
