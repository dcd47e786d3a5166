package fs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// readAheadKB is how much the kernel reads ahead of a sequential reader: a
// request of the greatest size for each reader of the daemon.
const readAheadKB = steadyReaders * maxRequest >> 10

// tuneBDI sets the write-back parameters of the mount with device number dev.
// strict_limit keeps a FUSE mount to a fraction of the dirty limit, which halves
// random buffered writes. Only root may, and nothing depends on it.
func tuneBDI(dev uint64) error {
	dir := fmt.Sprintf("/sys/class/bdi/%d:%d/", unix.Major(dev), unix.Minor(dev))
	var errs []error // older kernels have no strict_limit
	for _, p := range []struct{ name, value string }{
		{"strict_limit", "0"},
		{"read_ahead_kb", fmt.Sprint(readAheadKB)},
	} {
		errs = append(errs, os.WriteFile(dir+p.name, []byte(p.value), 0))
	}
	return errors.Join(errs...)
}
