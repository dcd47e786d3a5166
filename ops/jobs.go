package ops

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"
)

// What is remembered of jobs, and how many run.
const (
	// JobsKept is how long a job is remembered after its end.
	JobsKept = 5 * time.Minute

	maxEnded   = 1000     // jobs that are remembered at most
	maxAnswer  = 1 << 20  // bytes of an answer that is remembered
	maxAnswers = 16 << 20 // bytes of all of them
	maxRunning = 32       // a copy holds 16 MiB; and each waiting writer a buffer of the mount
)

// errOperates is [ErrBusy] where an operation is in the way.
var errOperates = fmt.Errorf("%w by another operation", ErrBusy)

// Jobs runs the operations of a library, gives them numbers and remembers them for
// a while. One operation at a time changes an image. Safe for concurrent use.
type Jobs struct {
	ctx      context.Context
	panicked func(where string, value any, stack []byte)
	ended    sync.WaitGroup
	mu       struct {
		sync.Mutex
		last    int64
		list    []*Job // in the order of their numbers
		sizes   map[*Job]int64
		changes map[FileID]*Job // who changes an image
		running int
		freed   chan struct{} // closed, and made anew, when one has ended
		closed  bool
	}
}

// NewJobs runs operations until ctx ends or Close is called. panicked is told of a
// panic of an operation, whose answer is an error then; nil lets it end the program.
func NewJobs(ctx context.Context, panicked func(where string, value any, stack []byte)) *Jobs {
	j := &Jobs{ctx: ctx, panicked: panicked}
	j.mu.sizes = map[*Job]int64{}
	j.mu.changes = map[FileID]*Job{}
	j.mu.freed = make(chan struct{})
	return j
}

// JobRequest is what a job is made of.
type JobRequest struct {
	Op      *Op
	Request *Request // its Progress is set by the job
	Text    string   // as it was written
	Caller  Caller
	// Ended, if not nil, is called with the answer before anybody learns of the end,
	// and says how many bytes the answer has as JSON.
	Ended func(*Job, Answer) int64
}

// Start runs an operation as a job. ErrBusy at once, and no job, while another one
// changes the image that this one wants to change; after a moment, when too many
// operations run; and when the library is about to be closed.
func (j *Jobs) Start(ctx context.Context, r JobRequest) (*Job, error) {
	image := r.Request.Image
	var id FileID
	if r.Op.Changes(r.Request.Args) && !r.Op.Service {
		if st, err := image.Dir.Stat(image.Name); err == nil {
			id = st.ID
		} // else the operation says better what is missing
	}
	job, run, err := j.admit(ctx, r, id)
	if err != nil {
		return nil, err
	}
	r.Request.Progress = job.progress
	go func() {
		defer j.ended.Done()
		a := j.do(run, job, r.Request)
		j.end(job, id, a, r.Ended)
	}()
	return job, nil
}

// admit numbers a job. While too many run it waits a moment.
func (j *Jobs) admit(ctx context.Context, r JobRequest, id FileID) (*Job, context.Context, error) {
	late := time.NewTimer(releaseWait)
	defer late.Stop()
	for {
		j.mu.Lock()
		other, freed := j.mu.changes[id], j.mu.freed
		switch {
		case j.mu.closed:
			j.mu.Unlock()
			return nil, nil, Errorf(ErrBusy, 0, "%s: the service stops", r.Op.Name)
		case other != nil:
			j.mu.Unlock()
			return nil, nil, Errorf(errOperates, StatusOwned, "%s: job %d, %s, runs on it", r.Request.Image.Path(), other.ID, other.Op.Name)
		case j.mu.running < maxRunning:
			job, run := j.addLocked(r, id)
			j.mu.Unlock()
			return job, run, nil
		}
		j.mu.Unlock()
		select {
		case <-freed:
		case <-late.C:
			return nil, nil, Errorf(errOperates, 0, "%s: %d operations run already", r.Op.Name, maxRunning)
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

func (j *Jobs) addLocked(r JobRequest, id FileID) (*Job, context.Context) {
	run, cancel := context.WithCancelCause(j.ctx)
	j.mu.last++
	job := &Job{
		ID: j.mu.last, Op: r.Op, Image: r.Request.Image.Path(), Text: r.Text, Caller: r.Caller,
		jobs: j, cancel: cancel, accepted: make(chan struct{}), done: make(chan struct{}),
	}
	job.setStateLocked(JobStarting)
	job.now.Submitted = job.now.Changed
	j.mu.list = append(j.mu.list, job)
	j.mu.running++
	if id != (FileID{}) {
		j.mu.changes[id] = job
	}
	j.ended.Add(1)
	return job, run
}

// do runs the operation; a panic in it is an error.
func (j *Jobs) do(ctx context.Context, job *Job, r *Request) (a Answer) {
	defer func() { a.Job = job.ID }()
	if j.panicked != nil {
		defer func() {
			if v := recover(); v != nil {
				where := job.Op.Name + " " + job.Image
				j.panicked(where, v, debug.Stack())
				a = job.Op.Refuse(Wrapf(syscall.EIO, ErrPoisoned, 0, "%s: internal error: %v", where, v))
			}
		}()
	}
	return job.Op.Do(ctx, r)
}

// end makes the answer known. The image is free for the next operation before
// anybody hears of it.
func (j *Jobs) end(job *Job, id FileID, a Answer, tell func(*Job, Answer) int64) {
	job.cancel(nil)
	j.mu.Lock()
	job.endLocked(a)
	j.mu.Unlock()
	size := int64(0)
	if tell != nil {
		size = tell(job, a)
	}
	j.mu.Lock()
	if size > maxAnswer {
		job.now.Answer.Fields, job.now.Long, size = nil, true, 0
	}
	j.mu.sizes[job] = size
	if id != (FileID{}) {
		delete(j.mu.changes, id)
	}
	j.mu.running--
	close(j.mu.freed)
	j.mu.freed = make(chan struct{})
	j.forgetLocked()
	j.mu.Unlock()
	job.accept.Do(func() { close(job.accepted) })
	close(job.done)
}

// forgetLocked drops the jobs that ended long ago, and the oldest while there are
// too many.
func (j *Jobs) forgetLocked() {
	bytes := int64(0)
	for _, n := range j.mu.sizes {
		bytes += n
	}
	old := time.Now().Add(-JobsKept)
	j.mu.list = slices.DeleteFunc(j.mu.list, func(job *Job) bool {
		n, told := j.mu.sizes[job]
		if !told || job.now.Ended.After(old) && len(j.mu.sizes) <= maxEnded && bytes <= maxAnswers {
			return false
		}
		bytes -= n
		delete(j.mu.sizes, job)
		return true
	})
}

// List is the jobs that are remembered, in the order of their numbers.
func (j *Jobs) List() []*Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.forgetLocked()
	return slices.Clone(j.mu.list)
}

// Job is the one with a number; nil when there is none, or none any more.
func (j *Jobs) Job(id int64) *Job {
	list := j.List()
	if i := slices.IndexFunc(list, func(job *Job) bool { return job.ID == id }); i >= 0 {
		return list[i]
	}
	return nil
}

// Reopen takes a Close back: operations are started again.
func (j *Jobs) Reopen() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.mu.closed = false
}

// Close cancels what runs, waits for it to stop and starts nothing any more.
func (j *Jobs) Close() {
	j.mu.Lock()
	j.mu.closed = true
	j.mu.Unlock()
	for _, job := range j.List() {
		job.Cancel()
	}
	j.ended.Wait()
}
