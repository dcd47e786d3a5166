package view

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// layer is a fake with extents by offset.
type layer struct {
	ops.Layer
	size    int64
	info    ops.Info
	extents []ops.Extent // tile the disk
	calls   int
}

func (l *layer) Size() int64    { return l.size }
func (l *layer) Info() ops.Info { return l.info }
func (l *layer) Extent(off, max int64) (ops.Extent, error) {
	l.calls++
	for _, e := range l.extents {
		if off < e.Len {
			n := min(e.Len-off, max)
			if e.Kind == ops.Data {
				e.Pos += off
			}
			return ops.Extent{Len: n, Kind: e.Kind, Pos: e.Pos}, nil
		}
		off -= e.Len
	}
	return ops.Extent{}, io.EOF
}

func TestFragmentation(t *testing.T) {
	const block = 2 << 20
	data := func(pos int64) ops.Extent { return ops.Extent{Len: block, Kind: ops.Data, Pos: pos} }
	hole := ops.Extent{Len: block, Kind: ops.Absent, Pos: -1}
	zero, quarter, all := uint32(0), uint32(25), uint32(75)
	for _, tt := range []struct {
		name    string
		info    ops.Info
		extents []ops.Extent
		want    *uint32
	}{
		{"fixed", ops.Info{Type: ops.Fixed}, []ops.Extent{data(0)}, &zero},
		{"differencing", ops.Info{Type: ops.Differencing, BlockSize: block}, []ops.Extent{data(0)}, nil},
		{"iso", ops.Info{}, []ops.Extent{data(0)}, nil},
		{"empty", ops.Info{Type: ops.Dynamic, BlockSize: block}, []ops.Extent{hole, hole}, &zero},
		{"in order", ops.Info{Type: ops.Dynamic, BlockSize: block}, []ops.Extent{data(4 << 20), data(6 << 20), hole, data(8 << 20)}, &zero},
		{"bitmap between", ops.Info{Type: ops.Dynamic, BlockSize: block}, []ops.Extent{data(4 << 20), data(7 << 20), data(9<<20 + 512)}, &zero},
		{"one of four apart", ops.Info{Type: ops.Dynamic, BlockSize: block}, []ops.Extent{data(4 << 20), data(6 << 20), data(8 << 20), data(20 << 20)}, &quarter},
		{"backwards", ops.Info{Type: ops.Dynamic, BlockSize: block}, []ops.Extent{data(10 << 20), data(8 << 20), data(6 << 20), data(4 << 20)}, &all},
		{"part of a block", ops.Info{Type: ops.Dynamic, BlockSize: block},
			[]ops.Extent{{Len: 4096, Kind: ops.Zero, Pos: -1}, {Len: block - 4096, Kind: ops.Data, Pos: 4<<20 + 4096}, data(6 << 20)}, &zero},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &layer{info: tt.info, extents: tt.extents}
			for _, e := range tt.extents {
				l.size += e.Len
			}
			got, err := Fragmentation(l)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestFragmentationLeavesBigTablesAlone(t *testing.T) {
	l := &layer{size: 1<<40 + 1<<20, info: ops.Info{Type: ops.Dynamic, BlockSize: 1 << 20}}
	got, err := Fragmentation(l)
	require.NoError(t, err)
	require.Nil(t, got)
	require.Zero(t, l.calls)
}

// disk is a fake of an open chain.
type disk struct {
	runs []ops.ChainExtent
	err  error
}

func (d *disk) Layers() []ops.Ref { return []ops.Ref{ref("leaf.vhdx"), ref("base.vhdx")} }
func (d *disk) Size() int64 {
	n := int64(0)
	for _, r := range d.runs {
		n += r.Len
	}
	return n
}
func (d *disk) Extent(off, _ int64) (ops.ChainExtent, error) {
	if off > 0 && d.err != nil {
		return ops.ChainExtent{}, d.err
	}
	for _, r := range d.runs {
		if off == 0 {
			return r, nil
		}
		off -= r.Len
	}
	return ops.ChainExtent{}, io.EOF
}

func run(n int64, k ops.Kind, pos int64, depth int) ops.ChainExtent {
	return ops.ChainExtent{Extent: ops.Extent{Len: n, Kind: k, Pos: pos}, Depth: depth}
}

func hole(n int64) ops.ChainExtent {
	return ops.ChainExtent{Extent: ops.Extent{Len: n, Kind: ops.Zero, Pos: -1}, Depth: 1, Hole: true}
}

func TestMapJoinsWhatContinues(t *testing.T) {
	d := &disk{runs: []ops.ChainExtent{
		run(100, ops.Data, 1000, 0), run(50, ops.Data, 1100, 0), // joined
		run(50, ops.Data, 5000, 0),                         // elsewhere in the file
		run(50, ops.Data, 5050, 1),                         // another file
		run(10, ops.Zero, -1, 0), run(20, ops.Zero, -1, 0), // joined
		run(10, ops.Zero, -1, 1),
		hole(30), hole(40),
	}}
	var b bytes.Buffer
	require.NoError(t, WriteMap(&b, d))
	require.Equal(t, `{
  "Path": "/vms/leaf.vhdx",
  "Size": 360,
  "Runs": [
    {"Offset":0,"Length":150,"Kind":"data","File":"/vms/leaf.vhdx","At":1000},
    {"Offset":150,"Length":50,"Kind":"data","File":"/vms/leaf.vhdx","At":5000},
    {"Offset":200,"Length":50,"Kind":"data","File":"/vms/base.vhdx","At":5050},
    {"Offset":250,"Length":30,"Kind":"zero","File":"/vms/leaf.vhdx"},
    {"Offset":280,"Length":10,"Kind":"zero","File":"/vms/base.vhdx"},
    {"Offset":290,"Length":70,"Kind":"hole"}
  ]
}
`, b.String())
}

func TestMapFailsRatherThanEndsEarly(t *testing.T) {
	broken := errors.New("broken")
	d := &disk{runs: []ops.ChainExtent{run(100, ops.Data, 0, 0), run(100, ops.Data, 500, 0)}, err: broken}
	require.ErrorIs(t, WriteMap(io.Discard, d), broken)
}

func TestMapOfAnEmptyDisk(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, WriteMap(&b, &disk{}))
	require.JSONEq(t, `{"Path":"/vms/leaf.vhdx","Size":0,"Runs":[]}`, b.String())
}
