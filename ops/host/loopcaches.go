package host

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// LoopCaches are the loop devices of this machine, as [ops.Caches] of the files
// that they lie on. A device that may not be opened is left out, unless the path
// that the kernel shows of its file says that it is concerned.
type LoopCaches struct{}

var _ ops.Caches = LoopCaches{}

// Launder writes back what programs wrote to a device. What a file system on it
// still holds is not written yet.
func (LoopCaches) Launder(id ops.FileID) error {
	return eachLoop(id, "write back", unix.Fsync)
}

// Replaced drops what devices have cached, once they have written it back.
func (LoopCaches) Replaced(id ops.FileID) error {
	return eachLoop(id, "drop the cache of", func(fd int) error { return unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0) })
}

// Resized gives devices the size of their file.
func (LoopCaches) Resized(id ops.FileID) error {
	return eachLoop(id, "set the size of", func(fd int) error { return unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0) })
}

// eachLoop calls do with every device over a file. Opened for reading it wakes
// nobody who waits for devices to change; who may not do it that way may when it
// is open for writing.
func eachLoop(id ops.FileID, what string, do func(fd int) error) error {
	devices, err := loopsOn(id)
	if err != nil {
		return err
	}
	for _, device := range devices {
		err := withDevice(device, unix.O_RDONLY, do)
		if errors.Is(err, unix.EPERM) {
			err = withDevice(device, unix.O_RDWR, do)
		}
		switch {
		case errors.Is(err, unix.ENXIO):
		case err != nil:
			return fmt.Errorf("cannot %s loop device %s: %w", what, device, err)
		}
	}
	return nil
}

func withDevice(device string, flags int, do func(fd int) error) error {
	fd, err := openRetry(unix.AT_FDCWD, device, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(retry(func() error { return do(fd) }), unix.Close(fd))
}
