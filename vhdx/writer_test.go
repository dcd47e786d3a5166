package vhdx

import (
	"testing"

	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/fixture"
)

func childSpec(s ops.CreateSpec) ops.CreateSpec {
	s.Type = ops.Differencing
	s.Parent = &ops.CreateParent{LinkID: ops.NewGUID(), DiskID: ops.NewGUID(), Relative: "./p.vhdx", Absolute: "/vms/p.vhdx"}
	return s
}

// Writers of every type against a byte model.
func TestWriterConformance(t *testing.T) {
	const size = 5*mib + 4096
	for _, tt := range []struct {
		name string
		spec ops.CreateSpec
	}{
		{"dynamic 32M", ops.CreateSpec{Type: ops.Dynamic, Size: size}},
		{"dynamic 1M", ops.CreateSpec{Type: ops.Dynamic, Size: size, BlockSize: 1 << 20}},
		{"fixed", ops.CreateSpec{Type: ops.Fixed, Size: size}},
		{"child 1M", childSpec(ops.CreateSpec{Size: size, BlockSize: 1 << 20})},
		{"child 2M 4K", childSpec(ops.CreateSpec{Size: size, LogicalSector: 4096})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := conformance.NewDisk(tt.spec.Size)
			conformance.Writer(t, Format, conformance.Created(Format, tt.spec), want)
		})
	}
}

// Images that others left: with a dirty log, kept space, a short last block.
func TestWriterConformanceOnStoredImages(t *testing.T) {
	for _, tt := range []struct {
		name  string
		image fixture.VHDX
	}{
		{"dirty log", fixture.VHDX{BlockSize: 1 << 20, Log: &fixture.Log{Tables: true, Garbage: true}}},
		{"dirty log of a child", fixture.VHDX{BlockSize: 1 << 20, Parent: parentLocator(), Log: &fixture.Log{Tables: true}}},
		{"blocks in any order", fixture.VHDX{BlockSize: 1 << 20, Parent: parentLocator(), Order: []int64{4, 2, 3}}},
		{"short last block", fixture.VHDX{Cut: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, want := tt.image, conformance.NewDisk(5*mib+512)
			v.Size = want.Size()
			for i, off := range []int64{512, 3*mib - 512, 4 * mib, v.Size - 512} {
				b := fill(512+i*512, byte(i+1))
				if off+int64(len(b)) > v.Size {
					b = b[:v.Size-off]
				}
				v.Writes = append(v.Writes, fixture.Write{Off: off, Data: b})
				want.Write(off, b)
			}
			v.States = map[int64]uint8{0: 6}
			if v.Parent == nil && v.Cut == 0 {
				v.States[3] = 3
				want.Zero(3*mib, mib)
			}
			if v.Cut != 0 {
				v.Cut = 4*mib + 2*2*mib + mib + 512
			}
			if v.Parent != nil {
				v.States = nil
			}
			conformance.Writer(t, Format, conformance.Stored(Format, v.Bytes()), want)
		})
	}
}
