package main

import (
	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/vfd"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// formats are all that vhdfs reads, in the order in which they are asked. VHD
// comes first: a footer at the end of a file makes it a VHD whatever its first
// sector holds, unless the extension says VHDX. ISO and floppy images have no
// signature of their own container and come last.
var formats = []*ops.Format{vhd.Format, vhdx.Format, vhdx.SetFormat, iso.Format, vfd.Format}
