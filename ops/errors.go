package ops

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"syscall"
)

// The classes of error that a caller can act on. A new way to be corrupt is a
// new message, not a new class; [Classify] gives a class its errno, the
// service's return value and the exit code of the command line.
var (
	ErrUsage          = errors.New("invalid parameter")
	ErrTooLong        = errors.New("request is too long")
	ErrBusy           = errors.New("in use")
	ErrReadOnly       = errors.New("read-only")
	ErrCorrupt        = errors.New("image is corrupt")
	ErrParentMissing  = errors.New("parent not found")
	ErrParentMismatch = errors.New("parent is not the one recorded")
	ErrChanged        = errors.New("file changed underneath")
	ErrCycle          = errors.New("chain contains itself")
	ErrForbidden      = errors.New("not allowed")
	ErrNoTracking     = errors.New("no change tracking data")
	ErrNoMemory       = errors.New("memory limit reached")
	ErrPoisoned       = errors.New("an earlier write or flush failed; reopen the image")
	ErrPastEnd        = errors.New("past the end of the disk")
	ErrNotAttached    = errors.New("not attached")
	ErrState          = errors.New("the service has no such state")
)

// errUnrecorded: nobody can tell who the parent is. It is a kind of the error that
// it wraps, with advice of its own.
var errUnrecorded = errors.New("what is recorded of it cannot be read")

// errCancelled is [context.Canceled] in the words of a person.
var errCancelled error = cancelled{}

type cancelled struct{}

func (cancelled) Error() string        { return "cancelled" }
func (cancelled) Is(target error) bool { return target == context.Canceled }

// ErrBackup is an [ErrCorrupt] of a backup in place of an image.
var ErrBackup error = damaged{}

type damaged struct{}

func (damaged) Error() string        { return "backup is damaged" }
func (damaged) Is(target error) bool { return target == ErrCorrupt }

// StatusCode is the service's JobCompletionStatusCode: an HRESULT, 0 when
// there is none to give.
type StatusCode uint32

// Status codes of the virtual disk service that vhdfs answers with.
const (
	StatusFooterMissing      StatusCode = 0xC03A0001
	StatusFooterChecksum     StatusCode = 0xC03A0002
	StatusFooterCorrupt      StatusCode = 0xC03A0003
	StatusFormatUnknown      StatusCode = 0xC03A0004
	StatusVersionUnsupported StatusCode = 0xC03A0005
	StatusSparseChecksum     StatusCode = 0xC03A0006
	StatusSparseVersion      StatusCode = 0xC03A0007
	StatusSparseCorrupt      StatusCode = 0xC03A0008
	StatusAllocFailed        StatusCode = 0xC03A0009
	StatusBATCorrupt         StatusCode = 0xC03A000A
	StatusBlockSize          StatusCode = 0xC03A000B
	StatusBitmapMismatch     StatusCode = 0xC03A000C
	StatusParentNotFound     StatusCode = 0xC03A000D
	StatusIDMismatch         StatusCode = 0xC03A000E
	StatusTimeMismatch       StatusCode = 0xC03A000F
	StatusMetadataRead       StatusCode = 0xC03A0010
	StatusMetadataWrite      StatusCode = 0xC03A0011
	StatusSizeInvalid        StatusCode = 0xC03A0012
	StatusFileSizeInvalid    StatusCode = 0xC03A0013
	StatusNotVirtualDisk     StatusCode = 0xC03A0015
	StatusParentDenied       StatusCode = 0xC03A0016
	StatusSizeMismatch       StatusCode = 0xC03A0017
	StatusCycle              StatusCode = 0xC03A0018
	StatusParentOpen         StatusCode = 0xC03A0019
	StatusWrongType          StatusCode = 0xC03A001B
	StatusWrongState         StatusCode = 0xC03A001C
	StatusSectorSize         StatusCode = 0xC03A001D
	StatusOwned              StatusCode = 0xC03A001E
	StatusTruncates          StatusCode = 0xC03A0025
	StatusMinimumUnknown     StatusCode = 0xC03A0026
	StatusAtMinimum          StatusCode = 0xC03A0027
)

