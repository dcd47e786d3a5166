package vhd

import (
	"errors"

	"vhdfs/ops"
)

// unsettable is what a VHD, of any type, does not store apart from the rest: it
// has no physical sector size, and its id is the one that children record.
type unsettable struct{}

var (
	_ ops.Settable = (*writer)(nil)
	_ ops.Settable = (*fixedWriter)(nil)
)

// SetPhysicalSector is refused; see [ops.Settable].
func (unsettable) SetPhysicalSector(bytes uint32) error {
	return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhd: physical sectors of %d bytes: a VHD stores no such size", bytes)
}

// SetDiskID is refused; see [ops.Settable].
func (unsettable) SetDiskID(id ops.GUID) error {
	return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhd: disk id %s: a VHD has one id, by which children know it", id)
}
