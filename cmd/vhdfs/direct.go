package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"vhdfs/ops"
)

// request is one operation that this process runs.
type request struct {
	op       *ops.Op
	text     string // as it was typed
	log      *ops.OpLog
	stderr   io.Writer
	progress func(done, all int64) // nil: nobody looks
}

// do runs the operation, writes its line to the log of the image folder and gives
// its answer as JSON.
func (q *request) do(ctx context.Context, r *ops.Request) ([]byte, error) {
	who := ops.Caller{User: uint32(os.Getuid()), Process: uint32(os.Getpid())}
	began, begun := time.Now(), atomic.Bool{}
	r.Progress = func(done, all int64) {
		begun.Store(true)
		if q.progress != nil {
			q.progress(done, all)
		}
	}
	r.Note = func(text string) error {
		line := ops.NewLogLine(began, who, r.Image.Path(), q.text, ops.Answer{Operation: q.op.Title()})
		line.Note, line.ReturnValue = text, nil
		return q.log.Add(line, true)
	}
	a := q.op.Do(ctx, r)
	line := ops.NewLogLine(began, who, r.Image.Path(), q.text, a)
	if err := q.log.Add(line, q.op.Changes(r.Args) && (a.Err == nil || begun.Load())); err != nil {
		fmt.Fprintln(q.stderr, "vhdfs: log of the folder: "+err.Error())
	}
	var b bytes.Buffer
	err := a.WriteJSON(&b)
	return b.Bytes(), err
}