// Error is a failure with its class and, where the service has one, its status
// code. The message is a sentence part that names the structure, its index and
// the number that is wrong.
type Error struct {
	Class  error
	Status StatusCode
	Msg    string
	Cause  error // nil, or what a lower layer answered
}

func (e *Error) Error() string {
	s := e.Msg + ": " + e.Class.Error()
	if e.Cause != nil {
		s += " (" + e.Cause.Error() + ")"
	}
	return s
}

// Unwrap gives errors.Is and errors.As the class and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause != nil {
		return []error{e.Class, e.Cause}
	}
	return []error{e.Class}
}

// Errorf makes an [Error]. A trailing error argument matched by %w is not
// special here: pass a cause with [Wrapf].
func Errorf(class error, status StatusCode, format string, args ...any) error {
	return &Error{Class: class, Status: status, Msg: fmt.Sprintf(format, args...)}
}

// Wrapf is [Errorf] with the error that was underneath.
func Wrapf(cause, class error, status StatusCode, format string, args ...any) error {
	return &Error{Class: class, Status: status, Msg: fmt.Sprintf(format, args...), Cause: cause}
}

// Corruptf says that a structure of an image is wrong.
func Corruptf(status StatusCode, format string, args ...any) error {
	return Errorf(ErrCorrupt, status, format, args...)
}

// StatusOf is the innermost-first status code in err's tree, 0 without one.
func StatusOf(err error) StatusCode {
	var e *Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// Class is what the outside sees of an error.
type Class struct {
	Err    error         // matched by errors.Is
	Errno  syscall.Errno // answered by the file system
	Return uint32        // the service's ReturnValue
	Exit   int           // exit code of the command line; documented in docs/exit-codes.md
}

// Classes is the one table from errors to errno, ReturnValue and exit code.
// The first row that matches counts.
var Classes = []Class{
	{ErrUsage, syscall.EINVAL, 32773, 2},
	{ErrTooLong, syscall.E2BIG, 32773, 2},
	{ErrCycle, syscall.ELOOP, 32787, 5},
	{ErrParentMissing, syscall.ENOLINK, 32779, 5},
	{ErrParentMismatch, syscall.ESTALE, 32775, 5},
	{ErrChanged, syscall.ESTALE, 32775, 6},
	{ErrBusy, syscall.EBUSY, 32774, 6},
	{ErrCorrupt, syscall.EUCLEAN, 32768, 4},
	{ErrReadOnly, syscall.EROFS, 32768, 7},
	{ErrForbidden, syscall.EPERM, 32769, 7},
	{ErrNoTracking, syscall.ENODATA, 32768, 8},
	{ErrNoMemory, syscall.ENOMEM, 32778, 1},
	{ErrPoisoned, syscall.EIO, 32768, 1},
	{ErrPastEnd, syscall.ENOSPC, 32768, 1},
	{context.Canceled, syscall.ECANCELED, 32775, 9},
	{errors.ErrUnsupported, syscall.EOPNOTSUPP, 32770, 8},
	{ErrNotAttached, syscall.ENOENT, 32789, 3},
	{ErrState, syscall.EOPNOTSUPP, 1, 8},
	{iofs.ErrExist, syscall.EEXIST, 32773, 2},
	{iofs.ErrNotExist, syscall.ENOENT, 32779, 3},
	{syscall.EPERM, syscall.EPERM, 32769, 7},
	{iofs.ErrPermission, syscall.EACCES, 32769, 7},
	{syscall.EBUSY, syscall.EBUSY, 32774, 6},
	{syscall.EROFS, syscall.EROFS, 32768, 7},
	{syscall.ENOMEM, syscall.ENOMEM, 32778, 1},
}

// Classify gives what the outside sees of err: a row of [Classes], else the
// errno in err's tree, else EIO. An errno that the kernel would misread (ENOSYS
// means «never ask again» to it, 512 and above hang the caller) becomes EIO.
func Classify(err error) Class {
	if err == nil {
		return Class{}
	}
	for _, c := range Classes {
		if errors.Is(err, c.Err) {
			return c
		}
	}
	c := Class{Err: err, Errno: syscall.EIO, Return: 32768, Exit: 1}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 && errno < 512 && errno != syscall.ENOSYS {
		c.Errno = errno
	}
	return c
}
