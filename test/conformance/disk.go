package conformance

import "vhdfs/ops"

const sector = 512

// Disk is what a layer should hold, by sectors of 512 bytes: absent where
// nothing was said. It is the oracle of the suite. Not safe for concurrent use
// while it changes.
type Disk struct {
	size    int64
	sectors map[int64][]byte // nil: zeros; missing: absent
}

// NewDisk is a disk of size bytes with every sector absent.
func NewDisk(size int64) *Disk { return &Disk{size: size, sectors: map[int64][]byte{}} }

// Size is the virtual size in bytes.
func (d *Disk) Size() int64 { return d.size }

// Clone is an independent copy.
func (d *Disk) Clone() *Disk {
	c := NewDisk(d.size)
	for i, b := range d.sectors {
		c.sectors[i] = b // replaced, never changed
	}
	return c
}

// Write says that whole sectors hold data.
func (d *Disk) Write(off int64, data []byte) {
	for i := int64(0); i < int64(len(data)); i += sector {
		d.sectors[(off+i)/sector] = append([]byte(nil), data[i:i+sector]...)
	}
}

// Zero says that whole sectors are zeros, whatever a parent holds.
func (d *Disk) Zero(off, n int64) {
	for i := off / sector; i < (off+n)/sector; i++ {
		d.sectors[i] = nil
	}
}

// Absent tells whether the sector at off is the parent's.
func (d *Disk) Absent(off int64) bool {
	_, ok := d.sectors[off/sector]
	return !ok
}

// ReadAt gives the bytes of [off, off+len(p)), absent ones as fill.
func (d *Disk) ReadAt(p []byte, off int64, fill byte) {
	for len(p) > 0 {
		at := off % sector
		n := min(int64(len(p)), sector-at)
		b, ok := d.sectors[off/sector]
		switch {
		case b != nil:
			copy(p[:n], b[at:])
		case ok:
			clear(p[:n])
		default:
			for i := range p[:n] {
				p[i] = fill
			}
		}
		p, off = p[n:], off+n
	}
}

// edges are the offsets at which the expected content changes its kind, and a
// few between: where mistakes live.
func (d *Disk) edges(l ops.Layer) ([]int64, error) {
	list := []int64{0, d.size / 2, d.size}
	for off := int64(0); off < d.size && len(list) < 4096; {
		e, err := l.Extent(off, d.size-off)
		if err != nil {
			return nil, err
		}
		off += max(e.Len, 1)
		list = append(list, off)
	}
	for i := range d.sectors {
		_, before := d.sectors[i-1]
		_, after := d.sectors[i+1]
		if (!before || !after) && len(list) < 8192 {
			list = append(list, i*sector, (i+1)*sector)
		}
	}
	return list, nil
}
