package fs

import (
	"context"
	"io"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// jobsRows are the jobs that run, and those that ended in the last minutes.
func (m *mount) jobsRows(context.Context) ([]row, error) {
	jobs := m.jobs.List()
	rows := make([]row, len(jobs))
	for i, j := range jobs {
		rows[i] = subTable(strconv.FormatInt(j.ID, 10), m.jobTable(j))
	}
	return rows, nil
}

// jobTable is the directory of a job.
func (m *mount) jobTable(j *ops.Job) *table {
	t := m.serviceTable(serviceName+"/jobs/"+strconv.FormatInt(j.ID, 10), func(context.Context) ([]row, error) {
		return []row{
			small("status.json", m.text(m.jobStatus(j))),
			small("errors.json", m.text(func(w io.Writer) error { return view.Encode(w, view.NewJobErrors(j)) })),
			small("wait", m.jobWait(j)),
			small("cancel", m.jobCancel(j)),
		}, nil
	})
	t.stat = func() (*ops.FileStat, error) {
		s := j.Status()
		return &ops.FileStat{Mode: 0o444, Mtime: s.Changed, Ctime: s.Changed}, nil
	}
	return t
}

func (m *mount) jobStatus(j *ops.Job) func(io.Writer) error {
	return func(w io.Writer) error { return view.Encode(w, view.NewStorageJob(j)) }
}

// jobWait is the file whose first read returns when the job has ended.
func (m *mount) jobWait(j *ops.Job) *textFile {
	f := m.text(m.jobStatus(j))
	f.until = j.Done()
	return f
}

// cancelWait is how long the writer of cancel waits for the end of the job.
const cancelWait = time.Second

// jobCancel is the file that cancels the job, whatever is written to it.
func (m *mount) jobCancel(j *ops.Job) *textFile {
	const operation = "RequestStateChange"
	f := m.text(func(w io.Writer) error {
		return encodeLine(w, struct{ Operation, Usage string }{operation, "cancel: write anything to cancel the job."})
	})
	f.mode = 0o600
	f.run = func(ctx context.Context, _ fuse.Caller, _ []byte) (*spool, error) {
		j.Cancel()
		late := time.NewTimer(cancelWait)
		defer late.Stop()
		select {
		case <-j.Done():
		case <-late.C:
		case <-ctx.Done():
		}
		doc := &spool{}
		return doc, writeAnswer(doc, ops.Answer{Operation: operation, Job: j.ID})
	}
	return f
}
