package part

import (
	"fmt"
	"hash/crc32"
	"unicode/utf16"

	"vhdfs/ops"
)

const (
	gptHeaderSize = 92
	gptEntryMin   = 128
	gptEntryMax   = 4096
	// gptMaxEntries is 32 times what every tool writes: a table of 4096 entries
	// of 4096 bytes is still read within 100 ms.
	gptMaxEntries = 4096
	gptChunk      = 64 << 10 // bytes of the entry array read at a time
	gptNameOff    = 56
	gptNameSize   = 72

	attrLegacyBoot = 1 << 2
)

// gptHeader is one of the two headers (UEFI 5.3.2); numbers are sectors.
type gptHeader struct {
	my, alternate uint64
	first, last   uint64 // usable by partitions, inclusive
	disk          ops.GUID
	entries       uint64 // sector of the array
	count, size   uint32 // of entries; bytes of one
	entriesCRC    uint32
}

// decodeGPTHeader checks all that a header says without its disk. b is one
// sector. With an error the fields are what stands there, good for a hint.
func decodeGPTHeader(b []byte) (gptHeader, error) {
	var h gptHeader
	if s := string(b[0:8]); s != "EFI PART" {
		return h, fmt.Errorf("signature %q, want %q", s, "EFI PART")
	}
	n := le.Uint32(b[12:])
	if n < gptHeaderSize || int64(n) > int64(len(b)) {
		return h, fmt.Errorf("header size %d, want %d to %d", n, gptHeaderSize, len(b))
	}
	h = gptHeader{
		my:         le.Uint64(b[24:]),
		alternate:  le.Uint64(b[32:]),
		first:      le.Uint64(b[40:]),
		last:       le.Uint64(b[48:]),
		disk:       ops.GUIDFromLE(b[56:]),
		entries:    le.Uint64(b[72:]),
		count:      le.Uint32(b[80:]),
		size:       le.Uint32(b[84:]),
		entriesCRC: le.Uint32(b[88:]),
	}
	crc := crc32.Update(crc32.ChecksumIEEE(b[:16]), crc32.IEEETable, []byte{0, 0, 0, 0})
	if got, want := le.Uint32(b[16:]), crc32.Update(crc, crc32.IEEETable, b[20:n]); got != want {
		return h, fmt.Errorf("header checksum %#08x, want %#08x", got, want)
	}
	if v := le.Uint32(b[8:]); v != 0x10000 {
		return h, fmt.Errorf("revision %#x, want 0x10000", v)
	}
	if h.count < 1 || h.count > gptMaxEntries {
		return h, fmt.Errorf("%d entries, want 1 to %d", h.count, gptMaxEntries)
	}
	if h.size < gptEntryMin || h.size > gptEntryMax || h.size&(h.size-1) != 0 {
		return h, fmt.Errorf("entry size %d, want a power of two from %d to %d", h.size, gptEntryMin, gptEntryMax)
	}
	return h, nil
}

// arraySectors is the room of the entries.
func (h *gptHeader) arraySectors(sector int64) int64 {
	return (int64(h.count)*int64(h.size) + sector - 1) / sector
}

// place checks the header against the disk and the sector it was read from.
func (h *gptHeader) place(d *disk, at int64) error {
	if h.my != uint64(at) {
		return fmt.Errorf("header says that it is sector %d", h.my)
	}
	if h.first > h.last {
		return fmt.Errorf("usable sectors %d-%d", h.first, h.last)
	}
	if h.first >= uint64(d.sectors) {
		return fmt.Errorf("first usable sector %d past the last sector %d", h.first, d.sectors-1)
	}
	if h.entries < 2 || h.entries >= uint64(d.sectors) || int64(h.entries)+h.arraySectors(d.sector) > d.sectors {
		return fmt.Errorf("%d sectors of entries at sector %d, the disk has %d", h.arraySectors(d.sector), h.entries, d.sectors)
	}
	return nil
}

// gptCopy is one header with its entries, or why it cannot be used.
type gptCopy struct {
	header gptHeader
	parts  []gptEntry
	bad    error
}

type gptEntry struct {
	index       int
	kind, id    ops.GUID
	first, last uint64
	attributes  uint64
	name        string
}

