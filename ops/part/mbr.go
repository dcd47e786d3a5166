package part

import (
	"fmt"

	"vhdfs/ops"
)

const (
	bootSize    = 512 // the MBR and every link sector, whatever the sector size
	slotsOff    = 446
	slotSize    = 16
	mbrSlots    = 4
	signOff     = 440
	firstLogic  = 5
	typeProtect = 0xee
	// maxLinks bounds the chain of an extended partition. Windows and Linux
	// stop earlier; every link costs a read.
	maxLinks = 128
)

// slot is one entry of an MBR or link sector; numbers are sectors.
type slot struct {
	status, kind byte
	start, count int64
}

func (s slot) used() bool     { return s.kind != 0 && s.count != 0 }
func (s slot) extended() bool { return s.kind == 0x05 || s.kind == 0x0f || s.kind == 0x85 }

func extended(p *Partition) bool { return p.NoFile == noFileExtended }

const noFileExtended = "contains the logical partitions"

// mbr is sector 0 or a link sector.
type mbr struct {
	ok    bool // the signature is there and every status is 0x00 or 0x80
	sign  uint32
	slots [mbrSlots]slot
}

// decodeMBR reads b, at least 512 bytes. Text and code of a boot sector without
// a table have other values where the status bytes of a table stand.
func decodeMBR(b []byte) mbr {
	m := mbr{ok: b[510] == 0x55 && b[511] == 0xaa, sign: le.Uint32(b[signOff:])}
	for i := range m.slots {
		e := b[slotsOff+i*slotSize:]
		m.slots[i] = slot{status: e[0], kind: e[4], start: int64(le.Uint32(e[8:])), count: int64(le.Uint32(e[12:]))}
		m.ok = m.ok && (e[0] == 0x00 || e[0] == 0x80)
	}
	return m
}

func (m *mbr) protective() bool {
	for _, s := range m.slots {
		if s.kind == typeProtect {
			return true
		}
	}
	return false
}

func (m *mbr) empty() bool {
	for _, s := range m.slots {
		if s.used() {
			return false
		}
	}
	return true
}

// plausible tells whether every used entry starts in a disk of so many sectors.
func (m *mbr) plausible(sectors int64) bool {
	for _, s := range m.slots {
		if s.used() && (s.start < 1 || s.start >= sectors) {
			return false
		}
	}
	return true
}

// readMBR fills the table from sector 0. A boot sector of a file system that
// takes the whole disk carries the same signature: without an entry, or with one
// that starts outside the disk, it is that and not a table.
func (d *disk) readMBR(boot []byte, m mbr) error {
	if m.empty() || !m.plausible(d.sectors) {
		if bootSectorFS(boot) != "" {
			return nil
		}
	}
	if m.empty() {
		if c, err := Content(d.r); err != nil || c != "" {
			return err
		}
	}
	d.t.Scheme = MBR
	d.t.ID = fmt.Sprintf("%08x", m.sign)
	d.t.FirstUsable = d.sector
	d.t.LastUsable = d.bytes() - 1
	for i, s := range m.slots {
		if s.used() {
			d.addMBR(m.sign, i+1, s, 1, d.sectors)
		}
	}
	primaries := len(d.t.Partitions)
	next := firstLogic
	for _, s := range m.slots {
		if s.used() && s.extended() && s.start >= 1 && s.start < d.sectors {
			n, err := d.readChain(m.sign, s, next)
			if err != nil {
				return err
			}
			next = n
		}
	}
	d.markOverlaps(pointers(d.t.Partitions[:primaries]), "part.mbr.overlap")
	d.markOverlaps(pointers(d.t.Partitions[primaries:]), "part.mbr.overlap")
	d.finish(0)
	return nil
}

func pointers(parts []Partition) []*Partition {
	p := make([]*Partition, len(parts))
	for i := range parts {
		p[i] = &parts[i]
	}
	return p
}

// addMBR appends the partition of s, whose start is absolute here. It must lie
// within sectors first to limit-1.
func (d *disk) addMBR(sign uint32, index int, s slot, first, limit int64) {
	p := Partition{
		Index: index, Start: s.start * d.sector, Length: s.count * d.sector,
		Type: fmt.Sprintf("%02x", s.kind), TypeName: mbrTypes[s.kind],
		UUID:     fmt.Sprintf("%08x-%02x", sign, index),
		Bootable: s.status == 0x80,
	}
	if s.extended() {
		p.NoFile = noFileExtended
	}
	if s.start < first || s.start+s.count > limit {
		d.anomaly("part.mbr.range", ops.Warning, fmt.Sprintf("partition %d", index),
			"sectors %d-%d are not within %d-%d", s.start, s.start+s.count-1, first, limit-1)
		p.NoFile = fmt.Sprintf("sectors %d-%d are not within %d-%d", s.start, s.start+s.count-1, first, limit-1)
	}
	d.t.Partitions = append(d.t.Partitions, p)
}

// readChain follows the link sectors of the extended partition ext and appends
// its logical partitions, counted from next on; it returns the next number.
func (d *disk) readChain(sign uint32, ext slot, next int) (int, error) {
	b := make([]byte, bootSize)
	seen := map[int64]bool{}
	end := min(ext.start+ext.count, d.sectors)
	for at := ext.start; ; {
		where := fmt.Sprintf("link sector %d", at)
		if seen[at] || len(seen) == maxLinks {
			d.anomaly("part.mbr.chain", ops.Warning, where,
				"the chain of logical partitions returns here, or has more than %d links", maxLinks)
			return next, nil
		}
		seen[at] = true
		if err := d.read(b, at*d.sector, "link sector"); err != nil {
			return next, err
		}
		link := decodeMBR(b)
		if !link.ok {
			d.anomaly("part.mbr.chain", ops.Warning, where, "is no link of the extended partition at sector %d", ext.start)
			return next, nil
		}
		follow := int64(-1)
		for i, s := range link.slots {
			switch {
			case !s.used():
			case s.extended():
				if follow < 0 {
					follow = ext.start + s.start
				}
			case i < 2 && next < firstLogic+maxLinks: // others may hold anything
				s.start += at
				d.addMBR(sign, next, s, at+1, end)
				next++
			}
		}
		if follow < 0 {
			return next, nil
		}
		if follow >= end {
			d.anomaly("part.mbr.chain", ops.Warning, where,
				"names sector %d as its next link, past the extended partition's end %d", follow, end-1)
			return next, nil
		}
		at = follow
	}
}
