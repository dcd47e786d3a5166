package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// serve answers requests until the mount is gone, then closes what its users
// left open: after a lazy unmount or an abort no RELEASE comes.
func (s *Server) serve() {
	defer close(s.done)
	s.fuse.Serve()
	s.cancel()
	s.m.jobs.Close()
	s.m.closeAll()
}

// Wait returns when nobody can use the mount any more and every image that was
// open through it is flushed and closed.
func (s *Server) Wait() { <-s.done }

// Unmount takes the mount away. ErrBusy when somebody uses it: nothing has
// changed then.
func (s *Server) Unmount() error {
	if err := s.fuse.Unmount(); err != nil {
		return ops.Wrapf(err, ops.ErrBusy, 0, "unmount %s", s.m.opts.MountPoint)
	}
	return nil
}

// Detach takes the mount out of the tree of names at once. Those who have files
// open there go on using them; [Server.Wait] waits for them.
func (s *Server) Detach() error {
	mp := s.m.opts.MountPoint
	if os.Geteuid() == 0 {
		if err := unix.Unmount(mp, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s lazily: %w", mp, err)
		}
		return nil
	}
	out, err := exec.Command("fusermount3", "-u", "-z", "--", mp).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unmount %s lazily: %w: %q", mp, err, out)
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
	err := s.m.flushAll()
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
