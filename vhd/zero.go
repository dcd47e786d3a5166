package vhd

import (
	"errors"
	"io"

	"vhdfs/ops"
)

// copyChunk is how much is read, compared or copied at a time, in bytes.
const copyChunk = ops.ZerosMax

// zeroStored writes zeros where the host holds data in [off, off+n): space
// stays allocated, and what is a hole or reserved reads as zeros already.
func zeroStored(f ops.File, off, n int64) error {
	for end := off + n; off < end; {
		data, hole, err := f.NextData(off)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errors.ErrUnsupported):
			data, hole = off, end
		case err != nil:
			return err
		}
		if data >= end {
			return nil
		}
		hole = min(hole, end)
		if err := ops.WriteZeros(f, data, hole-data); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

// punch makes [off, off+n) a hole of the host, or zeros where it has none.
func punch(f ops.File, off, n int64) error {
	err := f.Punch(off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		return zeroStored(f, off, n)
	}
	return err
}
