package view

import (
	"errors"

	"vhdfs/ops"
)

// maxScannedBlocks bounds the block table that is read to tell how fragmented an
// image is: 8 MiB of VHDX entries, which a state document can afford.
const maxScannedBlocks = 1 << 20

// maxBlockGap is what may lie between two blocks that follow each other: a
// sector bitmap block of a VHDX, or the bitmap of a VHD block with its padding.
const maxBlockGap = 1 << 20

// Blocks is an image without a parent as its block table has it.
type Blocks interface {
	Info() ops.Info
	Size() int64
	Extent(off, max int64) (ops.Extent, error)
}

// Fragmentation is the percentage of allocated blocks of an image that do not
// follow the block allocated before them in the virtual disk. Null for what is
// not dynamic with a table that is small enough to scan.
func Fragmentation(l Blocks) (*uint32, error) {
	info, zero := l.Info(), uint32(0)
	size, block := l.Size(), int64(info.BlockSize)
	switch {
	case info.Type == ops.Fixed:
		return &zero, nil
	case info.Type != ops.Dynamic || block == 0 || size/block > maxScannedBlocks:
		return nil, nil
	}
	var blocks, apart int64
	next := int64(-1) // where the block after the last one would start
	for off := int64(0); off < size; {
		end := min((off/block+1)*block, size)
		e, err := l.Extent(off, end-off)
		if err != nil {
			return nil, err
		}
		if e.Kind != ops.Data {
			off += e.Len
			continue
		}
		start := e.Pos - off%block
		if next >= 0 && (start < next || start > next+maxBlockGap) {
			apart++
		}
		blocks++
		next, off = start+block, end
	}
	if blocks == 0 {
		return &zero, nil
	}
	percent := uint32(apart * 100 / blocks)
	return &percent, nil
}

// opened is the map of an image that may be in use: what is open is seen through
// its writer.
type opened struct{ *ops.Handle }

func (o opened) Extent(off, max int64) (ops.Extent, error) {
	x, err := o.Handle.Extent(off, max)
	return x.Extent, err
}

// fragmentation is null where the table cannot be read, as [Source.minInternalSize]
// is.
func (s *Source) fragmentation(f *ops.Found) *uint32 {
	if t := f.Info.Type; t != ops.Dynamic && t != ops.Fixed {
		return nil
	}
	h, err := s.Library.Look(s.Image)
	if err != nil {
		return nil
	}
	percent, err := Fragmentation(opened{h})
	if errors.Join(err, h.Close()) != nil {
		return nil
	}
	return percent
}
