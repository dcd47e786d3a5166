package fs

import (
	"io"

	"vhdfs/ops"
)

// maxRemembered bounds the answers that are kept for those who open a control file
// later, in bytes; beside it, the number of images whose last one is known.
const (
	maxRemembered  = 32 << 20
	maxLast        = 16384
	maxLastVerbose = 64 << 10 // bytes of an answer of which state.json shows the fields
)

// controlState is what all opens of a control file share; mount.mu guards it.
type controlState struct {
	waited bool       // a writer waits for an answer
	job    *ops.Job   // the last one; nil: none yet
	last   *spool     // the answer to the last request; nil: none yet
	answer ops.Answer // that answer, without fields
	turn   int        // when it came: a number that grows
}

// stateLocked is what is shared of a control file.
func (m *mount) stateLocked(key controlKey) *controlState {
	s := m.mu.controls[key]
	if s == nil {
		s = &controlState{}
		m.mu.controls[key] = s
	}
	return s
}

// occupy takes a control file for a writer; ErrBusy while another one waits there.
func (m *mount) occupy(key controlKey, image string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stateLocked(key)
	switch {
	case !s.waited:
		s.waited = true
		return nil
	case s.job != nil && !s.job.Status().State.Ended():
		return ops.Errorf(ops.ErrBusy, 0, "%s: job %d, %s, runs already", image, s.job.ID, key.op)
	}
	return ops.Errorf(ops.ErrBusy, 0, "%s: %s runs already", image, key.op)
}

func (m *mount) vacate(key controlKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stateLocked(key).waited = false
}

// runs notes which job the writer of a control file waits for.
func (m *mount) runs(key controlKey, job *ops.Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stateLocked(key).job = job
}

func (m *mount) lastAnswer(key controlKey) *spool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.mu.controls[key]; s != nil {
		return s.last
	}
	return nil
}

// remember renders an answer and makes it the last one of its file and its image,
// unless it only says that a job goes on whose end is known by now.
func (m *mount) remember(key controlKey, a ops.Answer) *spool {
	doc := &spool{}
	if err := writeAnswer(doc, a); err != nil {
		m.log.WithError(err).WithField("operation", a.Operation).Error("the answer cannot be shown")
		doc = &spool{}
		a = ops.Answer{Operation: a.Operation, Job: a.Job, Err: err}
		_ = writeAnswer(doc, a) // strings and numbers, in memory
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stateLocked(key)
	if a.Started && s.last != nil && s.answer.Job == a.Job {
		return doc
	}
	m.mu.turn++
	s.last, s.answer, s.turn = doc, a, m.mu.turn
	s.answer.Fields = nil
	if len(m.mu.lastOps) >= maxLast {
		clear(m.mu.lastOps)
	}
	if doc.size > maxLastVerbose {
		a.Fields = nil
	}
	m.mu.lastOps[key.image] = &a
	m.forgetAnswersLocked()
	return doc
}

// forgetAnswersLocked drops the oldest answers while there are too many.
func (m *mount) forgetAnswersLocked() {
	total := int64(0)
	for _, s := range m.mu.controls {
		if s.last != nil {
			total += s.last.cost()
		}
	}
	for total > maxRemembered {
		var oldest *controlState
		for _, s := range m.mu.controls {
			if s.last != nil && s.turn < m.mu.turn && (oldest == nil || s.turn < oldest.turn) {
				oldest = s
			}
		}
		if oldest == nil {
			return
		}
		total -= oldest.last.cost()
		oldest.last = nil // a file of its own goes with the last handle that shows it
	}
}

func writeAnswer(w io.Writer, a ops.Answer) error {
	if err := a.WriteJSON(w); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// cost is what a remembered answer is charged with, in bytes: one in a file as
// much as the longest in memory.
func (s *spool) cost() int64 {
	if s.file != nil {
		return spoolMemory
	}
	return int64(cap(s.mem)) + 1024
}

// copyTo writes all of a document.
func (s *spool) copyTo(w io.Writer) error {
	_, err := io.Copy(w, io.NewSectionReader(s, 0, s.size))
	return err
}
