package vhd

import (
	"errors"

	"vhdfs/ops"
)

// copyChunk is how much is read, compared or copied at a time, in bytes.
const copyChunk = ops.ZerosMax

// zeroStored writes zeros where the host holds data in [off, off+n): space
// stays allocated, and what is a hole or reserved reads as zeros already.
func zeroStored(f ops.File, off, n int64) error {
	return storedRuns(f, off, n, func(off, n int64) (bool, error) {
		return true, ops.WriteZeros(f, off, n)
	})
}

// punch makes [off, off+n) a hole of the host, or zeros where it has none.
func punch(f ops.File, off, n int64) error {
	err := f.Punch(off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		return zeroStored(f, off, n)
	}
	return err
}
