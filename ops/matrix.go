package ops

// Which images an operation can ever apply to: the service's matrix of
// operations, formats and types. Images that cannot be opened have none of these
// operations. What a format says when asked agrees with it.

// canResize: a differencing VHD has the size of its parent. That no VHD can
// shrink is told when somebody asks for it.
func canResize(f *Found) bool {
	return hasBlocks(f) && (f.itself().Format.Number == FormatVHDX || f.itself().Info.Type != Differencing)
}

// canCompact: a fixed disk is checked, and stays as it is.
func canCompact(f *Found) bool { return hasBlocks(f) }

// hasBlocks tells a disk from a CD and a floppy.
func hasBlocks(f *Found) bool {
	if f.Err != nil {
		return false
	}
	n := f.itself().Format.Number
	return n == FormatVHD || n == FormatVHDX
}