// copyAt reads the header at sector at and its entries. The error is for I/O.
func (d *disk) copyAt(at int64) (*gptCopy, error) {
	c := &gptCopy{}
	if at < 1 || at >= d.sectors {
		c.bad = fmt.Errorf("sector %d is not in the disk of %d", at, d.sectors)
		return c, nil
	}
	b := make([]byte, d.sector)
	if err := d.read(b, at*d.sector, "gpt header"); err != nil {
		return nil, err
	}
	if c.header, c.bad = decodeGPTHeader(b); c.bad != nil {
		return c, nil
	}
	if c.bad = c.header.place(d, at); c.bad != nil {
		return c, nil
	}
	return c, d.readEntries(c)
}

// readEntries reads the array of c a chunk at a time and checks its checksum.
func (d *disk) readEntries(c *gptCopy) error {
	h := &c.header
	size := int64(h.size)
	left, off := int64(h.count)*size, int64(h.entries)*d.sector
	b := make([]byte, min(left, gptChunk))
	var crc uint32
	for index := 1; left > 0; {
		b = b[:min(left, gptChunk)]
		if err := d.read(b, off, "gpt entries"); err != nil {
			return err
		}
		crc = crc32.Update(crc, crc32.IEEETable, b)
		for e := b; len(e) > 0; e = e[size:] {
			if kind := ops.GUIDFromLE(e); !kind.IsZero() {
				c.parts = append(c.parts, decodeGPTEntry(e, index, kind))
			}
			index++
		}
		left, off = left-int64(len(b)), off+int64(len(b))
	}
	if crc != h.entriesCRC {
		c.bad = fmt.Errorf("checksum of the entries %#08x, want %#08x", crc, h.entriesCRC)
	}
	return nil
}

// decodeGPTEntry reads b, at least 128 bytes (UEFI 5.3.3).
func decodeGPTEntry(b []byte, index int, kind ops.GUID) gptEntry {
	name := make([]uint16, 0, gptNameSize/2)
	for i := gptNameOff; i < gptNameOff+gptNameSize && le.Uint16(b[i:]) != 0; i += 2 {
		name = append(name, le.Uint16(b[i:]))
	}
	return gptEntry{
		index:      index,
		kind:       kind,
		id:         ops.GUIDFromLE(b[16:]),
		first:      le.Uint64(b[32:]),
		last:       le.Uint64(b[40:]),
		attributes: le.Uint64(b[48:]),
		name:       string(utf16.Decode(name)),
	}
}

// readStrayGPT looks for a GPT where sector 0 holds no table at all. Linux and
// Windows want a protective entry there; a header whose checksums hold is
// evidence enough to show it and to guard it against shrinking.
func (d *disk) readStrayGPT() (bool, error) {
	if d.sectors < 3 {
		return false, nil
	}
	c, err := d.copyAt(1)
	if err != nil || c.bad != nil {
		return false, err
	}
	d.anomaly("part.gpt.protective", ops.Warning, "sector 0",
		"no protective entry before a valid GPT: other systems do not see the partitions")
	return true, d.useGPT(c)
}

// readGPT fills the table of a disk whose sector 0 has a protective entry.
func (d *disk) readGPT(m mbr) error {
	d.t.Scheme = GPT
	for i, s := range m.slots {
		if s.used() && s.kind != typeProtect {
			d.anomaly("part.gpt.hybrid", ops.Note, fmt.Sprintf("sector 0, entry %d", i+1),
				"a partition of type %02x beside the protective entry: Linux uses the GPT, Windows may use this one", s.kind)
		}
	}
	primary, err := d.copyAt(1)
	if err != nil {
		return err
	}
	if primary.bad == nil {
		return d.useGPT(primary)
	}
	backup, at, err := d.findBackup(int64(primary.header.alternate))
	if err != nil {
		return err
	}
	if backup.bad != nil {
		d.anomaly("part.gpt.broken", ops.Broken, "sector 1",
			"neither GPT can be used: first: %v; backup at sector %d: %v%s", primary.bad, at, backup.bad, d.otherSector())
		return nil
	}
	d.anomaly("part.gpt.primary", ops.Warning, "sector 1",
		"the first GPT cannot be used: %v; the backup at sector %d is", primary.bad, at)
	d.fillGPT(backup)
	return nil
}

