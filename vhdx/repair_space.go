package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"vhdfs/ops"
)

// surveyAgain finds out which space is free when entries gave some up that was not
// theirs.
func (w *Writer) surveyAgain() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, err := w.surveyLocked(lookout{})
	if err != nil {
		return err
	}
	s := w.session
	for _, t := range slices.Concat(s.released, s.retired) {
		now.space.claim(t)
	}
	s.space, s.stale, s.anchors, s.search = now.space, now.stale, now.anchors, 0
	return nil
}

// space gives back what the host stores of space that belongs to nobody, and cuts
// off the end of the file.
func (m *mending) space(ctx context.Context) error {
	w := m.w
	free, err := w.freeSpace()
	if err != nil {
		return err
	}
	var leaks []span
	stored := int64(0)
	for at := int64(0); at < free.units; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var s span
		if s, at = free.freeRun(at); s.len() == 0 {
			break
		}
		n, err := w.storedIn(s)
		if err != nil {
			return err
		}
		if stored += n; n > 0 {
			leaks = append(leaks, s)
		}
	}
	w.mu.RLock()
	tail := max(0, w.fileSize-free.end())
	w.mu.RUnlock()
	if stored == 0 && tail == 0 {
		return nil
	}
	err = m.report(ops.Anomaly{
		Name: "vhdx.space.leaked", Severity: ops.Note, Where: "file",
		Text: fmt.Sprintf("%d bytes that the host stores belong to no block and no structure, %d of the file follow its last one", stored, tail),
	})
	if err != nil {
		return err
	}
	if err := m.begin(); err != nil {
		return err
	}
	for _, s := range leaks {
		if err := w.punchFree(s); err != nil {
			return err
		}
	}
	w.flushing.Lock()
	defer w.flushing.Unlock()
	return w.restartLog(true)
}

// freeSpace is a map of what belongs to somebody.
func (w *Writer) freeSpace() (*spaceMap, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poison != nil {
		return nil, w.poison
	}
	s, err := w.session, error(nil)
	if s == nil {
		s, err = w.surveyLocked(lookout{})
	}
	if err != nil {
		return nil, err
	}
	return s.space.clone(), nil
}

// storedIn is how much of a part of the file the host stores; 0 where it cannot
// tell, or the log has it.
func (w *Writer) storedIn(s span) (n int64, err error) {
	for at := s.off; at < s.end; {
		data, hole, err := w.f.NextData(at)
		if err == io.EOF || errors.Is(err, errors.ErrUnsupported) || err == nil && data >= s.end {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("vhdx: look for leaked space: %w", err)
		}
		n += min(hole, s.end) - max(data, at)
		at = max(hole, at+1)
	}
	return n, nil
}

// punchFree gives back those mebibytes of a part of the file that are free still.
func (w *Writer) punchFree(s span) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for at := s.off / mib; at*mib < s.end; {
		t, next := w.session.space.freeRun(at)
		at = next
		if t.end = min(t.end, s.end, w.fileSize); t.len() <= 0 || t.off >= s.end {
			return nil
		}
		err := w.f.Punch(t.off, t.len())
		w.unsynced.Store(true)
		if errors.Is(err, errors.ErrUnsupported) {
			return nil // it is used again, and cleared first
		}
		if err != nil {
			return fmt.Errorf("vhdx: punch %d bytes of free space at %#x: %w", t.len(), t.off, err)
		}
		w.session.stale.release(t)
	}
	return nil
}
