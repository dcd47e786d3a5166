package vhdx

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// growStep is how much a file grows by at once: fewer changes of its size to
// make durable. What is spare is cut off by a clean close.
const growStep = 32 * mib

// maxDirty is how many changed table pages may wait for a flush, 2 MiB of them;
// the next write that needs one more flushes first.
const maxDirty = 512

// Writer is a Disk opened for writing. It touches the file at the first change
// and not before: that begins a session, which Close ends. The session gets a new
// DataWriteGuid with its first change that a guest can see and not before.
//
// Payload is written in place into blocks that are there, under a reader's hold
// of Disk.mu. New blocks take free space of the file; changed pages of BAT and
// sector bitmaps wait in memory for a flush, which logs them. So after a crash a
// block is where the last flush left it, with old or new content by sectors.
type Writer struct {
	*Disk
	// flushing is held by whoever flushes, changes metadata or closes; it comes
	// before Disk.mu.
	flushing sync.Mutex
	// unsynced: something in the file was changed since it was last synced.
	unsynced atomic.Bool

	// The rest is guarded by Disk.mu, except where flush says otherwise.
	poison  error    // what failed for good; nil while all is well
	session *session // nil before the first change
	newFile bool     // FileWriteGuid of this opening is in the file
	newLink bool     // DataWriteGuid of this opening is in the file
	watch   watch    // the block that is being compacted
}

// session is what a Writer knows between the first change and the close.
type session struct {
	log     *logWriter
	space   *spaceMap // what belongs to a block or a structure
	stale   *spaceMap // free space that may hold old bytes
	search  int64     // mebibyte before which nothing is free
	anchors bool      // blocks without content may use the space that they kept
	// released is space of blocks whose release is not durable: nobody may have it yet.
	released []span
	// retired is space of the BAT or of sector bitmaps, which the log wrote to: nobody
	// may have it before another log begins.
	retired []span
	beyond  int64                // BAT index up to which blocks past the end of the disk may have space
	moving  *markedPages         // pages of a BAT that is being copied; guarded by flushing
	dirty   map[int64]*dirtyPage // by page of the file; content in table.dirty
	pending []pageCopy           // in the log, not yet in place; guarded by flushing
}

// dirtyPage says of a page in table.dirty which change it holds.
type dirtyPage struct {
	version int
	logged  bool // this version is in the log
}

// pageCopy is a version of a page on its way through the log.
type pageCopy struct {
	page    int64
	version int
	b       []byte
}

// fail poisons the layer: after a failed sync nobody knows what is in the file.
func (w *Writer) failLocked(err error) error {
	if w.poison == nil {
		w.poison = ops.Wrapf(err, ops.ErrPoisoned, 0, "vhdx: a sync failed")
	}
	return err
}

// syncLocked makes the file durable or poisons the layer.
func (w *Writer) syncLocked(label string) error {
	if err := w.f.Sync(label); err != nil {
		return w.failLocked(fmt.Errorf("vhdx: %s: %w", label, err))
	}
	return nil
}

// showLocked comes before a change that a guest can see: the file has a
// DataWriteGuid of this opening from then on, so that no child takes other bytes
// for those that it knows.
func (w *Writer) showLocked() error {
	if w.session == nil && !w.newLink {
		return w.beginLocked(ops.NewGUID())
	}
	if err := w.beginLocked(ops.GUID{}); err != nil || w.newLink {
		return err
	}
	return w.linkLocked(ops.NewGUID())
}

// beginLocked begins a session where there is none; link, unless zero, is its
// DataWriteGuid. In this order, each step durable before the next:
//
//	look for overlaps in the BAT                 nothing was changed
//	what was read is durable                     who wrote it may have failed before its sync
//	header with a new FileWriteGuid              same content, same log
//	replay of a dirty log, if there is one       a crash repeats it
//	header with LogGuid zero                     as far as there was a dirty log
//	first entry of a new log, no update in it    no header names that log
//	header with the new LogGuid, DataWriteGuid   log with one entry, nothing to replay
func (w *Writer) beginLocked(link ops.GUID) error {
	if w.poison != nil || w.session != nil {
		return w.poison
	}
	if w.readOnly != "" {
		return ops.Errorf(ops.ErrReadOnly, ops.StatusWrongState, "vhdx: not written: %s", w.readOnly)
	}
	s, err := w.surveyLocked(lookout{})
	if err != nil {
		return err
	}
	return w.beginOnLocked(s, link)
}

