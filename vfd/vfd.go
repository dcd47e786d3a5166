// Package vfd reads, writes and makes virtual floppy disks. The file is the disk,
// sector by sector, without header or footer: there is nothing to recognise it
// by but its name, and nothing to lose but its bytes.
package vfd

import (
	"fmt"

	"vhdfs/ops"
)

// Format of virtual floppy disks. [ops.Format] Set is nil.
var Format = &ops.Format{
	Name:       "vfd",
	Number:     ops.FormatVFD,
	Extensions: []string{".vfd"},
	Probe:      probe,
	Open:       open,
	Create:     create,
}

// probe takes every file named .vfd, whatever a guest wrote into it.
func probe(_ ops.File, ext string) (bool, error) { return ext == ".vfd", nil }

// open fails with [ops.ErrCorrupt] when the size is none of a floppy.
func open(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
	d, err := newDisk(f)
	if err != nil {
		if cerr := f.Close(); cerr != nil {
			return nil, fmt.Errorf("%w; closing: %w", err, cerr)
		}
		return nil, err
	}
	if o.Write {
		return &Writer{Disk: d}, nil
	}
	return d, nil
}

func newDisk(f ops.File) (*Disk, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("vfd: %w", err)
	}
	if st.Size < sectorSize || st.Size > maxSize || st.Size%sectorSize != 0 {
		return nil, ops.Corruptf(ops.StatusFileSizeInvalid,
			"vfd: file of %d bytes: want a multiple of %d from %d to %d", st.Size, sectorSize, sectorSize, maxSize)
	}
	d := &Disk{Raw: ops.NewRaw(f, st.Size), file: f}
	boot := make([]byte, sectorSize)
	if n, err := f.ReadAt(boot, 0); n < len(boot) {
		return nil, fmt.Errorf("vfd: boot sector: %w", err)
	}
	d.bpb, d.formatted = decodeBPB(boot)
	return d, nil
}

// create makes a floppy of s.Size bytes, one of those that a drive knows; 0
// means 1.44 MB. It is empty and unformatted: all zeros.
func create(f ops.File, s ops.CreateSpec) error {
	size := s.Size
	if size == 0 {
		size = defaultSize
	}
	if !creatable(size) {
		return ops.Errorf(ops.ErrUsage, ops.StatusSizeInvalid, "vfd: size %d: want 720K, 1200K, 1440K or 2880K", s.Size)
	}
	if s.Type != 0 || s.BlockSize != 0 || s.Parent != nil || s.LogicalSector != 0 && s.LogicalSector != sectorSize {
		return ops.Errorf(ops.ErrUsage, 0, "vfd: a floppy has no type, blocks, parent or sectors other than %d bytes", sectorSize)
	}
	if err := f.Truncate(size, "vfd.create"); err != nil {
		return fmt.Errorf("vfd: %w", err)
	}
	if err := f.Sync("vfd.create"); err != nil {
		return fmt.Errorf("vfd: %w", err)
	}
	return nil
}
