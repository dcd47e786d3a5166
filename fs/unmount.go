package fs

import (
	"errors"
	"fmt"
	"time"

	"vhdfs/ops"
)

// serve answers requests until the mount is gone, then closes what its users
// left open: after a lazy unmount or an abort no RELEASE comes.
func (s *Server) serve() {
	defer close(s.done)
	s.loop.serve(s.cancel)
	s.m.jobs.Close()
	s.m.closeAll()
	if err := s.m.detachAll(true); err != nil {
		s.m.log.WithError(err).Error("devices of a mount that is gone")
	}
	_ = s.loop.dev.close() // of a connection that is gone
}

// Wait returns when nobody can use the mount any more and every image that was
// open through it is flushed and closed.
func (s *Server) Wait() { <-s.done }

// Unmount takes the mount away. ErrBusy when somebody uses it: nothing has
// changed then.
func (s *Server) Unmount() error {
	err := unmount(s.m.opts.MountPoint, false)
	for try := 0; err != nil && try < s.unmountTries(); try++ {
		time.Sleep(waitStep)
		err = unmount(s.m.opts.MountPoint, false)
	}
	if err != nil {
		return ops.Wrapf(err, ops.ErrBusy, 0, "unmount %s", s.m.opts.MountPoint)
	}
	return nil
}

// unmountTries is how often an unmount is asked for again: a file that was just
// closed is in use until the kernel has said so. So is the control file in which
// somebody reads that the service stops: it is waited for a second.
func (s *Server) unmountTries() int {
	const tries = 5
	select {
	case <-s.m.stopped:
		return waitTries
	default:
		return tries
	}
}

// Detach takes the mount out of the tree of names at once. Those who have files
// open there go on using them; [Server.Wait] waits for them.
func (s *Server) Detach() error {
	if err := unmount(s.m.opts.MountPoint, true); err != nil {
		return fmt.Errorf("unmount %s lazily: %w", s.m.opts.MountPoint, err)
	}
	return nil
}

// Shutdown ends the service whoever uses it: running operations are cancelled and
// waited for, what the kernel holds of written bytes is fetched and flushed, the mount
// goes. It reports what could not be made durable. When files are still open
// the mount is only detached; what their users do next fails once the process
// has ended.
func (s *Server) Shutdown() error {
	s.cancel()
	s.m.jobs.Close()
	err := s.m.detachAll(true)
	err = errors.Join(err, s.m.flushAll())
	if s.Unmount() == nil {
		s.Wait()
		return err
	}
	if e := s.Detach(); e != nil {
		return errors.Join(err, e)
	}
	err = errors.Join(err, s.m.flushAll())
	s.m.closeAll()
	return err
}
