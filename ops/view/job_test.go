package view

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

func TestStorageJobHasTheServicesProperties(t *testing.T) {
	require.Equal(t, strings.Fields(`InstanceID Caption Description ElementName Name JobType JobState JobStatus PercentComplete
		Cancellable Child Parent ErrorCode ErrorDescription ErrorSummaryDescription JobCompletionStatusCode
		StartTime TimeSubmitted ScheduledStartTime UntilTime ElapsedTime TimeOfLastStateChange TimeBeforeRemoval DeleteOnCompletion
		HealthState OperationalStatus StatusDescriptions Status LocalOrUtcTime RecoveryAction OtherRecoveryAction
		JobRunTimes RunMonth RunDay RunDayOfWeek RunStartInterval Notify Owner Priority
		CommunicationStatus DetailedStatus OperatingStatus PrimaryStatus
		Job Operation Image Request Process BytesDone BytesInAll BytesPerSecond SecondsLeft Answer`), names(StorageJob{}))
}

func TestJobErrorHasTheServicesProperties(t *testing.T) {
	require.Equal(t, strings.Fields(`Message MessageID MessageArguments OwningEntity ErrorSource ErrorSourceFormat
		OtherErrorSourceFormat ErrorType OtherErrorType PerceivedSeverity ProbableCause ProbableCauseDescription
		RecommendedActions CIMStatusCode CIMStatusCodeDescription`), names(JobError{}))
}

// job runs f as a job that is asked for at midnight of 2000-01-01.
func job(t *testing.T, f func(ctx context.Context, r *ops.Request) (ops.Fields, error)) *ops.Job {
	t.Helper()
	jobs := ops.NewJobs(context.Background(), nil)
	j, err := jobs.Start(context.Background(), ops.JobRequest{
		Op:      &ops.Op{Name: "resize", Method: "ResizeVirtualHardDisk", Brief: "change the virtual size", JobType: 4, Run: f},
		Request: &ops.Request{Image: ref("a.vhdx")}, Text: "80G", Caller: ops.Caller{User: 1000, Process: 77}})
	require.NoError(t, err)
	return j
}

func TestStorageJobThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		j := job(t, func(_ context.Context, r *ops.Request) (ops.Fields, error) {
			time.Sleep(time.Second)
			r.Begin(4000)
			time.Sleep(2 * time.Second)
			r.Progress(1000, 4000)
			<-goOn
			return nil, nil
		})
		time.Sleep(90*time.Second + 5*time.Microsecond)
		require.Equal(t, `{
  "InstanceID": "Microsoft:vhdfs:Job:1",
  "Caption": "Storage Job",
  "Description": "change the virtual size",
  "ElementName": "Storage Job",
  "Name": "resize",
  "JobType": 4,
  "JobState": 4,
  "JobStatus": "Running",
  "PercentComplete": 25,
  "Cancellable": true,
  "Child": null,
  "Parent": null,
  "ErrorCode": 0,
  "ErrorDescription": "",
  "ErrorSummaryDescription": "",
  "JobCompletionStatusCode": 0,
  "StartTime": "20000101000001.000000+000",
  "TimeSubmitted": "20000101000000.000000+000",
  "ScheduledStartTime": null,
  "UntilTime": null,
  "ElapsedTime": "00000000000129.000005:000",
  "TimeOfLastStateChange": "20000101000001.000000+000",
  "TimeBeforeRemoval": "00000000000500.000000:000",
  "DeleteOnCompletion": true,
  "HealthState": 5,
  "OperationalStatus": [
    2
  ],
  "StatusDescriptions": [
    "OK"
  ],
  "Status": null,
  "LocalOrUtcTime": 2,
  "RecoveryAction": 0,
  "OtherRecoveryAction": null,
  "JobRunTimes": null,
  "RunMonth": null,
  "RunDay": null,
  "RunDayOfWeek": null,
  "RunStartInterval": null,
  "Notify": null,
  "Owner": "1000",
  "Priority": null,
  "CommunicationStatus": null,
  "DetailedStatus": null,
  "OperatingStatus": null,
  "PrimaryStatus": null,
  "Job": "1",
  "Operation": "ResizeVirtualHardDisk",
  "Image": "/vms/a.vhdx",
  "Request": "80G",
  "Process": 77,
  "BytesDone": 1000,
  "BytesInAll": 4000,
  "BytesPerSecond": 500,
  "SecondsLeft": 6,
  "Answer": null
}
`, render(t, NewStorageJob(j)))
		require.Equal(t, "null\n", render(t, NewJobErrors(j)))
		close(goOn)
		j.Wait(context.Background())
		v := NewStorageJob(j)
		require.EqualValues(t, 7, v.JobState)
		require.EqualValues(t, 100, v.PercentComplete)
		require.Nil(t, v.SecondsLeft)
		require.False(t, v.Cancellable)
		require.Equal(t, "00000000000129.000005:000", v.ElapsedTime)
		require.Equal(t, "{\n  \"Operation\": \"ResizeVirtualHardDisk\",\n  \"ReturnValue\": 0,\n  \"Job\": \"1\"\n}\n", render(t, v.Answer))
		require.Equal(t, "null\n", render(t, NewJobErrors(j)))
	})
}

