package vhd

import (
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// Format is VHD as the program registers it.
var Format = &ops.Format{
	Name:       "vhd",
	Number:     ops.FormatVHD,
	Extensions: []string{".vhd", ".avhd"},
	Probe:      probe,
	Open:       Open,
	Create:     create,
}

// Disk is an open dynamic or differencing image. Safe for concurrent use.
type Disk struct {
	file      ops.File
	foot      footer
	head      header
	typ       ops.Type
	size      atomic.Int64
	blockSize int64 // bytes of data in a block
	mapBytes  int64 // bytes of bitmap before it
	table     *ops.Pages
	maps      *ops.Pages

	// mu orders reads with changes of the block table: RLock is held over a
	// lookup and the read that follows it.
	mu struct {
		sync.RWMutex
		info  ops.Info
		wait  pending // what the next flush writes
		leave pending // what the flush under way writes
		moves uint64  // changes of the block table so far
	}
	lay *layout // guarded by mu
}

// Open opens a VHD of any type; see [ops.Format].
func Open(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
	l, err := open(f, o)
	if err != nil {
		_ = f.Close() // nothing was written; err says why there is no image
		return nil, err
	}
	return l, nil
}

func open(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
	s, err := readSlots(f)
	if err != nil {
		return nil, err
	}
	c, err := choose(f, &s, o.Repair)
	if err != nil {
		return nil, err
	}
	write := o.Write || o.Repair
	if write && c.readOnly != "" && !o.Repair {
		return nil, ops.Errorf(ops.ErrReadOnly, ops.StatusWrongState, "vhd: not opened for writing: %s", c.readOnly)
	}
	if write && c.mendable {
		c.f = decodeFooter(c.f.encode()) // with its checksum
	}
	if c.f.typ() == ops.Fixed {
		d := newFixed(f, &c)
		if write {
			return &fixedWriter{fixed: d, mending: c.mending, found: s, foot: c.f, tail: c.end, cut: c.cut}, nil
		}
		return d, nil
	}
	d, err := newDisk(f, &c, o)
	if err != nil || !write {
		return d, err
	}
	return newWriter(d, &c, s), nil
}

func newDisk(f ops.File, c *choice, o ops.OpenOptions) (*Disk, error) {
	d := &Disk{
		file:      f,
		foot:      c.f,
		head:      c.head,
		typ:       c.f.typ(),
		blockSize: int64(c.head.blockSize),
		mapBytes:  c.head.bitmapBytes(),
		lay:       newLayout(&c.f, &c.head, c.end),
	}
	d.size.Store(int64(c.f.currentSize))
	d.table = o.Cache.Pages(tablePage)
	d.maps = o.Cache.Pages(int(d.mapBytes))
	info := c.info()
	info.BlockSize = c.head.blockSize
	bm, err := readBatmap(f, &d.foot, &d.head, c.end)
	if err != nil {
		return nil, err
	}
	if bm.len > 0 {
		d.lay.spans = append(d.lay.spans, bm)
	}
	if info.Type == ops.Differencing {
		parent, odd, err := readParent(f, &d.head, d.lay)
		if err != nil {
			return nil, err
		}
		info.Parent = parent
		info.Anomalies = append(info.Anomalies, odd...)
	}
	if info.Aligned, err = d.aligned(c.tail); err != nil {
		return nil, err
	}
	d.mu.info = info
	return d, nil
}

// info is what the footer says, for every type.
func (c *choice) info() ops.Info {
	return ops.Info{
		Type:           c.f.typ(),
		LogicalSector:  sectorSize,
		PhysicalSector: sectorSize,
		DiskID:         c.f.id,
		LinkID:         c.f.id,
		Timestamp:      stamp(c.f.timestamp),
		Creator:        c.f.creatorText(),
		ReadOnly:       c.readOnly,
		Anomalies:      c.anomalies,
	}
}

// aligned tells whether block data starts at multiples of 4 KiB. The end footer at
// tail, if there is one, and the first page of the table stand for the rest:
// whoever wrote them wrote the rest alike.
func (d *Disk) aligned(tail int64) (bool, error) {
	if tail >= 0 && (tail+footerSize)%blockAlignment != 0 {
		return false, nil
	}
	for b := range min(tablePage/4, int64(d.head.entries)) {
		s, err := d.entryLocked(b)
		if err != nil {
			return false, err
		}
		if s != unused && (int64(s)*sectorSize+d.mapBytes)%blockAlignment != 0 {
			return false, nil
		}
	}
	return true, nil
}

// Size is the virtual size in bytes: CurrentSize, whatever the geometry says.
func (d *Disk) Size() int64 { return d.size.Load() }

// Info is what the file says of itself.
func (d *Disk) Info() ops.Info {
	d.mu.RLock()
	defer d.mu.RUnlock()
	info := d.mu.info
	info.Anomalies = slices.Clone(info.Anomalies)
	return info
}

// Close gives cache and file back.
func (d *Disk) Close() error {
	d.table.Drop()
	d.maps.Drop()
	return d.file.Close()
}

// ReadRun reads one run; see [ops.Layer]. Data of one block are one run.
func (d *Disk) ReadRun(p []byte, off int64) (int, ops.Kind, error) {
	if err := checkStart(off, d.Size()); err != nil || len(p) == 0 {
		return 0, ops.Absent, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	e, err := d.extentLocked(off, int64(len(p)))
	if err != nil {
		return 0, ops.Absent, err
	}
	if e.Kind != ops.Data {
		return int(e.Len), e.Kind, nil
	}
	if err := readFull(d.file, p[:e.Len], e.Pos, "block data"); err != nil {
		return 0, ops.Data, err
	}
	return int(e.Len), ops.Data, nil
}

// Extent is one run; see [ops.Layer].
func (d *Disk) Extent(off, max int64) (ops.Extent, error) {
	if err := checkStart(off, d.Size()); err != nil {
		return ops.Extent{}, err
	}
	if max <= 0 {
		return ops.Extent{}, ops.Errorf(ops.ErrUsage, 0, "vhd: extent of %d bytes", max)
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.extentLocked(off, max)
}

// checkStart is the range rule of every request: io.EOF at and past the end.
func checkStart(off, size int64) error {
	if off < 0 {
		return ops.Errorf(ops.ErrUsage, 0, "vhd: offset %d is below 0", off)
	}
	if off >= size {
		return io.EOF
	}
	return nil
}

func (d *Disk) extentLocked(off, max int64) (ops.Extent, error) {
	max = min(max, d.Size()-off)
	b := off / d.blockSize
	at, ok, err := d.blockLocked(b)
	if err != nil {
		return ops.Extent{}, err
	}
	if ok {
		return d.inBlockLocked(b, at, off-b*d.blockSize, max)
	}
	n, err := d.unusedRunLocked(b+1, blocksFor(off+max, d.blockSize))
	if err != nil {
		return ops.Extent{}, err
	}
	return ops.Extent{Len: min((b+1+n)*d.blockSize-off, max), Kind: ops.Absent, Pos: -1}, nil
}

// inBlockLocked is the run at byte in of an allocated block. A dynamic disk's
// bitmap is not asked: Windows and QEMU take the whole data area, and so does
// everyone for bits that are set.
func (d *Disk) inBlockLocked(b, at, in, max int64) (ops.Extent, error) {
	n := min(max, d.blockSize-in)
	if d.typ == ops.Differencing {
		m, err := d.bitmapLocked(b, at)
		if err != nil {
			return ops.Extent{}, err
		}
		first := in / sectorSize
		run, set := bitRun(m, first, roundUp(in+n, sectorSize)/sectorSize)
		n = min(n, (first+run)*sectorSize-in)
		if !set {
			return ops.Extent{Len: n, Kind: ops.Absent, Pos: -1}, nil
		}
	}
	pos := at + d.mapBytes + in
	if pos >= d.lay.end {
		return ops.Extent{}, ops.Corruptf(ops.StatusBATCorrupt, "vhd: bat entry %d: data at %#x past end of file %#x", b, pos, d.lay.end)
	}
	return ops.Extent{Len: min(n, d.lay.end-pos), Kind: ops.Data, Pos: pos}, nil
}
