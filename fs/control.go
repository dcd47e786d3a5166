package fs

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"

	"vhdfs/ops"
)

// controlKey names the control file of an operation on an image.
type controlKey struct{ image, op string }

// control is the file that runs op on an image, or for the service on the image
// folder: write a request, read the answer.
func (m *mount) control(op *ops.Op, ref ops.Ref) *textFile {
	return m.controlAs(controlKey{image: ref.Name, op: op.Name}, op, ref)
}

// controlAs is control with another key: of one of several files for an operation.
func (m *mount) controlAs(key controlKey, op *ops.Op, ref ops.Ref) *textFile {
	c := &call{m: m, key: key, op: op, ref: ref}
	return &textFile{
		m:    m,
		mode: 0o600,
		stat: m.statOf(ref),
		render: func(w io.Writer) error {
			if op.State != nil {
				f, err := op.State(&ops.Request{Library: m.lib, Image: ref})
				return writeAnswer(w, ops.Answer{Operation: op.Title(), Fields: f, Err: err})
			}
			if last := m.lastAnswer(c.key); last != nil {
				return last.copyTo(w)
			}
			return usage(op, w)
		},
		run: c.run,
	}
}

// usage is what a control file shows before its first request.
func usage(op *ops.Op, w io.Writer) error {
	return encodeLine(w, struct{ Operation, Usage string }{op.Title(), op.Usage()})
}

func encodeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// call is the way of a request from a control file to a job, and of its answer
// back.
type call struct {
	m   *mount
	key controlKey
	op  *ops.Op
	ref ops.Ref
}

// run carries out one request: until its end, or with wait=false until it is
// accepted. It gives the answer as a JSON line, with the error that the write is
// to fail with. A request beside one that a writer waits for fails at once with
// ErrBusy.
func (c *call) run(ctx context.Context, caller fuse.Caller, request []byte) (*spool, error) {
	r := &ops.JobRequest{Op: c.op, Text: string(request), Caller: callerOf(caller)}
	args, err := c.op.Parse(r.Text)
	if err == nil && c.op.Changes(args) && c.m.opts.ReadOnly {
		err = ops.Errorf(ops.ErrReadOnly, 0, "%s: the mount is read-only", c.op.Name)
	}
	if err != nil {
		return c.refuse(r, err)
	}
	if err := c.m.occupy(c.key, c.ref.Path()); err != nil {
		return c.refuse(r, err)
	}
	defer c.m.vacate(c.key)
	r.Request = &ops.Request{Library: c.m.lib, Image: c.ref, Args: args, Note: c.noter(r), Stop: c.m.stop, Attacher: c.m.attacher}
	if c.op.Sync {
		began := time.Now()
		a := c.op.Do(ctx, r.Request)
		return c.answer(r, a, began, false), a.Err
	}
	var end *spool // what Ended rendered; to be read when the job is done
	r.Ended = func(j *ops.Job, a ops.Answer) int64 {
		s := j.Status()
		end = c.answer(r, a, s.Submitted, c.op.Changes(args) && (a.Err == nil || !s.Started.IsZero()))
		return end.size
	}
	job, err := c.m.jobs.Start(ctx, *r)
	if err != nil {
		return c.refuse(r, err)
	}
	c.m.runs(c.key, job)
	if args.Waits() {
		a := job.Wait(ctx)
		return end, a.Err
	}
	a := job.Accept(ctx)
	if !a.Started {
		<-job.Done()
		return end, a.Err
	}
	return c.m.remember(c.key, a), nil
}

// refuse answers a request that did not become a job.
func (c *call) refuse(r *ops.JobRequest, err error) (*spool, error) {
	return c.answer(r, c.op.Refuse(err), time.Now(), false), err
}

// answer notes the end of a request: in the counters, in the log, and for those
// who read the control file from now on. changed tells whether files may have.
func (c *call) answer(r *ops.JobRequest, a ops.Answer, began time.Time, changed bool) *spool {
	m := c.m
	m.counted.operations.Add(1)
	if a.Err != nil {
		m.counted.operationErrors.Add(1)
	}
	line := ops.NewLogLine(began, r.Caller, c.ref.Path(), r.Text, a)
	m.log.WithFields(logrus.Fields{"operation": line.Operation, "image": line.Image, "uid": line.User, "error": line.Error}).Info("operation")
	if err := m.oplog.Add(line, changed); err != nil {
		m.log.WithError(err).Warn("the log of operations")
	}
	return m.remember(c.key, a)
}

// noter writes what an operation is about to do to the log.
func (c *call) noter(r *ops.JobRequest) func(string) error {
	return func(text string) error {
		line := ops.LogLine{
			Time: time.Now(), User: r.Caller.User, Process: r.Caller.Process,
			Operation: c.op.Title(), Image: c.ref.Path(), Request: r.Text, Note: text,
		}
		return c.m.oplog.Add(line, true)
	}
}
