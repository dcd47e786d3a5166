package ops

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a user sees of each kind of failure: the errno of the write, the number of
// the service, the code of the command.
func TestClassify(t *testing.T) {
	host := func(no syscall.Errno) error {
		return fmt.Errorf("flush: %w", &iofs.PathError{Op: "sync", Path: "/vms/a", Err: no})
	}
	for _, tt := range []struct {
		name   string
		err    error
		errno  syscall.Errno
		symbol string
		value  uint32
		exit   int
	}{
		{"no error", nil, 0, "", 0, 0},
		{"a parameter", Errorf(ErrUsage, StatusSizeInvalid, "size"), syscall.EINVAL, "EINVAL", 32773, 2},
		{"too long", Errorf(ErrTooLong, 0, "request"), syscall.E2BIG, "E2BIG", 32773, 2},
		{"in use", Errorf(ErrBusy, StatusOwned, "a"), syscall.EBUSY, "EBUSY", 32774, 6},
		{"an operation runs", Errorf(errOperates, StatusOwned, "a"), syscall.EBUSY, "EBUSY", 32774, 6},
		{"in use on the host", host(syscall.EBUSY), syscall.EBUSY, "EBUSY", 32774, 6},
		{"this format cannot", Errorf(errors.ErrUnsupported, StatusWrongType, "a"), syscall.EOPNOTSUPP, "EOPNOTSUPP", 32770, 8},
		{"the host cannot", host(syscall.EOPNOTSUPP), syscall.EOPNOTSUPP, "EOPNOTSUPP", 32770, 8},
		{"a state of the service", Errorf(ErrState, 0, "9"), syscall.EOPNOTSUPP, "EOPNOTSUPP", 1, 8},
		{"the target exists", host(syscall.EEXIST), syscall.EEXIST, "EEXIST", 32773, 2},
		{"no such image", host(syscall.ENOENT), syscall.ENOENT, "ENOENT", 32779, 3},
		{"nothing is attached", Errorf(ErrNotAttached, 0, "a"), syscall.ENOENT, "ENOENT", 32789, 3},
		{"no parent", Errorf(ErrParentMissing, StatusParentNotFound, "b"), syscall.ENOLINK, "ENOLINK", 32779, 5},
		{"another parent", Errorf(ErrParentMismatch, StatusIDMismatch, "b"), syscall.ESTALE, "ESTALE", 32775, 5},
		{"changed underneath", Errorf(ErrChanged, 0, "a"), syscall.ESTALE, "ESTALE", 32775, 6},
		{"a loop", Errorf(ErrCycle, StatusCycle, "a"), syscall.ELOOP, "ELOOP", 32787, 5},
		{"corrupt", Corruptf(StatusBATCorrupt, "a"), syscall.EUCLEAN, "EUCLEAN", 32768, 4},
		{"vhdfs forbids", Errorf(ErrForbidden, 0, "a"), syscall.EPERM, "EPERM", 32769, 7},
		{"the host forbids", host(syscall.EPERM), syscall.EPERM, "EPERM", 32769, 7},
		{"no access", host(syscall.EACCES), syscall.EACCES, "EACCES", 32769, 7},
		{"no space", host(syscall.ENOSPC), syscall.ENOSPC, "ENOSPC", 32768, 1},
		{"no space, seen first", Plan{Need: 2, Free: 1}.Enough("a"), syscall.ENOSPC, "ENOSPC", 32768, 1},
		{"past the end", Errorf(ErrPastEnd, 0, "a"), syscall.ENOSPC, "ENOSPC", 32768, 1},
		{"quota", host(syscall.EDQUOT), syscall.EDQUOT, "EDQUOT", 32768, 1},
		{"too large a file", host(syscall.EFBIG), syscall.EFBIG, "EFBIG", 32768, 1},
		{"read-only", Errorf(ErrReadOnly, 0, "a"), syscall.EROFS, "EROFS", 32768, 7},
		{"a read-only host", host(syscall.EROFS), syscall.EROFS, "EROFS", 32768, 7},
		{"the disk fails", host(syscall.EIO), syscall.EIO, "EIO", 32768, 1},
		{"poisoned", Errorf(ErrPoisoned, 0, "a"), syscall.EIO, "EIO", 32768, 1},
		{"poisoned by a full disk", Wrapf(host(syscall.ENOSPC), ErrPoisoned, 0, "a"), syscall.EIO, "EIO", 32768, 1},
		{"cancelled", fmt.Errorf("copy: %w", context.Canceled), syscall.ECANCELED, "ECANCELED", 32775, 9},
		{"no tracking data", Errorf(ErrNoTracking, 0xC03A0029, "a"), syscall.ENODATA, "ENODATA", 32768, 8},
		{"memory", Errorf(ErrNoMemory, 0, "a"), syscall.ENOMEM, "ENOMEM", 32778, 1},
		{"memory of the host", host(syscall.ENOMEM), syscall.ENOMEM, "ENOMEM", 32778, 1},
		{"anything", errors.New("a"), syscall.EIO, "EIO", 32768, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Classify(tt.err)
			require.Equal(t, tt.errno, c.Errno)
			require.Equal(t, tt.value, c.Return)
			require.Equal(t, tt.exit, c.Exit)
			a := Answer{Err: tt.err}
			require.Equal(t, tt.symbol, Errno(tt.err))
			require.Equal(t, tt.value, a.ReturnValue())
		})
	}
}

// No row hides another one: each is what its own error is classified as.
func TestEveryRowIsReached(t *testing.T) {
	for _, c := range Classes {
		require.Equal(t, c, Classify(fmt.Errorf("wrapped: %w", c.Err)))
	}
}
