package vhdx

import (
	"slices"
	"strings"
	"sync"
	"unicode/utf16"

	"vhdfs/ops"
)

// Anomalies that go away when the log is replayed into the file, when a log with
// nothing in it is given up, and with another parent locator.
const (
	anomalyDirty  = "vhdx.log.dirty"
	anomalyEmpty  = "vhdx.log.empty"
	anomalyNoPath = "vhdx.locator.no-path"
	anomalyUnread = "vhdx.locator.unreadable"
)

// open reads and judges everything but the BAT, which is judged entry by entry
// as it is used. It writes nothing.
func open(f ops.File, o ops.OpenOptions) (*Disk, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &Disk{f: f, fileSize: st.Size, src: f}
	for _, step := range []func() error{d.openIdentifier, d.openHeaders, d.openLog, d.openRegions, d.openMetadata} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	d.table = table{src: d.src, cache: o.Cache.Pages(int(pageSize)), dirty: map[int64][]byte{}}
	return d, nil
}

// openIdentifier reads the file type identifier ([MS-VHDX] 2.2.1).
func (d *Disk) openIdentifier() error {
	b := make([]byte, len(signature)+creatorField)
	if err := readFull(d.f, b, 0, "identifier"); err != nil {
		return err
	}
	if got := string(b[:len(signature)]); got != signature {
		return corruptf(ops.StatusFormatUnknown, "identifier: signature %q, want %q", got, signature)
	}
	units := make([]uint16, 0, creatorField/2)
	for i := len(signature); i < len(b); i += 2 {
		units = append(units, le.Uint16(b[i:]))
	}
	d.creator, _, _ = strings.Cut(string(utf16.Decode(units)), "\x00")
	return nil
}

func (d *Disk) openHeaders() error {
	var raw [2][]byte
	for i, off := range headerOffset {
		raw[i] = make([]byte, headerSize)
		if err := readFull(d.f, raw[i], off, headerName(i)); err != nil {
			return err
		}
	}
	hs, err := pickHeader(raw)
	if err != nil {
		return err
	}
	d.headers, d.found = hs, append(d.found, hs.anomalies...)
	switch h := hs.current; {
	case h.seq == ^uint64(0):
		d.readOnly = "the header's sequence number cannot grow any more"
	case h.logLength == 0:
		d.readOnly = "the file has no log"
	}
	return hs.current.check(d.fileSize)
}

// openLog lays a dirty log over the file, or finds that it has no valid
// sequence: QEMU leaves such files when it dies between two writes, with
// nothing half done, but nobody can prove that.
func (d *Disk) openLog() error {
	h := d.headers.current
	if h.log.IsZero() {
		d.logState = ops.LogClean
		return nil
	}
	g := ring{r: d.f, off: int64(h.logOffset), length: int64(h.logLength)}
	seq, err := findSequence(g, h.log)
	if err != nil {
		return err
	}
	if len(seq) == 0 {
		d.logState = ops.LogEmpty
		d.readOnly = "the log is in use and has no valid entry"
		d.found = append(d.found, ops.Anomaly{
			Name: anomalyEmpty, Severity: ops.Warning, Where: "log",
			Text: "log " + h.log.String() + " is in use and has no valid entry; the file is shown as it stands",
		})
		return nil
	}
	o, err := newOverlay(d.f, g, seq, d.fileSize)
	if err != nil {
		return err
	}
	d.overlay, d.src, d.fileSize = o, o, o.total
	d.logState = ops.LogReplayed
	d.found = append(d.found, ops.Anomaly{
		Name: anomalyDirty, Severity: ops.Note, Where: "log",
		Text: "the log was not empty; it is replayed in memory",
	})
	return nil
}

// tableBuffers hold what opening reads of region and metadata tables: large for
// garbage where a folder full of images is opened. Nothing that is decoded
// refers to them.
var tableBuffers = sync.Pool{New: func() any { return new([2 * regionTableSize]byte) }}

