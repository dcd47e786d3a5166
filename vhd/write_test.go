package vhd

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/fixture"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func newParent() *ops.CreateParent {
	return &ops.CreateParent{LinkID: ops.GUID{7, 7}, Timestamp: now, Relative: "../base/p.vhd", Absolute: "/vm/base/p.vhd"}
}

func TestWriterConformance(t *testing.T) {
	for name, s := range map[string]ops.CreateSpec{
		"fixed":                {Type: ops.Fixed, Size: 8<<20 + 512},
		"dynamic":              {Type: ops.Dynamic, Size: 32<<20 + 512},
		"dynamic 512 KiB":      {Type: ops.Dynamic, Size: 32<<20 + 512, BlockSize: 512 << 10},
		"differencing":         {Type: ops.Differencing, Size: 32<<20 + 512, Parent: newParent()},
		"differencing 512 KiB": {Type: ops.Differencing, Size: 32<<20 + 512, BlockSize: 512 << 10, Parent: newParent()},
	} {
		t.Run(name, func(t *testing.T) {
			s.Now = now
			conformance.Writer(t, Format, conformance.Created(Format, s), conformance.NewDisk(s.Size))
		})
	}
	for name, v := range map[string]fixture.VHD{
		"unaligned":         {Size: 9<<20 + 512, Writes: someWrites(), Unaligned: true, Blocks: []int64{3, 0}},
		"clear bits":        {Size: 9<<20 + 512, Writes: someWrites(), ExactBitmap: true, BlockSize: 64 << 10},
		"no tail":           {Size: 9<<20 + 512, Writes: someWrites(), NoTail: true, BlockSize: 64 << 10},
		"no copy":           {Size: 9<<20 + 512, Writes: someWrites(), NoCopy: true, BlockSize: 64 << 10},
		"blktap":            {Size: 9<<20 + 512, Writes: someWrites(), Batmap: true, Creator: "tap\x00", BlockSize: 64 << 10},
		"differencing":      {Size: 9<<20 + 512, Writes: someWrites(), Type: 4, Parent: parent(), Gap: 1024, BlockSize: 64 << 10},
		"differencing tiny": {Size: 1<<20 + 512, Type: 4, Parent: parent(), BlockSize: 1024},
	} {
		t.Run(name, func(t *testing.T) {
			conformance.Writer(t, Format, conformance.Stored(Format, v.Bytes()), expected(v))
		})
	}
}

// The lengths that Windows gives to new images.
func TestCreateLayout(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    ops.CreateSpec
		len  int64
	}{
		{"fixed 10 MiB", ops.CreateSpec{Type: ops.Fixed, Size: 10 << 20}, 10_486_272},
		{"dynamic 4 MiB", ops.CreateSpec{Type: ops.Dynamic, Size: 4 << 20}, 8192},
		{"dynamic 10 GiB", ops.CreateSpec{Type: ops.Dynamic, Size: 10 << 30}, 4096 + 20480 + 4096},
		{"dynamic 127 GiB", ops.CreateSpec{Type: ops.Dynamic, Size: 127 << 30}, 266_240},
		{"dynamic 2040 GiB", ops.CreateSpec{Type: ops.Dynamic, Size: 2040 << 30}, 4096 + 4177920 + 4096},
		{"differencing 4 MiB", ops.CreateSpec{Type: ops.Differencing, Size: 4 << 20, Parent: newParent()}, 4096 + 2*4096 + 4096},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.Now = now
			tt.s.DiskID = ops.GUID{1, 2, 3}
			h := conformance.Created(Format, tt.s)(t)
			b, err := h.ReadFile("/vms/disk.vhd")
			require.NoError(t, err)
			require.Len(t, b, int(tt.len))
			l := mustOpen(t, b)
			info := l.Info()
			require.Equal(t, tt.s.Size, l.Size())
			require.Equal(t, tt.s.Type, info.Type)
			require.Equal(t, now, info.Timestamp)
			require.Equal(t, tt.s.DiskID, info.DiskID)
			require.True(t, info.Aligned)
			require.Empty(t, info.Anomalies)
			require.Equal(t, "win  10.0", info.Creator)
			if tt.s.Type != ops.Fixed {
				require.Equal(t, b[:512], b[len(b)-512:], "both footers are the same")
				require.Empty(t, findings(t, l))
			}
		})
	}
}

