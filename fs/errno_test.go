package fs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

func TestErrno(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want syscall.Errno
	}{
		{"nil", nil, 0},
		{"usage", ops.Errorf(ops.ErrUsage, 0, "x"), syscall.EINVAL},
		{"busy, wrapped", fmt.Errorf("y: %w", ops.Errorf(ops.ErrBusy, 0, "x")), syscall.EBUSY},
		{"corrupt", ops.Corruptf(0, "x"), syscall.EUCLEAN},
		{"parent missing", ops.ErrParentMissing, syscall.ENOLINK},
		{"past the end", ops.ErrPastEnd, syscall.ENOSPC},
		{"not exist", fmt.Errorf("z: %w", iofs.ErrNotExist), syscall.ENOENT},
		{"path error", &iofs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, syscall.EACCES},
		{"cancelled", context.Canceled, syscall.ECANCELED},
		{"no space", fmt.Errorf("z: %w", syscall.ENOSPC), syscall.ENOSPC},
		{"unsupported", errors.ErrUnsupported, syscall.EOPNOTSUPP},
		// The kernel reads ENOSYS as "never ask again", and success from then on.
		{"ENOSYS", fmt.Errorf("z: %w", syscall.ENOSYS), syscall.EOPNOTSUPP},
		// The kernel refuses a reply of 512 or more, and its caller hangs for ever.
		{"ENOTSUPP of the kernel", syscall.Errno(524), syscall.EIO},
		{"ERESTARTSYS", syscall.Errno(512), syscall.EIO},
		{"anything", errors.New("x"), syscall.EIO},
	} {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, errno(tt.err)) })
	}
}
