package fs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"vhdfs/ops"
)

// Stopped is closed when a request to stop the service was answered with success:
// every job has ended and every image is flushed. The mount is still there, so that
// the answer can be read; [Server.Shutdown] takes it away.
func (s *Server) Stopped() <-chan struct{} { return s.m.stopped }

// stop carries a request to stop out, as [ops.StopTerms] say. From the check on nobody
// opens raw any more and no job begins; a stop that fails takes that back, but by force
// the service ends all the same: the answer tells what was lost.
func (m *mount) stop(_ context.Context, t ops.StopTerms) error {
	look := t
	look.Dry = true
	if err := m.beginStop(look); err != nil || t.Dry {
		return err
	}
	if err := m.detachAll(t.Force); err != nil && !t.Force {
		return fmt.Errorf("not stopped: %w", err)
	}
	if err := m.beginStop(t); err != nil {
		m.attachAgain()
		return err
	}
	m.jobs.Close()
	err := m.flushAll()
	if err != nil && !t.Force {
		m.endStop()
		return fmt.Errorf("not stopped: %w", err)
	}
	close(m.stopped)
	if err != nil {
		return fmt.Errorf("stopped, with a loss: %w", err)
	}
	return nil
}

// beginStop looks whether the service may end, and waits a moment for handles that
// were closed and are not released yet.
func (m *mount) beginStop(t ops.StopTerms) error {
	for try := 0; ; try++ {
		open, err := m.tryBeginStop(t)
		if err != nil || len(open) == 0 {
			return err
		}
		if try == waitTries {
			return ops.Errorf(ops.ErrBusy, 0, "%s; force=true stops all the same", describeOpen(open))
		}
		time.Sleep(waitStep)
	}
}

// tryBeginStop answers the images that are in the way.
func (m *mount) tryBeginStop(t ops.StopTerms) (open []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.stopping {
		return nil, errStopping
	}
	for _, d := range m.mu.disks {
		for _, v := range d.windows {
			if v.usedByPrograms() {
				open = append(open, v.names.image.Path())
			}
		}
	}
	if len(open) > 0 && !t.Force {
		slices.Sort(open)
		return slices.Compact(open), nil
	}
	m.mu.stopping = !t.Dry
	return nil, nil
}

// usedByPrograms tells whether anybody but the device of an attached image has the
// view open: devices are taken away before the service ends.
func (v *pages) usedByPrograms() bool {
	return v.pending > 0 || slices.ContainsFunc(v.handles, func(h *contentHandle) bool { return !h.device })
}

// endStop takes beginStop back.
func (m *mount) endStop() {
	m.attachAgain()
	m.jobs.Reopen()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.stopping = false
}

// errStopping is the answer to whoever comes too late.
var errStopping = ops.Errorf(ops.ErrBusy, 0, "the service stops")

// describeOpen names a few of the images that are open.
func describeOpen(open []string) string {
	const most = 3
	names := strings.Join(open[:min(len(open), most)], ", ")
	if more := len(open) - most; more > 0 {
		return fmt.Sprintf("raw or partitions of %s and %d more are open", names, more)
	}
	return "raw or partitions are open of " + names
}
