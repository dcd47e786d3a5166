package fs

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// Caches of the bytes of an image, from the top: block devices of others over its
// raw file, and the kernel's pages of raw and of partitions. A mount is the
// [ops.Caches] of its library. All of what is asked of the kernel's side of the
// mount runs apart, and never in a request for the same file.
var _ ops.Caches = (*mount)(nil)

// Launder writes back what the kernel holds of a disk, in every view of it.
func (m *mount) Launder(id ops.FileID) error {
	for _, h := range m.opened(id) {
		err := apart(func() error { return errors.Join(m.devices().Launder(h.node.ownID()), h.node.writeBack(h.opened)) })
		if err != nil && !m.ended(h) {
			return fmt.Errorf("writing back what programs wrote to %s: %w", h.opened.Path(), err)
		}
	}
	return nil
}

// writeBack returns when every page that was dirty has been written. It opens the
// file under the name under which a program has it open.
func (c *content) writeBack(opened ops.Ref) error {
	fd, err := c.openOwn(opened, unix.O_RDONLY)
	if err != nil {
		return err
	}
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return errors.Join(untilDone(func() error { return unix.SyncFileRange(fd, 0, 0, all) }), unix.Close(fd))
}

// Replaced drops the pages of every view of a disk, and what devices over it have
// cached. NotifyContent needs the mount's device and cannot run apart; like
// dropLost it waits for writes under way, though not for ever.
func (m *mount) Replaced(id ops.FileID) error {
	for _, h := range m.opened(id) {
		for try := 0; h.pages.lost.writes.Load() > 0 && try < waitTries; try++ {
			time.Sleep(waitStep)
		}
		if no := h.node.NotifyContent(0, 0); no != 0 && no != syscall.ENOENT {
			return fmt.Errorf("dropping what is cached of %s: %w", h.opened.Path(), no)
		}
		if err := apart(func() error { return m.devices().Replaced(h.node.ownID()) }); err != nil {
			return err
		}
	}
	return nil
}

// Resized makes the kernel take the size of the disk for raw, and devices over it
// the size of raw. A SETATTR that changes the size does that itself: see grow.
func (m *mount) Resized(id ops.FileID) error {
	for _, h := range m.opened(id) {
		if h.node.window.part > 0 || m.isGrowing(h.pages) {
			continue
		}
		if err := h.node.takeSize(h.opened); err != nil && !m.ended(h) {
			return err
		}
	}
	return nil
}

func (c *content) takeSize(opened ops.Ref) error {
	return apart(func() error {
		if err := c.truncateOwn(opened); err != nil {
			return fmt.Errorf("setting the size of %s: %w", opened.Path(), err)
		}
		return c.m.devices().Resized(c.ownID())
	})
}

// ownID is what a device over the file says that it lies on.
func (c *content) ownID() ops.FileID {
	return ops.FileID{Dev: c.m.dev, Ino: c.StableAttr().Ino}
}

// opened is one handle of each view of a disk that is open.
func (m *mount) opened(id ops.FileID) []*contentHandle {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.mu.disks[id]
	if d == nil {
		return nil
	}
	var list []*contentHandle
	for _, v := range d.windows {
		if len(v.handles) > 0 {
			list = append(list, v.handles[0])
		}
	}
	return list
}

// ended tells whether the last handle of the view of h was closed since [mount.opened],
// which wrote back what was dirty: who opens it next is told its size anew.
func (m *mount) ended(h *contentHandle) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := h.node.viewLocked()
	return v == nil || len(v.handles) == 0
}

func (m *mount) devices() ops.Caches {
	if m.opts.Devices != nil {
		return m.opts.Devices
	}
	return noDevices{}
}

// noDevices is a mount over whose files nobody looks for devices.
type noDevices struct{}

func (noDevices) Launder(ops.FileID) error  { return nil }
func (noDevices) Replaced(ops.FileID) error { return nil }
func (noDevices) Resized(ops.FileID) error  { return nil }

// truncateOwn sets the size of this very file of the mount to what it is. It is
// read again when it has changed meanwhile: such a request never resizes.
func (c *content) truncateOwn(opened ops.Ref) error {
	fd, err := c.openOwn(opened, unix.O_PATH)
	if err != nil {
		return err
	}
	for range waitTries {
		err = untilDone(func() error { return unix.Truncate(threadFile(fd), c.size()) })
		if err != unix.EAGAIN {
			break
		}
	}
	return errors.Join(err, unix.Close(fd))
}

// openOwn opens this very file of the mount. The path may lead elsewhere by now:
// nothing outside of this mount is touched.
func (c *content) openOwn(opened ops.Ref, flags int) (int, error) {
	name := "raw"
	if c.window.part > 0 {
		name = fmt.Sprintf("partitions/p%d", c.window.part)
	}
	fd, err := unix.Open(filepath.Join(c.m.opts.MountPoint, opened.Name, name), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Dev != c.m.dev || st.Ino != c.StableAttr().Ino) {
		err = unix.ESTALE
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// untilDone repeats what a signal interrupted.
func untilDone(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
