package fs

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// controlKey names the control file of an operation on an image.
type controlKey struct{ image, op string }

// controlState is what all opens of a control file share; mount.mu guards it.
type controlState struct {
	running bool
	last    []byte // the answer to the last request; nil: none yet
}

// control is the file that runs op on an image, or for the service on the image
// folder: write a request, read the answer.
func (m *mount) control(op *ops.Op, ref ops.Ref) *textFile {
	key := controlKey{image: ref.Name, op: op.Name}
	return &textFile{
		m:    m,
		mode: 0o600,
		stat: m.statOf(ref),
		render: func(w io.Writer) error {
			if last := m.lastAnswer(key); last != nil {
				_, err := w.Write(last)
				return err
			}
			return usage(op, w)
		},
		run: func(ctx context.Context, caller fuse.Caller, request []byte) ([]byte, error) {
			return m.request(ctx, key, op, ref, caller, string(request))
		},
	}
}

// usage is what a control file shows before its first request.
func usage(op *ops.Op, w io.Writer) error {
	b, err := json.Marshal(struct{ Operation, Usage string }{op.Title(), op.Usage()})
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func (m *mount) lastAnswer(key controlKey) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.mu.controls[key]; s != nil {
		return s.last
	}
	return nil
}

// request carries out one request and gives its answer as a JSON line, with the
// error that the write is to fail with. A request beside a running one fails at
// once with ErrBusy.
func (m *mount) request(ctx context.Context, key controlKey, op *ops.Op, ref ops.Ref, caller fuse.Caller, text string) ([]byte, error) {
	began := time.Now()
	a := m.execute(ctx, key, op, ref, text)
	b, err := json.Marshal(a)
	if err != nil {
		a = op.Refuse(err)
		b = []byte("{}")
	}
	b = append(b, '\n')
	m.counted.operations.Add(1)
	if a.Err != nil {
		m.counted.operationErrors.Add(1)
	}
	m.logOperation(logLine{
		Time: began, User: caller.Uid, Process: caller.Pid,
		Operation: a.Operation, Image: ref.Path(), Request: text,
		ReturnValue: a.ReturnValue(), Error: a.Sentence(), Seconds: time.Since(began).Seconds(),
	})
	m.finish(key, b, a)
	return b, a.Err
}

// execute parses a request and runs it unless another one runs.
func (m *mount) execute(ctx context.Context, key controlKey, op *ops.Op, ref ops.Ref, text string) ops.Answer {
	args, err := op.Parse(text)
	if err != nil {
		return op.Refuse(err)
	}
	if op.Writes && m.opts.ReadOnly {
		return op.Refuse(ops.Errorf(ops.ErrReadOnly, 0, "%s: the mount is read-only", op.Name))
	}
	if !m.begin(key) {
		return op.Refuse(ops.Errorf(ops.ErrBusy, 0, "%s: %s runs already", ref.Name, op.Name))
	}
	defer m.end(key)
	return op.Do(ctx, &ops.Request{Library: m.lib, Image: ref, Args: args})
}

// begin takes the control file for a request; false when one is running.
func (m *mount) begin(key controlKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.mu.controls[key]
	if s == nil {
		s = &controlState{}
		m.mu.controls[key] = s
	}
	if s.running {
		return false
	}
	s.running = true
	return true
}

func (m *mount) end(key controlKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.controls[key].running = false
}

// finish makes an answer the last one of its file and its image.
func (m *mount) finish(key controlKey, text []byte, a ops.Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.mu.controls[key]
	if s == nil {
		s = &controlState{}
		m.mu.controls[key] = s
	}
	s.last = text
	m.mu.lastOps[key.image] = &a
}
