// Package vhdx reads and writes VHDX images, [MS-VHDX] version 1.
//
//	0        file type identifier
//	64 KiB   header 1        the valid header with the higher
//	128 KiB  header 2        sequence number is the current one
//	192 KiB  region table 1  where BAT and metadata are
//	256 KiB  region table 2  a copy
//	1 MiB …  log, BAT, metadata, payload blocks, sector bitmap blocks:
//	         anywhere, in units of 1 MiB
//
// Everything but headers and payload changes through the log. A dirty log is
// replayed in memory when a file is opened, and into the file by the first write.
// Block table and sector bitmaps are read by pages of 4 KiB and never whole.
package vhdx

import (
	"errors"
	"io"

	"vhdfs/ops"
)

// Format is VHDX: .vhdx, and .avhdx for the disks of checkpoints.
var Format = &ops.Format{
	Name:       "vhdx",
	Number:     ops.FormatVHDX,
	Extensions: []string{".vhdx", ".avhdx"},
	Probe:      probe,
	Open:       openLayer,
	Create:     create,
}

func openLayer(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
	d, err := open(f, o)
	if err == nil && o.Write && d.readOnly != "" && !o.Repair {
		err = ops.Errorf(ops.ErrReadOnly, 0, "vhdx: %s", d.readOnly)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if o.Write {
		return &Writer{Disk: d, watch: watch{block: noBlock}}, nil
	}
	return d, nil
}

// probe tells by content. A file with the identifier is a VHDX unless a valid
// VHD footer ends it: a guest can write the identifier into the first sector of
// a fixed VHD. A name in .vhdx or .avhdx settles that, and makes a file with a
// damaged identifier a damaged VHDX when a header's signature is there.
func probe(f ops.File, ext string) (bool, error) {
	if ext == ".vfd" || ext == ".iso" {
		return false, nil // a guest may write there whatever it likes
	}
	named := ext == ".vhdx" || ext == ".avhdx"
	ours, err := hasBytes(f, 0, signature)
	if err != nil {
		return false, err
	}
	if !named {
		if !ours {
			return false, nil
		}
		vhd, err := hasFooter(f)
		return !vhd, err
	}
	for _, off := range headerOffset {
		if ours || err != nil {
			break
		}
		ours, err = hasBytes(f, off, "head")
	}
	return ours, err
}

func hasBytes(f ops.File, off int64, want string) (bool, error) {
	b := make([]byte, len(want))
	if _, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		return false, err
	}
	return string(b) == want, nil
}

// hasFooter tells whether the last 512 bytes are a VHD footer with a right
// checksum: the complement of the sum of its other bytes, big-endian at 64.
func hasFooter(f ops.File) (bool, error) {
	st, err := f.Stat()
	if err != nil || st.Size < 512 {
		return false, err
	}
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, st.Size-512); err != nil && err != io.EOF {
		return false, err
	}
	var sum, stored uint32
	for i, c := range b {
		if i >= 64 && i < 68 {
			stored = stored<<8 | uint32(c)
			continue
		}
		sum += uint32(c)
	}
	return string(b[:8]) == "conectix" && stored == ^sum, nil
}
