package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"vhdfs/ops"
)

const (
	itemEntry     = 32 // bytes of an entry of the metadata table, and of its header
	maxUTF16Value = 1<<16 - 2
)

// SetParent records another parent: ids and paths, in one step. Keys of the
// locator that are not known here stay; a volume path goes, since nobody can tell
// whether it is still true. Of a locator that cannot be read the keys before the
// fault stay; one that is not there is made. It changes no id of the image itself
// and is durable when it answers nil.
//
//	everything before, in place         the old record
//	one log entry with item and table   the new record
//
// An item that outgrows its place moves to free room in the metadata region. One
// of more than a log entry holds always does: its pages, which nothing names,
// come before the table in the log.
func (w *Writer) SetParent(p ops.CreateParent) error {
	if !w.geometry.hasParent {
		return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhdx: a %s disk has no parent", w.diskType())
	}
	w.flushing.Lock()
	defer w.flushing.Unlock()
	if err := w.catchUp(); err != nil {
		return err
	}
	r, err := w.planRelink(p)
	if err != nil || r == nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	if err := w.amend(r.put); err != nil {
		return fmt.Errorf("vhdx: parent locator: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items[itemLocator] = r.item
	w.parent = r.parent
	w.mendedLocked(anomalyNoPath, anomalyUnread)
	if a, odd := locatorAnomaly(r.parent); odd {
		w.found = append(w.found, a)
	}
	return nil
}

// UnreadParent is the locator's bytes where not all of it can be read.
func (w *Writer) UnreadParent() ([]byte, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.parent == nil || w.parent.Err == nil {
		return nil, nil
	}
	return w.locatorItem()
}

// relink is a parent locator on its way into the file.
type relink struct {
	region span // of the metadata
	b      []byte
	room   int64 // bytes of the item's place that are cleared behind b
	added  bool  // the table has no entry for it yet
	item   item
	parent *ops.Parent
}

// planRelink is what has to be written to record p; nil for nothing.
func (w *Writer) planRelink(p ops.CreateParent) (*relink, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.poison != nil {
		return nil, w.poison
	}
	old, err := w.locatorItem()
	if err != nil {
		return nil, err
	}
	l, _ := decodeLocator(old) // of one that is damaged what there is
	if l, err = l.relinked(p); err != nil {
		return nil, err
	}
	r := &relink{region: w.regions.metadata, parent: l.parent()}
	if r.b = l.encode(); bytes.Equal(r.b, old) {
		return nil, nil
	}
	table := make([]byte, metadataTableSize)
	if err := readFull(w.src, table, r.region.off, "metadata table"); err != nil {
		return nil, err
	}
	if err := r.findEntry(w.items, table); err != nil {
		return nil, err
	}
	return r, r.findRoom(table)
}

// findEntry finds the item's entry in the table, the one behind the last where it
// has none.
func (r *relink) findEntry(items map[ops.GUID]item, table []byte) error {
	var ok bool
	if r.item, ok = items[itemLocator]; ok {
		return nil
	}
	count := int(le.Uint16(table[10:]))
	if count == maxItems {
		return ops.Errorf(ops.ErrUsage, ops.StatusMetadataWrite, "vhdx: no room for a parent locator among %d metadata items", count)
	}
	r.item, r.added = item{index: count, flags: itemRequired}, true
	return nil
}

// relinked is the locator with another parent in it.
func (l locator) relinked(p ops.CreateParent) (locator, error) {
	if p.LinkID.IsZero() {
		return nil, ops.Errorf(ops.ErrUsage, 0, "vhdx: the parent's id is zero")
	}
	known := newLocator(&p)
	if !p.NextID.IsZero() && p.NextID != p.LinkID {
		known = slices.Insert(known, 1, keyValue{keyLinkage2, "{" + p.NextID.String() + "}"})
	}
	for _, kv := range known {
		if len(encodeUTF16(kv.value)) > maxUTF16Value || int64(len(p.Absolute)+len(p.Relative)) > maxPath {
			return nil, ops.Errorf(ops.ErrUsage, 0, "vhdx: the parent's path is too long")
		}
	}
	for _, kv := range l {
		switch kv.key {
		case keyLinkage, keyLinkage2, keyRelative, keyAbsolute, keyVolume:
		default:
			known = append(known, kv)
		}
	}
	return known, nil
}

// findRoom decides where the item goes: where it is, up to what follows it, when
// one log entry holds all of that and the table's page; else to the first gap.
// An item of no bytes has no place of its own.
func (r *relink) findRoom(table []byte) error {
	n := int64(len(r.b))
	if n > maxItem {
		return ops.Errorf(ops.ErrUsage, ops.StatusMetadataWrite, "vhdx: a parent locator of %d bytes, at most %d", n, maxItem)
	}
	spans := itemSpans(table)
	here := int64(r.item.offset)
	limit := r.region.len()
	for _, s := range spans {
		if s.off > here {
			limit = min(limit, s.off)
		}
	}
	old := int64(r.item.length)
	r.item.length = uint32(n)
	r.room = max(n, old)
	if old > 0 && n <= limit-here && ceilDiv(here%pageSize+r.room, pageSize) < maxEntryPages {
		return nil
	}
	for _, align := range []int64{pageSize, 8} {
		if at := gap(spans, n, align, r.region.len()); at >= 0 {
			r.item.offset, r.room = uint32(at), n
			return nil
		}
	}
	return ops.Errorf(ops.ErrUsage, ops.StatusMetadataWrite, "vhdx: no room for a parent locator of %d bytes in the metadata region", n)
}

// gap is the first place behind the table for n bytes in a region of size bytes
// that spans leave free; -1 when there is none.
func gap(spans []span, n, align, size int64) int64 {
	at := metadataTableSize
	for _, s := range spans {
		if s.off-at >= n {
			break
		}
		at = max(at, roundUp(s.end, align))
	}
	if at+n > size {
		return -1
	}
	return at
}

// itemSpans are the places of all items in the metadata region, in order.
func itemSpans(table []byte) []span {
	var spans []span
	for i := range int(le.Uint16(table[10:])) {
		e := table[itemEntry+itemEntry*i:]
		if off, n := int64(le.Uint32(e[16:])), int64(le.Uint32(e[20:])); n > 0 {
			spans = append(spans, span{off, off + n})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return int(a.off - b.off) })
	return spans
}

// put puts the item first and its entry in the table behind it; last of all, where
// that is a new one, what makes it count.
func (r *relink) put(a *amendment) error {
	b := append(r.b[:len(r.b):len(r.b)], make([]byte, r.room-int64(len(r.b)))...)
	if err := a.put(r.region.off+int64(r.item.offset), b); err != nil {
		return err
	}
	e := make([]byte, 16, itemEntry)
	itemLocator.PutLE(e)
	for _, v := range []uint32{r.item.offset, r.item.length, r.item.flags} {
		e = le.AppendUint32(e, v)
	}
	if err := a.put(r.region.off+int64(itemEntry+itemEntry*r.item.index), e); err != nil || !r.added {
		return err
	}
	return a.put(r.region.off+10, le.AppendUint16(nil, uint16(r.item.index+1)))
}
