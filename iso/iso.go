// Package iso reads images of optical discs: ISO 9660 with Joliet, UDF, and the
// bridges that hold both. The content of such a disk is the file itself; what is
// read here is only its volume descriptors.
//
//	sector 16…  2048 bytes each: CD001 descriptors (primary, Joliet, end), then
//	            BEA01, NSR02 or NSR03, TEA01 for UDF
//	UDF         anchor at block 256, N-1 or N-257 -> volume descriptors: label,
//	            partition; blocks of 2048 bytes, on other media 512, 1024, 4096
package iso

import (
	"fmt"

	"vhdfs/ops"
)

// Format is read-only: [ops.Format] Create and Set are nil.
var Format = &ops.Format{
	Name:       "iso",
	Number:     ops.FormatISO,
	Extensions: []string{".iso"},
	Probe:      probe,
	Open:       open,
}

const (
	sectorSize = 2048
	// minSize holds the system area and one volume descriptor; the service
	// refuses to attach less.
	minSize = 17 * sectorSize

	whyReadOnly = "ISO images are read-only"
)

// probe takes every file named .iso: one without a volume identifier is an ISO
// image that cannot be opened. Under the names of disks that a guest can write,
// what it writes must not turn them into an ISO.
func probe(f ops.File, ext string) (bool, error) {
	if ext != "" {
		return ext == ".iso", nil
	}
	size, err := fileSize(f)
	if err != nil {
		return false, err
	}
	v, err := readVolume(f, size)
	return err == nil && v.known(), err
}

func fileSize(f ops.File) (int64, error) {
	st, err := f.Stat()
	return st.Size, err
}

func open(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
	d, err := newDisk(f, o)
	if err != nil {
		return nil, closing(f, err)
	}
	return d, nil
}

// closing closes f, which an open that failed with err must not keep.
func closing(f ops.File, err error) error {
	if cerr := f.Close(); cerr != nil {
		return fmt.Errorf("%w; closing: %w", err, cerr)
	}
	return err
}

func newDisk(f ops.File, o ops.OpenOptions) (*Disk, error) {
	if o.Write {
		return nil, ops.Errorf(ops.ErrReadOnly, 0, "iso: %s", whyReadOnly)
	}
	size, err := fileSize(f)
	if err != nil {
		return nil, fmt.Errorf("iso: %w", err)
	}
	v, err := readVolume(f, size)
	if err != nil {
		return nil, err
	}
	if !v.known() {
		return nil, ops.Corruptf(ops.StatusFormatUnknown,
			"iso: sector 16: no volume identifier of ISO 9660 or UDF in a file of %d bytes", size)
	}
	return &Disk{Raw: ops.NewRaw(f, size), volume: v, anomalies: anomalies(v, size)}, nil
}

// Disk is an open image: a [ops.Layer], safe for concurrent use.
type Disk struct {
	*ops.Raw
	volume    volume
	anomalies []ops.Anomaly
}

var _ ops.Layer = (*Disk)(nil)

// Info is the same from open to close.
func (d *Disk) Info() ops.Info {
	return ops.Info{
		LogicalSector:  sectorSize,
		PhysicalSector: sectorSize,
		ReadOnly:       whyReadOnly,
		Creator:        d.volume.creator,
		Label:          d.volume.label(),
		Anomalies:      d.anomalies,
	}
}

// anomalies are the reasons for which the service refuses to attach an image.
// Its bytes are served all the same.
func anomalies(v volume, size int64) []ops.Anomaly {
	var list []ops.Anomaly
	add := func(name, where, format string, args ...any) {
		list = append(list, ops.Anomaly{Name: name, Severity: ops.Broken, Where: where, Text: fmt.Sprintf(format, args...)})
	}
	if v.end > size {
		add("iso.truncated", v.endWhere, "the volume has %d bytes, the file %d", v.end, size)
	}
	if size%sectorSize != 0 {
		add("iso.size", "file", "%d bytes are no multiple of %d", size, sectorSize)
	}
	if size < minSize {
		add("iso.small", "file", "%d bytes, the least is %d", size, minSize)
	}
	return list
}

// Straight is 0: the file is the disk; see [ops.Straight].
func (d *Disk) Straight() (int64, error) { return 0, nil }
