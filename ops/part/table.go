// Package part reads the partition table of a disk: MBR with its chain of
// logical partitions, or GPT with its backup.
//
//	MBR  sector 0: boot code, disk signature, 4 entries, 0x55 0xaa
//	     an extended entry starts a chain of link sectors: one logical
//	     partition relative to the link, one next link relative to the
//	     extended partition
//	GPT  sector 0 protective MBR, 1 header, 2… entries … entries, last header
//
// A table can be damaged in any way: what it says is checked against the disk,
// what does not hold becomes an anomaly, and a partition that cannot be trusted
// gets a reason in NoFile instead of a file of its own. Work is bounded: at most
// 128 link sectors and two arrays of 16 MiB, read 64 KiB at a time.
package part

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"vhdfs/ops"
)

var le = binary.LittleEndian

// Scheme is the kind of a partition table.
type Scheme string

// Schemes. A disk that holds a file system without a table is None.
const (
	None Scheme = "none"
	MBR  Scheme = "mbr"
	GPT  Scheme = "gpt"
)

// Table is what a disk says of its partitions. Offsets and lengths are bytes.
type Table struct {
	Scheme          Scheme
	ID              string // GPT: disk GUID; MBR: signature as 8 hex digits; both lower case
	Partitions      []Partition
	FirstUsable     int64  // first byte that a partition may use
	LastUsable      int64  // last byte that a partition may use, by the table; 0 without one
	UnallocatedTail int64  // after the last partition, without the room of the backup GPT
	MinInternalSize *int64 // the virtual size that all partitions need; nil when unknown
	BackupAtEnd     bool   // the backup of a GPT ends the disk, and can be used
	Anomalies       []ops.Anomaly

	firstEnd, backupStart int64 // of a GPT: where its first copy ends; where the backup belongs
}

// Partition is one entry of a table.
type Partition struct {
	Index      int    // as Linux counts: slot + 1, logical partitions from 5
	Start      int64  // bytes
	Length     int64  // bytes
	Type       string // MBR: two hex digits; GPT: type GUID in lower case
	TypeName   string // "" when not known here
	Name       string // GPT only; may hold anything: quote it
	UUID       string // PARTUUID as Linux shows it
	Bootable   bool   // MBR: active; GPT: legacy BIOS bootable
	Attributes uint64 // GPT only
	NoFile     string // why the partition is not served as a file; "" when it is
}

func (p *Partition) end() int64 { return p.Start + p.Length }

// Read reads the table of a disk of size bytes with logical sectors of sector
// bytes (512 to 4096, a power of two). Whatever is wrong with the table is in
// Anomalies; the error is for what could not be read, and for a bad sector size.
func Read(r io.ReaderAt, size int64, sector uint32) (*Table, error) {
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 {
		return nil, ops.Errorf(ops.ErrUsage, 0, "part: logical sector size %d", sector)
	}
	d := &disk{r: r, sector: int64(sector), sectors: size / int64(sector), t: &Table{Scheme: None}}
	if d.sectors < 1 {
		return d.t, nil
	}
	boot := make([]byte, bootSize)
	if err := d.read(boot, 0, "sector 0"); err != nil {
		return nil, err
	}
	m := decodeMBR(boot)
	if m.ok && m.protective() {
		if err := d.readGPT(m); err != nil {
			return nil, err
		}
		return d.t, nil
	}
	if !m.ok || m.empty() {
		found, err := d.readStrayGPT()
		if err != nil {
			return nil, err
		}
		if found {
			return d.t, nil
		}
	}
	if m.ok {
		if err := d.readMBR(boot, m); err != nil {
			return nil, err
		}
	}
	return d.t, nil
}

// disk is one Read: where it reads from and what it found so far.
type disk struct {
	r       io.ReaderAt
	sector  int64 // bytes of a logical sector
	sectors int64 // whole sectors of the disk
	t       *Table
}

func (d *disk) bytes() int64 { return d.sectors * d.sector }

// read fills p from off; the caller has checked that the range is in the disk.
func (d *disk) read(p []byte, off int64, what string) error {
	n, err := d.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("part: %s at offset %d: %w", what, off, err)
}

func (d *disk) anomaly(name string, s ops.Severity, where, format string, args ...any) {
	d.t.Anomalies = append(d.t.Anomalies, ops.Anomaly{
		Name: name, Severity: s, Where: where, Text: fmt.Sprintf(format, args...),
	})
}

// markOverlaps refuses a file to every one of parts that shares a sector with
// another: two files over the same bytes would have two caches. A partition that
// is refused already does not count.
func (d *disk) markOverlaps(parts []*Partition, name string) {
	sound := slices.DeleteFunc(slices.Clone(parts), func(p *Partition) bool { return p.NoFile != "" && !extended(p) })
	slices.SortStableFunc(sound, func(a, b *Partition) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	var last *Partition // of those before, the one that ends last
	for _, p := range sound {
		if last != nil && p.Start < last.end() {
			d.anomaly(name, ops.Warning, fmt.Sprintf("partition %d", p.Index),
				"bytes %d-%d overlap partition %d, which ends at %d", p.Start, p.end()-1, last.Index, last.end()-1)
			p.NoFile = fmt.Sprintf("overlaps partition %d", last.Index)
			last.NoFile = fmt.Sprintf("overlaps partition %d", p.Index)
		}
		if last == nil || p.end() > last.end() {
			last = p
		}
	}
}

// finish derives what follows from the partitions: reserve is the room that the
// table needs behind them. A partition that leaves the disk makes the smallest
// size unknown, and so does a table without partitions.
func (d *disk) finish(reserve int64) {
	end, known := d.t.FirstUsable, len(d.t.Partitions) > 0
	for i := range d.t.Partitions {
		p := &d.t.Partitions[i]
		end = max(end, p.end())
		known = known && p.Length > 0 && p.end() <= d.bytes()
	}
	d.t.UnallocatedTail = max(0, d.bytes()-reserve-end)
	if floor := end + reserve; known && floor <= d.bytes() {
		d.t.MinInternalSize = &floor
	}
}