// beginOnLocked is beginLocked after the look at the BAT, which answered s.
func (w *Writer) beginOnLocked(s *session, link ops.GUID) (err error) {
	h := w.headers.current
	if !w.newFile {
		// Else a header that nobody synced would stand alone while the other is written.
		if err := w.syncLocked("vhdx.header.found"); err != nil {
			return err
		}
		h.fileWrite = ops.NewGUID()
		if err := w.putHeaderLocked(h, "vhdx.header.file"); err != nil {
			return err
		}
		w.newFile = true
	}
	if err := w.replayLocked(); err != nil {
		return err
	}
	if end := s.space.end(); w.fileSize < end { // the last block ends with the disk, not with its space
		if err := w.growLocked(end); err != nil {
			return err
		}
	}
	if s.log, err = w.startLogLocked(w.fileSize, link); err != nil {
		return err
	}
	w.session, w.newLink = s, w.newLink || !link.IsZero()
	return nil
}

// startLogLocked begins a new log, in a file whose header has none: first its
// first entry, then a header that names it, with link as DataWriteGuid unless
// that is zero. size is that of the file, durable with the first of them.
func (w *Writer) startLogLocked(size int64, link ops.GUID) (*logWriter, error) {
	l := newLogWriter(w.f, w.headers.current, ops.NewGUID())
	if err := l.append(nil, size); err != nil {
		return nil, err
	}
	if err := w.syncLocked("vhdx.log.first"); err != nil {
		return nil, err
	}
	l.durable()
	h := w.headers.current
	h.log, h.logVersion = l.guid, 0
	if !link.IsZero() {
		h.dataWrite = link
	}
	if err := w.putHeaderLocked(h, "vhdx.header.log"); err != nil {
		return nil, err
	}
	return l, nil
}

// linkLocked makes id the DataWriteGuid of a session that began without one. A
// crash leaves the one before or id, with the same content and the same log.
func (w *Writer) linkLocked(id ops.GUID) error {
	h := w.headers.current
	h.dataWrite = id
	if err := w.putHeaderLocked(h, "vhdx.header.link"); err != nil {
		return err
	}
	w.newLink = true
	return nil
}

// putHeaderLocked writes h over the copy that does not count and makes it
// durable: a crash leaves the one or the other ([MS-VHDX] 2.2.2.1).
func (w *Writer) putHeaderLocked(h header, label string) error {
	h.seq = w.headers.current.seq + 1
	if h.seq == 0 {
		return ops.Errorf(ops.ErrReadOnly, 0, "vhdx: the header's sequence number cannot grow any more")
	}
	slot := 1 - w.headers.slot
	if _, err := w.f.WriteAt(h.encode(), headerOffset[slot]); err != nil {
		// As much of it may stand there as makes it count. In a session it names the
		// log that is in use; otherwise what it says of the log is not so any more,
		// and the next session begins by outnumbering it.
		w.headers.current.seq, w.newFile = h.seq, false
		return fmt.Errorf("vhdx: write %s: %w", headerName(slot), err)
	}
	if err := w.syncLocked(label); err != nil {
		return err
	}
	w.headers.current, w.headers.slot = h, slot
	w.mendedLocked(headerNames...)
	return nil
}

// replayLocked carries out a dirty log. Until the header says that the log is
// done with, a crash leaves it to be replayed again from the start.
func (w *Writer) replayLocked() error {
	o := w.overlay
	if o == nil {
		return nil
	}
	if o.real < o.total {
		if err := w.f.Truncate(o.total, "vhdx.replay.grow"); err != nil {
			return fmt.Errorf("vhdx: replay: %w", err)
		}
	}
	for _, z := range o.zeros {
		if err := w.zeroFile(z, true); err != nil {
			return fmt.Errorf("vhdx: replay: %w", err)
		}
	}
	for _, page := range slices.Sorted(maps.Keys(o.pages)) {
		b, err := o.logged(o.pages[page])
		if err != nil {
			return err
		}
		if _, err := w.f.WriteAt(b, page*pageSize); err != nil {
			return fmt.Errorf("vhdx: replay: %w", err)
		}
	}
	if err := w.syncLocked("vhdx.replay"); err != nil {
		return err
	}
	h := w.headers.current
	h.log = ops.GUID{}
	if err := w.putHeaderLocked(h, "vhdx.header.replayed"); err != nil {
		return err
	}
	w.overlay, w.src, w.table.src, w.logState = nil, w.f, w.f, ops.LogClean
	w.mendedLocked(anomalyDirty)
	return nil
}
