package vhdx

import (
	"fmt"

	"vhdfs/ops"
)

// amendment is a change of metadata or region tables: pages of the file as they
// are to be, in the order in which their content was put.
type amendment struct {
	f     ops.File
	pages []pageCopy
}

// put changes bytes of the file at off. What the file has is read from it: no log
// entry may be pending.
func (a *amendment) put(off int64, b []byte) error {
	for len(b) > 0 {
		page, in := off/pageSize, off%pageSize
		p, err := a.page(page)
		if err != nil {
			return err
		}
		n := copy(p[in:], b)
		off, b = off+int64(n), b[n:]
	}
	return nil
}

func (a *amendment) page(page int64) ([]byte, error) {
	for _, p := range a.pages {
		if p.page == page {
			return p.b, nil
		}
	}
	p := pageCopy{page: page, b: make([]byte, pageSize)}
	if err := readFull(a.f, p.b, page*pageSize, "metadata page"); err != nil {
		return nil, err
	}
	a.pages = append(a.pages, p)
	return p.b, nil
}

// begin begins a session that changes nothing which a guest or a child can see.
func (w *Writer) begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.beginLocked(ops.GUID{})
}

// catchUp puts in place what the log has: from then on the file can be read for
// what it holds. Whoever calls it holds flushing.
func (w *Writer) catchUp() error {
	w.mu.RLock()
	s := w.session
	w.mu.RUnlock()
	if s == nil {
		return nil
	}
	return w.place()
}

// settle makes every change that completed durable where it belongs, so that the
// next log entry may stand alone. size is that of the file, which is durable.
// Whoever calls it holds flushing, in a session.
func (w *Writer) settle() (size int64, err error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	if err := w.place(); err != nil {
		return 0, err
	}
	w.mu.RLock()
	size = w.fileSize
	w.mu.RUnlock()
	if w.unsynced.Swap(false) {
		if err := w.sync("vhdx.settle"); err != nil {
			return 0, err
		}
	}
	return size, nil
}

// amend carries an amendment out, durably. edit is called when the file holds
// everything that came before. A change of up to maxEntryPages pages is one log
// entry: a crash leaves all of it or nothing. A longer one gets into the log page
// by page in the order in which edit put them. Whoever calls it holds flushing,
// in a session.
func (w *Writer) amend(edit func(a *amendment) error) error {
	size, err := w.settle()
	if err != nil {
		return err
	}
	return w.amendSettled(size, edit)
}

// amendSettled is amend when nothing was put in place since settle answered size.
func (w *Writer) amendSettled(size int64, edit func(a *amendment) error) error {
	a := &amendment{f: w.f}
	if err := edit(a); err != nil {
		return err
	}
	if err := w.haveLog(size); err != nil {
		return err
	}
	w.session.log.retire()
	if err := w.logPages(a.pages, size); err != nil {
		// As much of the entry may be there as makes it count: before anything else
		// is promised, another log begins.
		w.mu.Lock()
		w.session.log = nil
		w.mu.Unlock()
		return err
	}
	// The log has what could not be put in place; the next flush tries again.
	_ = w.place()
	return nil
}

// SetPhysicalSector changes the physical sector size, 512 or 4096 bytes and not
// below the logical one ([MS-VHDX] 2.6.2.5). It is durable when this answers nil.
func (w *Writer) SetPhysicalSector(bytes uint32) error {
	w.mu.RLock()
	m := w.metadata
	w.mu.RUnlock()
	if m.physical = bytes; bytes < m.logical {
		return ops.Errorf(ops.ErrUsage, ops.StatusSectorSize, "vhdx: physical sector size %d is below the logical one, %d", bytes, m.logical)
	}
	if status, why := m.problem(); why != "" {
		return ops.Errorf(ops.ErrUsage, status, "vhdx: %s", why)
	}
	return w.setItem(itemPhysical, le.AppendUint32(nil, bytes), func(m *metadata) { m.physical = bytes })
}

// SetDiskID changes the virtual disk id ([MS-VHDX] 2.6.2.3). It is durable when
// this answers nil.
func (w *Writer) SetDiskID(id ops.GUID) error {
	if id.IsZero() {
		return ops.Errorf(ops.ErrUsage, 0, "vhdx: a virtual disk id of zeros")
	}
	b := make([]byte, len(id))
	id.PutLE(b)
	return w.setItem(itemDiskID, b, func(m *metadata) { m.diskID = id })
}

// setItem replaces the content of a metadata item of fixed length:
//
//	everything before, in place     the old value
//	one log entry                   the new value
//
// and tells set when that is durable. The same value changes nothing.
func (w *Writer) setItem(id ops.GUID, b []byte, set func(*metadata)) error {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	if same, err := w.itemIs(set); same || err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	at := w.regions.metadata.off + int64(w.items[id].offset)
	if err := w.amend(func(a *amendment) error { return a.put(at, b) }); err != nil {
		return fmt.Errorf("vhdx: metadata item %s: %w", id, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	set(&w.metadata)
	return nil
}

// itemIs tells whether the metadata is already what set makes it.
func (w *Writer) itemIs(set func(*metadata)) (bool, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	m := w.metadata
	set(&m)
	return m == w.metadata, w.poison
}

// SetLinkID makes id the DataWriteGuid, durably and for the rest of this opening:
// the first write changes it no more. A crash leaves the old id or the new one;
// after an error that came while the header was written it may be either.
func (w *Writer) SetLinkID(id ops.GUID) error {
	if id.IsZero() {
		return ops.Errorf(ops.ErrUsage, 0, "vhdx: a data write id of zeros")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session == nil {
		return w.beginLocked(id)
	}
	if w.poison != nil || w.headers.current.dataWrite == id && w.newLink {
		return w.poison
	}
	return w.linkLocked(id)
}
