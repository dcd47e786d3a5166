package vhdx

import (
	"io"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// Disk is an open VHDX: its own blocks, parents not asked ([MS-VHDX]).
//
// mu is held for reading by guest reads and by writes into blocks that are there,
// for writing by whatever changes the block table.
type Disk struct {
	f       ops.File
	creator string

	size atomic.Int64 // geometry.size, for those who do not hold mu

	// Guarded by mu. Block size, sector size and type never change and may be read
	// without it.
	mu       sync.RWMutex
	metadata metadata
	items    map[ops.GUID]item // system items of the metadata region
	geometry geometry
	regions  regions
	reserved []span // parts of the file that no block may touch
	parent   *ops.Parent
	logState ops.LogState
	readOnly string // why it cannot be written; "" when it can
	found    []ops.Anomaly
	headers  headers
	fileSize int64 // after the replay of a dirty log
	overlay  *overlay
	src      io.ReaderAt // the overlay, or the file itself
	table    table
	checks   []*checker // that are under way
}

// Size is the virtual size in bytes.
func (d *Disk) Size() int64 { return d.size.Load() }

// Info is what the file says of itself.
func (d *Disk) Info() ops.Info {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return ops.Info{
		Type:           d.diskType(),
		BlockSize:      d.metadata.blockSize,
		LogicalSector:  d.metadata.logical,
		PhysicalSector: d.metadata.physical,
		DiskID:         d.metadata.diskID,
		LinkID:         d.headers.current.dataWrite,
		Creator:        d.creator,
		Parent:         d.parent,
		Log:            d.logState,
		ReadOnly:       d.readOnly,
		Aligned:        true,
		Anomalies:      d.found,
	}
}

// diskType follows [MS-VHDX] 2.6.2.1: LeaveBlockAllocated means nothing beside
// HasParent.
func (d *Disk) diskType() ops.Type {
	switch {
	case d.metadata.hasParent:
		return ops.Differencing
	case d.metadata.fixed:
		return ops.Fixed
	}
	return ops.Dynamic
}

// Close closes the file.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.table.cache.Drop()
	return d.f.Close()
}

// ReadRun reads the longest prefix of p that is of one kind.
func (d *Disk) ReadRun(p []byte, off int64) (int, ops.Kind, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, err := d.clip(off, int64(len(p)))
	if err != nil || n == 0 {
		return 0, ops.Absent, err
	}
	return d.readRunLocked(p[:n], off)
}

func (d *Disk) readRunLocked(p []byte, off int64) (n int, kind ops.Kind, err error) {
	for n < len(p) {
		x, err := d.lookup(off+int64(n), int64(len(p)-n))
		if err == nil && n > 0 && x.Kind != kind {
			return n, kind, nil
		}
		part := p[n:]
		if err == nil {
			part = part[:x.Len]
			switch x.Kind {
			case ops.Data:
				err = readFull(d.src, part, x.Pos, "payload block")
			case ops.Zero:
				clear(part)
			}
		}
		if err != nil {
			if n > 0 {
				return n, kind, nil // the error is for the read that starts there
			}
			return 0, x.Kind, err
		}
		n, kind = n+len(part), x.Kind
	}
	return n, kind, nil
}

// clip is how much of n bytes at off lies in the disk.
func (d *Disk) clip(off, n int64) (int64, error) {
	switch {
	case off < 0 || n < 0:
		return 0, ops.Errorf(ops.ErrUsage, 0, "vhdx: %d bytes at offset %d", n, off)
	case n == 0:
		return 0, nil
	case off >= d.geometry.size:
		return 0, io.EOF
	}
	return min(n, d.geometry.size-off), nil
}

// Extent is the longest run of one kind at off, at most max bytes; data is one
// piece of the file.
func (d *Disk) Extent(off, max int64) (ops.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, err := d.clip(off, max)
	if err != nil || n == 0 {
		return ops.Extent{Pos: -1}, err
	}
	x, err := d.lookup(off, n)
	if err != nil {
		return x, err
	}
	for x.Len < n {
		if at := off + x.Len; x.Kind != ops.Data && at%d.geometry.block == 0 {
			more, err := d.sameStates(at, n-x.Len, x.Kind)
			if err != nil {
				return x, nil // the error is for whoever asks there
			}
			if x.Len += more; x.Len == n {
				break
			}
		}
		next, err := d.lookup(off+x.Len, n-x.Len)
		if err != nil || next.Kind != x.Kind || x.Kind == ops.Data && next.Pos != x.Pos+x.Len {
			break
		}
		x.Len += next.Len
	}
	return x, nil
}

