package fs

import (
	"syscall"

	"vhdfs/ops"
)

// errno is what a request answers for err. The mapping is [ops.Classify] alone:
// go-fuse's own turns what it does not know into ENOTSUP or ENOSYS, and ENOSYS
// makes the kernel stop asking and report success ever after.
func errno(err error) syscall.Errno { return ops.Classify(err).Errno }