func TestStorageJobThatFailed(t *testing.T) {
	j := job(t, func(context.Context, *ops.Request) (ops.Fields, error) {
		return ops.Fields{{Name: "Child", Value: "/vms/a.vhdx"}, {Name: "Parent", Value: `.\b.vhdx`}},
			ops.Errorf(ops.ErrParentMissing, ops.StatusParentNotFound, "b.vhdx")
	})
	j.Wait(context.Background())
	v := NewStorageJob(j)
	require.EqualValues(t, 10, v.JobState)
	require.Equal(t, "Exception", v.JobStatus)
	require.EqualValues(t, 32779, v.ErrorCode)
	require.EqualValues(t, 0xC03A000D, v.JobCompletionStatusCode)
	require.Equal(t, "b.vhdx: parent not found", v.ErrorSummaryDescription)
	require.Contains(t, v.ErrorDescription, "b.vhdx: parent not found. Put the parent")
	require.Equal(t, "/vms/a.vhdx", *v.Child)
	require.Equal(t, `.\b.vhdx`, *v.Parent)
	list := NewJobErrors(j)
	require.Len(t, list, 1)
	require.Contains(t, list[0].RecommendedActions[0], "Put the parent where")
	list[0].RecommendedActions = []string{}
	require.Equal(t, JobError{
		Message: v.ErrorDescription, MessageID: "ENOLINK", MessageArguments: []string{}, OwningEntity: "vhdfs", ErrorSource: "/vms/a.vhdx",
		ErrorType: 4, PerceivedSeverity: 4, ProbableCause: 73, RecommendedActions: []string{}, CIMStatusCode: 6, CIMStatusCodeDescription: "not found",
	}, list[0])
}

func TestErrorsThatWereJoined(t *testing.T) {
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	both := fmt.Errorf("%w: %w", ops.ErrBusy, syscall.EIO)
	for _, tt := range []struct {
		err  error
		want []string
	}{
		{full, []string{"ENOSPC"}},
		{errors.Join(full, ops.Errorf(ops.ErrUsage, 0, "size")), []string{"ENOSPC", "EINVAL"}},
		{errors.Join(errors.Join(full, context.Canceled), both), []string{"ENOSPC", "ECANCELED", "EBUSY"}},
		{both, []string{"EBUSY"}},
		{ops.Wrapf(full, ops.ErrPoisoned, 0, "flush"), []string{"EIO"}},
	} {
		j := job(t, func(context.Context, *ops.Request) (ops.Fields, error) { return nil, tt.err })
		j.Wait(context.Background())
		var got []string
		for _, e := range NewJobErrors(j) {
			got = append(got, e.MessageID)
		}
		require.Equal(t, tt.want, got)
	}
}

// Every class of error has its place among the service's.
func TestEveryClassIsAKindOfError(t *testing.T) {
	for _, c := range ops.Classes {
		require.Contains(t, kinds, c.Errno, "%v", c.Err)
	}
}

func TestInterval(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                      "00000000000000.000000:000",
		5 * time.Minute:        "00000000000500.000000:000",
		1999 * time.Nanosecond: "00000000000000.000001:000",
		49*time.Hour + 61*time.Second + 7*time.Millisecond: "00000002010101.007000:000",
	} {
		require.Equal(t, want, Interval(d))
	}
}
