package ops

import (
	"context"
	"errors"
	"sync"
	"time"
)

// JobState is Msvm_StorageJob.JobState.
type JobState uint16

// States in the order in which a job passes them. A job that is asked to stop is
// shutting down until its operation has found a place to stop at.
const (
	JobStarting     JobState = 3 // its parameters are looked at
	JobRunning      JobState = 4
	JobShuttingDown JobState = 6
	JobCompleted    JobState = 7
	JobTerminated   JobState = 8     // cancelled
	JobException    JobState = 10    // failed
	JobWarned       JobState = 32768 // completed, with warnings
)

var jobStateNames = map[JobState]string{
	JobStarting: "Starting", JobRunning: "Running", JobShuttingDown: "Shutting Down",
	JobCompleted: "Completed", JobTerminated: "Terminated", JobException: "Exception", JobWarned: "Completed with Warnings",
}

func (s JobState) String() string { return jobStateNames[s] }

// Ended tells whether nothing will happen any more.
func (s JobState) Ended() bool { return s >= JobCompleted }

// Caller is who asked for an operation.
type Caller struct{ User, Process uint32 }

// Job is one operation that runs, or has ended a while ago. Safe for concurrent
// use.
type Job struct {
	ID     int64 // from 1, in the order of the requests
	Op     *Op
	Image  string // absolute host path; of the service: the image folder
	Text   string // the request as it was written
	Caller Caller

	jobs     *Jobs
	cancel   context.CancelCauseFunc
	accepted chan struct{} // closed when the parameters are accepted, or at the end
	accept   sync.Once
	done     chan struct{} // closed at the end
	now      JobStatus     // guarded by Jobs.mu
	mark     rateMark      // guarded by Jobs.mu
}

// JobStatus is how far a job is.
type JobStatus struct {
	State     JobState
	Done, All int64 // bytes; All is 0 while it is unknown
	Rate      int64 // bytes a second, of late
	Submitted time.Time
	Started   time.Time // zero: not yet
	Changed   time.Time // of State
	Ended     time.Time // zero: not yet
	// Answer is what the operation answered at its end, without its fields where
	// these are too long to be kept; Long tells that.
	Answer Answer
	Long   bool
}

// Percent is 0 to 100; 100 says that all is done.
func (s JobStatus) Percent() uint16 {
	switch {
	case s.State == JobCompleted || s.State == JobWarned:
		return 100
	case s.All <= 0 || s.Done <= 0:
		return 0
	}
	return uint16(min(99, float64(s.Done)/float64(s.All)*100))
}

// Elapsed is how long it has run, or ran.
func (s JobStatus) Elapsed() time.Duration {
	switch {
	case s.Started.IsZero():
		return 0
	case s.Ended.IsZero():
		return time.Since(s.Started)
	}
	return s.Ended.Sub(s.Started)
}

// Status is how far the job is now.
func (j *Job) Status() JobStatus {
	j.jobs.mu.Lock()
	defer j.jobs.mu.Unlock()
	return j.now
}

// Done is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.done }

// Cancel asks the operation to stop where the image is whole. It returns at once,
// and does nothing to a job that has ended.
func (j *Job) Cancel() {
	j.jobs.mu.Lock()
	if !j.now.State.Ended() && j.now.State != JobShuttingDown {
		j.setStateLocked(JobShuttingDown)
	}
	j.jobs.mu.Unlock()
	j.cancel(context.Canceled)
}

// Wait returns the answer of the operation. When ctx ends first the job is
// cancelled, and its end waited for all the same: the image is whole then.
func (j *Job) Wait(ctx context.Context) Answer {
	select {
	case <-j.done:
	case <-ctx.Done():
		j.Cancel()
		<-j.done
	}
	return j.Status().Answer
}

// acceptWait is how long a caller who does not wait for the end waits for an
// operation that does not say that it has accepted its parameters.
const acceptWait = time.Second

// Accept is [Job.Wait] for who does not wait for the end: it returns when the
// parameters are accepted (ReturnValue 4096), or refused. The job goes on.
func (j *Job) Accept(ctx context.Context) Answer {
	late := time.NewTimer(acceptWait)
	defer late.Stop()
	select {
	case <-j.accepted:
	case <-late.C:
	case <-ctx.Done():
		return j.Wait(ctx)
	}
	started := Answer{Operation: j.Op.Title(), Job: j.ID, Started: true}
	if s := j.Status(); s.State.Ended() && !s.begun() && s.Answer.Err != nil {
		return s.Answer
	}
	return started
}

// begun tells whether the parameters were accepted.
func (s *JobStatus) begun() bool { return !s.Started.IsZero() }

// rateWindow is the time over which the rate is taken.
const rateWindow = 5 * time.Second

// rateMark is where the work was when the rate was last taken.
type rateMark struct {
	at   time.Time
	done int64
}

// progress notes how much is done. The first call accepts the parameters.
func (j *Job) progress(done, all int64) {
	j.jobs.mu.Lock()
	now := time.Now()
	if !j.now.begun() {
		j.now.Started, j.mark = now, rateMark{now, done}
		if j.now.State == JobStarting {
			j.setStateLocked(JobRunning)
		}
	}
	j.now.Done, j.now.All = done, all
	if past := now.Sub(j.mark.at); past >= rateWindow || past > 0 && j.mark.at.Equal(j.now.Started) {
		j.now.Rate = int64(float64(done-j.mark.done) / past.Seconds())
		if past >= rateWindow {
			j.mark = rateMark{now, done}
		}
	}
	j.jobs.mu.Unlock()
	j.accept.Do(func() { close(j.accepted) })
}

func (j *Job) setStateLocked(s JobState) {
	j.now.State, j.now.Changed = s, time.Now()
}

// endLocked notes how the operation ended.
func (j *Job) endLocked(a Answer) {
	state := JobCompleted
	switch {
	case errors.Is(a.Err, context.Canceled):
		state = JobTerminated
	case a.Err != nil:
		state = JobException
	case a.Warned():
		state = JobWarned
	}
	j.setStateLocked(state)
	j.now.Ended, j.now.Answer = j.now.Changed, a
	if j.now.All > 0 && a.Err == nil {
		j.now.Done = j.now.All
	}
}
