package hostile

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

var errUnsupported = errors.ErrUnsupported

func mkfifo(path string) error { return unix.Mkfifo(path, 0o644) }

// listenOn leaves a socket with no one behind it.
func listenOn(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	// The path of a socket is short: bind to it from its own folder.
	dir, base := filepath.Split(path)
	old, err := unix.Getwd()
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	err = errors.Join(unix.Chdir(dir), unix.Bind(fd, &unix.SockaddrUnix{Name: base}), unix.Chdir(old))
	return errors.Join(err, unix.Close(fd))
}
