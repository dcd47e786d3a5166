package view

import (
	"fmt"
	"strconv"
	"time"

	"vhdfs/ops"
)

// StorageJob is Msvm_StorageJob, then what vhdfs knows besides. Properties of a
// schedule, which no job here has, are null.
type StorageJob struct {
	InstanceID              string
	Caption                 string
	Description             string
	ElementName             string
	Name                    string
	JobType                 uint16
	JobState                uint16
	JobStatus               string
	PercentComplete         uint16
	Cancellable             bool
	Child                   *string // on failure: the link of the chain that is broken
	Parent                  *string
	ErrorCode               uint16 // ReturnValue of the operation
	ErrorDescription        string
	ErrorSummaryDescription string
	JobCompletionStatusCode uint32
	StartTime               *string
	TimeSubmitted           *string
	ScheduledStartTime      *string
	UntilTime               *string
	ElapsedTime             string
	TimeOfLastStateChange   *string
	TimeBeforeRemoval       string
	DeleteOnCompletion      bool
	HealthState             uint16
	OperationalStatus       []uint16
	StatusDescriptions      []string
	Status                  *string
	LocalOrUtcTime          uint16
	RecoveryAction          uint16
	OtherRecoveryAction     *string
	JobRunTimes             *uint32
	RunMonth                *uint8
	RunDay                  *int8
	RunDayOfWeek            *int8
	RunStartInterval        *string
	Notify                  *string
	Owner                   string // user id of who asked
	Priority                *uint32
	CommunicationStatus     *uint16
	DetailedStatus          *uint16
	OperatingStatus         *uint16
	PrimaryStatus           *uint16

	Job            string // the number, as answers hold it
	Operation      string
	Image          string // absolute host path; of the service: the image folder
	Request        string
	Process        uint32 // id of who asked
	BytesDone      int64
	BytesInAll     *int64
	BytesPerSecond int64
	SecondsLeft    *int64
	Answer         *ops.Answer // at the end; null where it is longer than 1 MiB
}

// NewStorageJob describes a job as it is now.
func NewStorageJob(j *ops.Job) *StorageJob {
	const utc, ok = 2, 5
	s := j.Status()
	id := strconv.FormatInt(j.ID, 10)
	v := &StorageJob{
		InstanceID:            "Microsoft:vhdfs:Job:" + id,
		Caption:               "Storage Job",
		Description:           j.Op.Brief,
		ElementName:           "Storage Job",
		Name:                  j.Op.Name,
		JobType:               j.Op.JobType,
		JobState:              uint16(s.State),
		JobStatus:             s.State.String(),
		PercentComplete:       s.Percent(),
		Cancellable:           !s.State.Ended(),
		StartTime:             DateTime(s.Started),
		TimeSubmitted:         DateTime(s.Submitted),
		ElapsedTime:           Interval(s.Elapsed()),
		TimeOfLastStateChange: DateTime(s.Changed),
		TimeBeforeRemoval:     Interval(ops.JobsKept),
		DeleteOnCompletion:    true,
		HealthState:           ok,
		LocalOrUtcTime:        utc,
		Owner:                 strconv.FormatUint(uint64(j.Caller.User), 10),
		Job:                   id,
		Operation:             j.Op.Title(),
		Image:                 j.Image,
		Request:               j.Text,
		Process:               j.Caller.Process,
		BytesDone:             s.Done,
		BytesPerSecond:        s.Rate,
	}
	v.condition(s.State)
	v.remaining(&s)
	v.outcome(&s)
	return v
}

// condition fills in what CIM_ManagedSystemElement.OperationalStatus says of a job: OK
// unless it failed or was cancelled.
func (v *StorageJob) condition(s ops.JobState) {
	const ok, failed, stopped = 2, 6, 10
	switch s {
	case ops.JobException:
		v.OperationalStatus, v.StatusDescriptions = []uint16{failed}, []string{"Error"}
	case ops.JobTerminated:
		v.OperationalStatus, v.StatusDescriptions = []uint16{stopped}, []string{"Stopped"}
	default:
		v.OperationalStatus, v.StatusDescriptions = []uint16{ok}, []string{"OK"}
	}
}

// remaining fills in what is known when all is known.
func (v *StorageJob) remaining(s *ops.JobStatus) {
	if s.All <= 0 {
		return
	}
	v.BytesInAll = &s.All
	left := (s.All - s.Done) / max(s.Rate, 1)
	if s.Rate > 0 && !s.State.Ended() {
		v.SecondsLeft = &left
	}
}

// outcome fills in how it ended.
func (v *StorageJob) outcome(s *ops.JobStatus) {
	if !s.State.Ended() {
		return
	}
	if !s.Long {
		v.Answer = &s.Answer
	}
	err := s.Answer.Err
	if err == nil {
		return
	}
	v.ErrorCode = uint16(s.Answer.ReturnValue())
	v.ErrorDescription, v.ErrorSummaryDescription = s.Answer.Sentence(), err.Error()
	v.JobCompletionStatusCode = uint32(ops.StatusOf(err))
	for _, f := range s.Answer.Fields {
		path, ok := f.Value.(string)
		switch {
		case ok && f.Name == "Child":
			v.Child = &path
		case ok && f.Name == "Parent":
			v.Parent = &path
		}
	}
}

// Interval renders a duration as a CIM interval: ddddddddHHMMSS.mmmmmm:000.
func Interval(d time.Duration) string {
	s := int64(d / time.Second)
	return fmt.Sprintf("%08d%02d%02d%02d.%06d:000", s/86400, s/3600%24, s/60%60, s%60, d%time.Second/time.Microsecond)
}