// lookup is the run at off inside one block, at most n bytes; off is inside the
// disk.
func (d *Disk) lookup(off, n int64) (ops.Extent, error) {
	g := d.geometry
	b, in := off/g.block, off%g.block
	n = min(n, g.used(b)-in)
	i := g.payloadIndex(b)
	e, err := d.entryAt(i)
	if err == nil {
		err = g.checkPayload(i, e, d.reserved)
	}
	if err != nil {
		return ops.Extent{}, err
	}
	kind := d.kind(e)
	switch e.state() {
	case stateFull:
		return d.dataExtent(i, e, in, n)
	case statePartial:
		set, run, err := d.bitmapRun(b, in, n)
		if err != nil {
			return ops.Extent{}, err
		}
		if set {
			return d.dataExtent(i, e, in, run)
		}
		return ops.Extent{Len: run, Kind: ops.Absent, Pos: -1}, nil
	}
	return ops.Extent{Len: n, Kind: kind, Pos: -1}, nil
}

// kind is what a block without content reads as: only a block that is not
// present in a differencing disk is its parent's (6.3 of the states' table).
func (d *Disk) kind(e entry) ops.Kind {
	if e.state() == stateNotPresent && d.geometry.hasParent {
		return ops.Absent
	}
	return ops.Zero
}

// dataExtent is n bytes from byte in of a present block on. A file may end
// inside its last block: what is there can be read.
func (d *Disk) dataExtent(i int64, e entry, in, n int64) (ops.Extent, error) {
	pos := e.offset() + in
	if pos >= d.fileSize {
		return ops.Extent{}, corruptf(ops.StatusBATCorrupt, "bat entry %d: offset %#x past end of file %#x", i, pos, d.fileSize)
	}
	return ops.Extent{Len: min(n, d.fileSize-pos), Kind: ops.Data, Pos: pos}, nil
}

// bitmapRun is the run of equal sector bits at byte in of block b, in bytes and
// at most n.
func (d *Disk) bitmapRun(b, in, n int64) (set bool, run int64, err error) {
	g := d.geometry
	c := b / g.ratio
	i := g.bitmapIndex(c)
	e, err := d.entryAt(i)
	if err == nil {
		err = g.checkBitmap(i, e, d.reserved)
	}
	if err != nil {
		return false, 0, err
	}
	first, _ := g.bitmapSlice(b)
	for run < n {
		bit := first + (in+run)/g.sector
		at := e.offset() + bit/8
		page, err := d.table.page(at / pageSize)
		if err != nil {
			return false, 0, err
		}
		limit := ceilDiv((in+n)-(in+run)/g.sector*g.sector, g.sector)
		s, k := bitRun(page, at%pageSize*8+bit%8, limit)
		if run > 0 && s != set {
			break
		}
		set = s
		run = (in+run)/g.sector*g.sector + k*g.sector - in
	}
	return set, min(run, n), nil
}

// sameStates is how many bytes from block boundary off on, at most n, lie in
// blocks without content that read as kind. It looks at states alone: an entry
// that lookup would refuse ends the run.
func (d *Disk) sameStates(off, n int64, kind ops.Kind) (int64, error) {
	g := d.geometry
	first := off / g.block
	end := first + ceilDiv(n, g.block)
	b := first
	skip := func(i, k int64) bool {
		if d.kind(0) != kind {
			return false
		}
		b = min(end, g.payloadOf(i+k))
		return b < end
	}
	err := d.scanBAT(g.payloadIndex(first), g.payloadIndex(end-1)+1, skip, func(i int64, e entry) bool {
		if g.isBitmap(i) {
			return true
		}
		if e.present() || d.kind(e) != kind || g.checkPayload(i, e, d.reserved) != nil {
			return false
		}
		b = g.payloadOf(i) + 1
		return true
	})
	return min(n, (b-first)*g.block), err
}