// T28: what strict readers insist on.
func TestTrapT28StrictReaders(t *testing.T) {
	h := conformance.Created(Format, ops.CreateSpec{Type: ops.Dynamic, Size: 5 << 20, Now: now})(t)
	b, err := h.ReadFile("/vms/disk.vhd")
	require.NoError(t, err)
	require.Equal(t, be64(512), b[16:24], "header at 512")
	require.Equal(t, be64(1536), b[512+16:512+24], "table at 1536")
	require.Equal(t, be32(3), b[512+28:512+32], "as many entries as blocks")
	require.Equal(t, be64(^uint64(0)), b[512+8:512+16])
	require.Equal(t, be32(2), b[8:12])
	require.Equal(t, "Wi2k", string(b[36:40]))
	require.Equal(t, make([]byte, 427), b[85:512], "reserved")
	require.NotEqual(t, make([]byte, 16), b[68:84], "id")
	for i := 1536; i < 2048; i++ {
		require.EqualValues(t, 0xff, b[i], "table and its padding")
	}
}

func TestCreateParent(t *testing.T) {
	h := conformance.Created(Format, ops.CreateSpec{Type: ops.Differencing, Size: 5 << 20, Parent: newParent(), Now: now})(t)
	b, err := h.ReadFile("/vms/disk.vhd")
	require.NoError(t, err)
	p := mustOpen(t, b).Info().Parent
	require.Equal(t, &ops.Parent{
		IDs: []ops.GUID{{7, 7}}, Timestamp: now,
		Paths: []ops.ParentPath{
			{Kind: ops.PathRelative, Path: `..\base\p.vhd`}, {Kind: ops.PathAbsolute, Path: `\vm\base\p.vhd`}, {Kind: ops.PathName, Path: "p.vhd"},
		},
	}, p)
}

func TestCreateRefuses(t *testing.T) {
	for _, tt := range []struct {
		s    ops.CreateSpec
		text string
	}{
		{ops.CreateSpec{Size: 1 << 20}, "type 0"},
		{ops.CreateSpec{Type: ops.Dynamic}, "size 0"},
		{ops.CreateSpec{Type: ops.Dynamic, Size: 1000}, "size 1000"},
		{ops.CreateSpec{Type: ops.Fixed, Size: 2040<<30 + 512}, "size 2190433321472"},
		{ops.CreateSpec{Type: ops.Fixed, Size: 1 << 20, BlockSize: 2 << 20}, "block size is 2097152"},
		{ops.CreateSpec{Type: ops.Dynamic, Size: 1 << 20, BlockSize: 1 << 20}, "block size 1048576"},
		{ops.CreateSpec{Type: ops.Dynamic, Size: 1 << 20, LogicalSector: 4096}, "sectors of 4096/0"},
		{ops.CreateSpec{Type: ops.Dynamic, Size: 1 << 20, PhysicalSector: 4096}, "sectors of 0/4096"},
		{ops.CreateSpec{Type: ops.Differencing, Size: 1 << 20}, "has a parent"},
		{ops.CreateSpec{Type: ops.Dynamic, Size: 1 << 20, Parent: newParent()}, "has a parent"},
		{ops.CreateSpec{Type: ops.Differencing, Size: 1 << 20, Parent: &ops.CreateParent{Relative: "./p"}}, "no id"},
		{ops.CreateSpec{Type: ops.Differencing, Size: 1 << 20, Parent: &ops.CreateParent{LinkID: ops.GUID{1}}}, "no path"},
	} {
		t.Run(tt.text, func(t *testing.T) {
			h := disk(nil)
			err := create(openFile(t, h, ops.Write), tt.s)
			require.ErrorIs(t, err, ops.ErrUsage)
			require.ErrorContains(t, err, tt.text)
		})
	}
}
