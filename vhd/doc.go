// Package vhd reads and writes VHD images ("conectix"): fixed, dynamic and
// differencing.
//
//	fixed     data [0, CurrentSize)                                     footer
//	dynamic   footer copy, dynamic header, BAT, locators, blocks ...    footer
//
// A block is a sector bitmap and then its data; its BAT entry is the sector
// number of the bitmap. Numbers are big-endian, sectors have 512 bytes, and in a
// bitmap the most significant bit of a byte is its first sector.
//
// The format has no journal. What survives a crash depends on the order of
// writes alone, so every function that changes a file reads as that order.
// docs/formats-vhd.md says what is chosen where readers of the format disagree.
package vhd