func (d *Disk) openRegions() error {
	buf := tableBuffers.Get().(*[2 * regionTableSize]byte)
	defer tableBuffers.Put(buf)
	raw := [2][]byte{buf[:regionTableSize], buf[regionTableSize:]}
	for i, off := range regionOffset {
		if err := readFull(d.src, raw[i], off, "region table"); err != nil {
			return err
		}
	}
	r, found, err := pickRegions(raw)
	d.found = append(d.found, found...)
	if err != nil {
		return err
	}
	d.regions = r
	log := d.headers.current.logSpan()
	for _, s := range r.all() {
		if log.len() > 0 && s.overlaps(log) {
			return corruptf(ops.StatusMetadataRead, "region at %#x overlaps the log at %#x", s.off, log.off)
		}
	}
	d.reserveLocked()
	return nil
}

// reserveLocked notes what no block may touch.
func (d *Disk) reserveLocked() {
	d.reserved = d.regions.all()
	if log := d.headers.current.logSpan(); log.len() > 0 {
		d.reserved = append(d.reserved, log)
	}
}

func (d *Disk) openMetadata() error {
	region := d.regions.metadata
	buf := tableBuffers.Get().(*[2 * regionTableSize]byte)
	defer tableBuffers.Put(buf)
	b := buf[:metadataTableSize]
	if err := readFull(d.src, b, region.off, "metadata table"); err != nil {
		return err
	}
	items, err := decodeMetadataTable(b, region.len())
	if err != nil {
		return err
	}
	d.items = items
	get := func(id ops.GUID) ([]byte, error) {
		it, ok := items[id]
		if want := itemLength[id]; !ok || want != 0 && it.length != want {
			return nil, corruptf(ops.StatusMetadataRead, "metadata item %s: %d bytes, want %d", id, it.length, want)
		}
		b := make([]byte, it.length)
		return b, readFull(d.src, b, region.off+int64(it.offset), "metadata item")
	}
	if d.metadata, err = decodeMetadata(get); err != nil {
		return err
	}
	if d.metadata.hasParent {
		if err := d.openLocator(); err != nil {
			return err
		}
	}
	d.geometry = newGeometry(d.metadata)
	d.size.Store(d.geometry.size)
	bat, need := d.regions.bat, d.geometry.entries*entryBytes
	if need > bat.len() {
		return corruptf(ops.StatusBATCorrupt, "bat: %d entries need %#x bytes, the region has %#x", d.geometry.entries, need, bat.len())
	}
	if bat.off+roundUp(need, pageSize) > d.fileSize {
		return corruptf(ops.StatusFileSizeInvalid, "bat: %#x bytes at %#x past end of file %#x", need, bat.off, d.fileSize)
	}
	return nil
}

// openLocator reads what is recorded of the parent. Where that cannot be read the
// disk opens all the same, so that it can be mended.
func (d *Disk) openLocator() error {
	b, err := d.locatorItem()
	if err != nil {
		return err
	}
	l, err := decodeLocator(b)
	if d.parent = l.parent(); err != nil {
		d.parent.Err = err
	}
	if a, odd := locatorAnomaly(d.parent); odd {
		d.found = append(d.found, a)
	}
	return nil
}

// locatorItem is the parent locator as it stands in the file; without one no bytes.
func (d *Disk) locatorItem() ([]byte, error) {
	it := d.items[itemLocator]
	b := make([]byte, it.length)
	return b, readFull(d.src, b, d.regions.metadata.off+int64(it.offset), "parent locator")
}

// mendedLocked forgets anomalies that are there no more.
func (d *Disk) mendedLocked(names ...string) {
	d.found = slices.DeleteFunc(slices.Clone(d.found), func(a ops.Anomaly) bool { return slices.Contains(names, a.Name) })
}

// locatorAnomaly names what a parent locator that cannot be read, or has no path,
// means.
func locatorAnomaly(p *ops.Parent) (ops.Anomaly, bool) {
	if p.Err != nil {
		return ops.Anomaly{
			Name: anomalyUnread, Severity: ops.Broken, Where: "parent locator",
			Text: p.Err.Error() + "; nobody can tell what the parent is until set-parent records it",
		}, true
	}
	return ops.Anomaly{
		Name: anomalyNoPath, Severity: ops.Warning, Where: "parent locator",
		Text: "the parent locator holds no path; the parent can be found by its id only",
	}, len(p.Paths) == 0
}