// findBackup reads the backup at the end of the disk, else where the unusable
// first header says it is: its own checksum decides whether to believe it.
func (d *disk) findBackup(hint int64) (*gptCopy, int64, error) {
	end := d.sectors - 1
	c, err := d.copyAt(end)
	if err != nil || c.bad == nil || hint <= 1 || hint >= end {
		return c, end, err
	}
	h, err := d.copyAt(hint)
	if err != nil || h.bad != nil {
		return c, end, err
	}
	return h, hint, nil
}

// otherSector names the most frequent reason for a GPT that is not where it
// should be: it was written for another sector size.
func (d *disk) otherSector() string {
	b := make([]byte, 8)
	for _, s := range []int64{512, 4096} {
		if s != d.sector && s+8 <= d.bytes() && d.read(b, s, "gpt header") == nil && string(b) == "EFI PART" {
			return fmt.Sprintf("; there is one for sectors of %d bytes, the disk has %d", s, d.sector)
		}
	}
	return ""
}

// useGPT fills the table from a good first copy and looks at the backup.
func (d *disk) useGPT(c *gptCopy) error {
	end := uint64(d.sectors - 1)
	where := fmt.Sprintf("sector %d", c.header.alternate)
	switch alt := c.header.alternate; {
	case alt > end || alt < 2:
		d.anomaly("part.gpt.backup", ops.Warning, where, "the backup GPT is not within the disk, which ends at sector %d", end)
	default:
		if alt != end {
			d.anomaly("part.gpt.backup-place", ops.Note, where,
				"the backup GPT is not in the last sector %d: the disk has grown since", end)
		}
		b, err := d.copyAt(int64(alt))
		switch {
		case err != nil:
			return err
		case b.bad != nil:
			d.anomaly("part.gpt.backup", ops.Warning, where, "the backup GPT cannot be used: %v", b.bad)
		case b.header.entriesCRC != c.header.entriesCRC || b.header.disk != c.header.disk:
			d.anomaly("part.gpt.differ", ops.Warning, where, "the backup GPT differs from the first, which is used")
		default:
			d.t.BackupAtEnd = alt == end && b.header.entries+uint64(b.header.arraySectors(d.sector)) == end
		}
	}
	d.fillGPT(c)
	return nil
}

// fillGPT turns a good copy into the table.
func (d *disk) fillGPT(c *gptCopy) {
	h := &c.header
	d.t.Scheme = GPT
	d.t.ID = h.disk.String()
	d.t.FirstUsable = int64(h.first) * d.sector
	d.t.LastUsable = (int64(min(h.last, uint64(d.sectors-1)))+1)*d.sector - 1
	reserve := (1 + h.arraySectors(d.sector)) * d.sector
	d.t.firstEnd, d.t.backupStart = max(2, int64(h.entries)+h.arraySectors(d.sector))*d.sector, d.bytes()-reserve
	for _, e := range c.parts {
		d.t.Partitions = append(d.t.Partitions, d.gptPartition(h, e))
	}
	d.markOverlaps(pointers(d.t.Partitions), "part.gpt.overlap")
	d.finish(reserve)
}

func (d *disk) gptPartition(h *gptHeader, e gptEntry) Partition {
	p := Partition{
		Index: e.index, Type: e.kind.String(), TypeName: gptTypes[e.kind.String()], Name: e.name, UUID: e.id.String(),
		Bootable: e.attributes&attrLegacyBoot != 0, Attributes: e.attributes,
	}
	where := fmt.Sprintf("partition %d", e.index)
	if e.first < 1 || e.first > e.last || e.last >= uint64(d.sectors) {
		text := fmt.Sprintf("sectors %d-%d are not a range within 1-%d", e.first, e.last, d.sectors-1)
		d.anomaly("part.gpt.range", ops.Warning, where, "%s", text)
		p.NoFile = text
		return p
	}
	p.Start = int64(e.first) * d.sector
	p.Length = int64(e.last-e.first+1) * d.sector
	if e.first < h.first || e.last > h.last {
		d.anomaly("part.gpt.usable", ops.Warning, where,
			"sectors %d-%d are not within the usable %d-%d", e.first, e.last, h.first, h.last)
		if overGPT(h, e, d.sector) {
			p.NoFile = "covers the partition table"
		}
	}
	return p
}

// overGPT tells whether e shares a sector with this header or its entries.
func overGPT(h *gptHeader, e gptEntry, sector int64) bool {
	array := h.entries + uint64(h.arraySectors(sector)) - 1
	return e.first <= h.my && h.my <= e.last || e.first <= array && h.entries <= e.last
}
