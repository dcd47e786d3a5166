package vhdx

import (
	"fmt"

	"vhdfs/ops"
)

// restartLog begins another log, so that space which the old one wrote to can be
// given away: some readers replay all that is in the ring, whatever its newest
// entry says of the oldest that is needed. With cut the file then ends with its
// last structure. Each step is durable before the next:
//
//	tables in place                    the log is replayed to no effect
//	header with LogGuid zero           the same content, no log
//	first entry of another log         no header names it
//	header with that LogGuid           the same content; the log knows the nearer end
//	the file cut                       a crash may leave the end: free space
//
// Whoever calls it holds flushing, in a session.
func (w *Writer) restartLog(cut bool) error {
	size, err := w.settle()
	if err != nil {
		return err
	}
	if err := w.switchLog(size, cut); err != nil || !cut {
		return err
	}
	return w.sync("vhdx.cut")
}

// switchLog is restartLog when everything is in place.
func (w *Writer) switchLog(size int64, cut bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.session
	for _, t := range s.retired {
		s.space.release(t)
	}
	end := s.space.end()
	if len(s.retired) == 0 && end >= w.fileSize {
		return nil
	}
	if cut {
		size = min(size, end)
	}
	s.log = nil
	if err := w.renewLogLocked(size); err != nil {
		for _, t := range s.retired {
			s.space.claim(t)
		}
		return err
	}
	for _, t := range s.retired {
		if w.f.Punch(t.off, t.len()) != nil {
			s.stale.claim(t)
		}
		w.unsynced.Store(true)
		s.search = min(s.search, t.off/mib)
	}
	s.retired = nil
	if !cut || end >= w.fileSize {
		return nil
	}
	if err := w.f.Truncate(end, "vhdx.cut"); err != nil {
		return fmt.Errorf("vhdx: cut the file at %#x: %w", end, err)
	}
	w.unsynced.Store(true)
	s.stale.release(span{end, s.space.units * mib}) // what is added again reads as zeros
	w.fileSize = end
	return nil
}

// renewLogLocked begins a log for a session that has none that can be relied on.
// Until a header names the new one, nothing of the old one is needed. size is
// that of the file, which is durable.
func (w *Writer) renewLogLocked(size int64) error {
	// A header that could not be written may stand there, and name a log.
	if h := w.headers.current; !h.log.IsZero() || !w.newFile {
		h.log = ops.GUID{}
		if err := w.putHeaderLocked(h, "vhdx.header.restart"); err != nil {
			return err
		}
		w.newFile = true
	}
	l, err := w.startLogLocked(size, ops.GUID{})
	w.session.log = l
	return err
}

// haveLog begins a log where one could not be begun before. Whoever calls it holds
// flushing, in a session.
func (w *Writer) haveLog(size int64) error {
	if w.session.log != nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.renewLogLocked(size)
}
