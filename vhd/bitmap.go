package vhd

import "fmt"

// Sector bitmaps: the most significant bit of a byte is its first sector. (VHDX
// counts from the other end.)

func bitSet(m []byte, s int64) bool { return m[s/8]&(0x80>>(s%8)) != 0 }

// bitRun is the number of sectors from lo, below hi, with the bit of lo.
func bitRun(m []byte, lo, hi int64) (n int64, set bool) {
	set = bitSet(m, lo)
	whole := byte(0)
	if set {
		whole = 0xff
	}
	s := lo + 1
	for s < hi {
		if s%8 == 0 && s+8 <= hi && m[s/8] == whole {
			s += 8
			continue
		}
		if bitSet(m, s) != set {
			break
		}
		s++
	}
	return s - lo, set
}

// setBits sets the bits [lo, hi).
func setBits(m []byte, lo, hi int64) {
	for s := lo; s < hi; {
		if s%8 == 0 && s+8 <= hi {
			m[s/8] = 0xff
			s += 8
			continue
		}
		m[s/8] |= 0x80 >> (s % 8)
		s++
	}
}

// bitmapLocked is the sector bitmap of block b, whose BAT entry leads to at. It
// is shared: not to be changed.
func (d *Disk) bitmapLocked(b, at int64) ([]byte, error) {
	if m, ok := d.mu.wait.bits[b]; ok {
		return m, nil
	}
	if m, ok := d.mu.leave.bits[b]; ok {
		return m, nil
	}
	return d.maps.Get(b, func(p []byte) error {
		return readFull(d.file, p, at, fmt.Sprintf("bitmap of block %d", b))
	})
}
