package view

import (
	"errors"
	"syscall"

	"vhdfs/ops"
)

// JobError is Msvm_Error.
type JobError struct {
	Message                  string
	MessageID                string // the errno's symbol
	MessageArguments         []string
	OwningEntity             string
	ErrorSource              string // the image
	ErrorSourceFormat        uint16
	OtherErrorSourceFormat   *string
	ErrorType                uint16
	OtherErrorType           *string
	PerceivedSeverity        uint16
	ProbableCause            uint16
	ProbableCauseDescription *string
	RecommendedActions       []string
	CIMStatusCode            uint32
	CIMStatusCodeDescription string
}

// CIM_Error.ErrorType, PerceivedSeverity, ProbableCause and CIMStatusCode.
const (
	typeOther, typeSoftware, typeHardware, typeSecurity  = 1, 4, 5, 7
	typeOversubscribed, typeUnavailable, typeUnsupported = 8, 9, 10

	severityLow, severityMedium, severityHigh = 2, 3, 4

	causeUnknown, causeCorrupt, causeFormat, causeMemory = 0, 10, 18, 33
	causeStorage, causeUnauthorized, causeMissing        = 50, 65, 73

	cimFailed, cimDenied, cimParameter, cimNotFound, cimUnsupported, cimExists = 1, 2, 4, 6, 7, 11
)

// kind is how CIM_Error classifies an errno.
type kind struct {
	errorType, severity, cause uint16
	status                     uint32
	statusText                 string
}

var kinds = map[syscall.Errno]kind{
	syscall.EINVAL:     {typeSoftware, severityMedium, causeUnknown, cimParameter, "invalid parameter"},
	syscall.E2BIG:      {typeSoftware, severityMedium, causeUnknown, cimParameter, "invalid parameter"},
	syscall.EBUSY:      {typeUnavailable, severityMedium, causeUnknown, cimFailed, "failed"},
	syscall.EOPNOTSUPP: {typeUnsupported, severityMedium, causeUnknown, cimUnsupported, "not supported"},
	syscall.EEXIST:     {typeSoftware, severityMedium, causeUnknown, cimExists, "already exists"},
	syscall.ENOENT:     {typeSoftware, severityMedium, causeMissing, cimNotFound, "not found"},
	syscall.ENOLINK:    {typeSoftware, severityHigh, causeMissing, cimNotFound, "not found"},
	syscall.ESTALE:     {typeSoftware, severityHigh, causeCorrupt, cimFailed, "failed"},
	syscall.ELOOP:      {typeSoftware, severityHigh, causeFormat, cimFailed, "failed"},
	syscall.EUCLEAN:    {typeSoftware, severityHigh, causeFormat, cimFailed, "failed"},
	syscall.EACCES:     {typeSecurity, severityMedium, causeUnauthorized, cimDenied, "access denied"},
	syscall.EPERM:      {typeSecurity, severityMedium, causeUnauthorized, cimDenied, "access denied"},
	syscall.ENOSPC:     {typeOversubscribed, severityHigh, causeStorage, cimFailed, "failed"},
	syscall.EDQUOT:     {typeOversubscribed, severityHigh, causeStorage, cimFailed, "failed"},
	syscall.EFBIG:      {typeOversubscribed, severityHigh, causeStorage, cimFailed, "failed"},
	syscall.EROFS:      {typeSoftware, severityMedium, causeUnknown, cimFailed, "failed"},
	syscall.ENODATA:    {typeUnavailable, severityMedium, causeMissing, cimFailed, "failed"},
	syscall.EIO:        {typeHardware, severityHigh, causeUnknown, cimFailed, "failed"},
	syscall.ENOMEM:     {typeOversubscribed, severityMedium, causeMemory, cimFailed, "failed"},
	syscall.ECANCELED:  {typeOther, severityLow, causeUnknown, cimFailed, "failed"},
}

// NewJobErrors is what GetErrorEx answers about a job: nil while it runs and when
// it succeeded.
func NewJobErrors(j *ops.Job) []JobError {
	s := j.Status()
	if !s.State.Ended() || s.Answer.Err == nil {
		return nil
	}
	var list []JobError
	for _, err := range apart(s.Answer.Err) {
		list = append(list, newJobError(j.Image, err))
	}
	return list
}

func newJobError(image string, err error) JobError {
	k, ok := kinds[ops.Classify(err).Errno]
	if !ok {
		k = kind{typeSoftware, severityMedium, causeUnknown, cimFailed, "failed"}
	}
	e := JobError{
		Message:                  ops.Sentence(err),
		MessageID:                ops.Errno(err),
		MessageArguments:         []string{},
		OwningEntity:             "vhdfs",
		ErrorSource:              image,
		ErrorType:                k.errorType,
		PerceivedSeverity:        k.severity,
		ProbableCause:            k.cause,
		RecommendedActions:       []string{},
		CIMStatusCode:            k.status,
		CIMStatusCodeDescription: k.statusText,
	}
	if a := ops.Advice(err); a != "" {
		e.RecommendedActions = append(e.RecommendedActions, a)
	}
	return e
}

// apart takes errors that were joined one by one.
func apart(err error) []error {
	many, ok := err.(interface{ Unwrap() []error })
	if !ok || errors.Join(many.Unwrap()...).Error() != err.Error() {
		return []error{err}
	}
	var list []error
	for _, e := range many.Unwrap() {
		list = append(list, apart(e)...)
	}
	return list
}
