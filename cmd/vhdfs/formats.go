package main

import (
	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/vfd"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// formats are all that vhdfs reads, in the order in which they are asked. A
// floppy or ISO image is its guest's bytes from the first to the last, so that
// its name alone says what it is: asked first, or a guest could turn its floppy
// into a disk with a parent of its own choosing. VHD comes before VHDX: a footer
// at the end of a file makes it a VHD whatever its first sector holds, unless
// the extension says VHDX.
var formats = []*ops.Format{vfd.Format, iso.Format, vhd.Format, vhdx.Format, vhdx.SetFormat}
