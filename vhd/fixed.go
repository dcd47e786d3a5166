package vhd

import (
	"slices"
	"sync/atomic"

	"vhdfs/ops"
)

// fixed is an open fixed image: the disk's bytes and then the footer, which no
// request can reach.
type fixed struct {
	file ops.File
	size atomic.Int64
	info atomic.Pointer[ops.Info]
}

func newFixed(f ops.File, c *choice) *fixed {
	d := &fixed{file: f}
	d.info.Store(c.fixedInfo())
	d.size.Store(int64(c.f.currentSize))
	return d
}

func (c *choice) fixedInfo() *ops.Info {
	info := c.info()
	info.Aligned = true
	return &info
}

func (d *fixed) Size() int64 { return d.size.Load() }

func (d *fixed) Info() ops.Info {
	info := *d.info.Load()
	info.Anomalies = slices.Clone(info.Anomalies)
	return info
}

func (d *fixed) Close() error { return d.file.Close() }

func (d *fixed) ReadRun(p []byte, off int64) (int, ops.Kind, error) {
	if err := checkStart(off, d.Size()); err != nil || len(p) == 0 {
		return 0, ops.Data, err
	}
	p = p[:min(int64(len(p)), d.Size()-off)]
	if err := readFull(d.file, p, off, "disk"); err != nil {
		return 0, ops.Data, err
	}
	return len(p), ops.Data, nil
}

func (d *fixed) Extent(off, max int64) (ops.Extent, error) {
	if err := checkStart(off, d.Size()); err != nil {
		return ops.Extent{}, err
	}
	if max <= 0 {
		return ops.Extent{}, ops.Errorf(ops.ErrUsage, 0, "vhd: extent of %d bytes", max)
	}
	return ops.Extent{Len: min(max, d.Size()-off), Kind: ops.Data, Pos: off}, nil
}

// Straight is 0: the disk begins with the file, and only the footer follows; see
// [ops.Straight].
func (d *fixed) Straight() (int64, error) { return 0, nil }
