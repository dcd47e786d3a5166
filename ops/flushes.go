package ops

import "sync"

// flushes lets concurrent flushes share one: a call that comes while one runs
// waits for the next, which begins after it and so covers its writes.
type flushes struct {
	mu struct {
		sync.Mutex
		running, next *flushRound
	}
}

type flushRound struct {
	done chan struct{}
	err  error // valid when done is closed
}

// do runs flush, or waits for a run that begins after the call.
func (s *flushes) do(flush func() error) error {
	s.mu.Lock()
	if s.mu.running == nil {
		r := &flushRound{done: make(chan struct{})}
		s.mu.running = r
		s.mu.Unlock()
		return s.run(r, flush)
	}
	r, leads := s.mu.next, false
	if r == nil {
		r, leads = &flushRound{done: make(chan struct{})}, true
		s.mu.next = r
	}
	before := s.mu.running
	s.mu.Unlock()
	if !leads {
		<-r.done
		return r.err
	}
	<-before.done
	s.mu.Lock()
	s.mu.running, s.mu.next = r, nil
	s.mu.Unlock()
	return s.run(r, flush)
}

func (s *flushes) run(r *flushRound, flush func() error) error {
	defer func() {
		s.mu.Lock()
		if s.mu.next == nil {
			s.mu.running = nil
		}
		s.mu.Unlock()
		close(r.done)
	}()
	r.err = ErrPoisoned // for those who wait, when flush panics
	r.err = flush()
	return r.err
}
