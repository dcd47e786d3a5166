package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// LoopOn answers ErrBusy, naming the device, while a loop device of this machine
// lies directly on a file: whoever writes to it does so past every lock. Devices
// that may not be opened are judged by the path that the kernel shows of their
// file, so that an ordinary user is warned too.
//
// A device that a killed vhdfs left there, and that nobody uses, is taken away.
func LoopOn(id ops.FileID) error {
	devices, err := loopsOn(id)
	if err != nil {
		return err
	}
	for _, device := range devices {
		d, ours, err := ourLoop(device)
		if err != nil {
			return err
		}
		if ours && d.Dead && removeLoop(device, false) == nil {
			continue
		}
		return ops.Errorf(ops.ErrBusy, ops.StatusOwned, "loop device %s lies on the file", device)
	}
	return nil
}

// loopsOn are the devices that lie on a file.
func loopsOn(id ops.FileID) ([]string, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var list []string
	for _, shown := range backing {
		device := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(shown)))
		on, err := loopFile(device, shown)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO):
			continue // detached meanwhile, or its file has no name any more
		case mute(err):
			continue
		case err != nil:
			return nil, fmt.Errorf("loop device %s: %w", device, err)
		case on == id:
			list = append(list, device)
		}
	}
	return list, nil
}

// loopFile is the file under a device: what the driver says, else what the path
// in shown leads to.
func loopFile(device, shown string) (ops.FileID, error) {
	fd, err := openRetry(unix.AT_FDCWD, device, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		info, err := unix.IoctlLoopGetStatus64(fd)
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return ops.FileID{}, err
		}
		return ops.FileID{Dev: info.Device, Ino: info.Inode}, nil
	}
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return ops.FileID{}, err
	}
	path, err := os.ReadFile(shown)
	if err != nil {
		return ops.FileID{}, err
	}
	var st unix.Stat_t
	err = retry(func() error { return unix.Stat(string(path[:max(len(path)-1, 0)]), &st) })
	if errors.Is(err, unix.EACCES) {
		return ops.FileID{}, nil // not ours to see, so not ours to write either
	}
	return ops.FileID{Dev: st.Dev, Ino: st.Ino}, err
}
