package vhd

import (
	"slices"

	"vhdfs/ops"
)

// fixed is an open fixed image: the disk's bytes and then the footer, which no
// request can reach.
type fixed struct {
	file ops.File
	size int64
	info ops.Info
}

func newFixed(f ops.File, c *choice) *fixed {
	info := c.info()
	info.Aligned = true
	return &fixed{file: f, size: int64(c.f.currentSize), info: info}
}

func (d *fixed) Size() int64 { return d.size }

func (d *fixed) Info() ops.Info {
	info := d.info
	info.Anomalies = slices.Clone(info.Anomalies)
	return info
}

func (d *fixed) Close() error { return d.file.Close() }

func (d *fixed) ReadRun(p []byte, off int64) (int, ops.Kind, error) {
	if err := checkStart(off, d.size); err != nil || len(p) == 0 {
		return 0, ops.Data, err
	}
	p = p[:min(int64(len(p)), d.size-off)]
	if err := readFull(d.file, p, off, "disk"); err != nil {
		return 0, ops.Data, err
	}
	return len(p), ops.Data, nil
}

func (d *fixed) Extent(off, max int64) (ops.Extent, error) {
	if err := checkStart(off, d.size); err != nil {
		return ops.Extent{}, err
	}
	if max <= 0 {
		return ops.Extent{}, ops.Errorf(ops.ErrUsage, 0, "vhd: extent of %d bytes", max)
	}
	return ops.Extent{Len: min(max, d.size-off), Kind: ops.Data, Pos: off}, nil
}
