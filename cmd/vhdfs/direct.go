package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// runHere carries the operation out in this process.
func (q *request) runHere(ctx context.Context, c *cli.Context, p *progress) (_ []byte, err error) {
	if !q.args.Waits() {
		return nil, usagef("wait=false: nobody goes on when this command ends; let the shell run it in the background, or ask a mount")
	}
	folder, name := filepath.Split(q.image)
	if q.op.Service {
		folder, name = q.image, "."
	}
	f, err := openFolders(c, folder, 0, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	named, err := f.named(q)
	if err != nil {
		return nil, err
	}
	return q.do(ctx, c, p, &ops.Request{
		Library: f.lib, Image: f.lib.Top(name), Args: q.args, Named: named, Attacher: ops.NewAttacher(f.lib, here{}, false),
	})
}

// do runs the operation, writes its line to the log of the image folder and gives
// its answer as JSON.
func (q *request) do(ctx context.Context, c *cli.Context, p *progress, r *ops.Request) ([]byte, error) {
	log := ops.NewOpLog(r.Library.Top(".").Dir, false)
	who := ops.Caller{User: uint32(os.Getuid()), Process: uint32(os.Getpid())}
	began, begun := time.Now(), atomic.Bool{}
	r.Progress = func(done, all int64) {
		begun.Store(true)
		p.set(done, all)
	}
	r.Note = func(note string) error {
		line := ops.NewLogLine(began, who, r.Image.Path(), q.text, ops.Answer{Operation: q.op.Title()})
		line.Note, line.ReturnValue = note, nil
		return log.Add(line, true)
	}
	a := q.op.Do(ctx, r)
	p.end()
	line := ops.NewLogLine(began, who, r.Image.Path(), q.text, a)
	if err := log.Add(line, q.op.Changes(r.Args) && (a.Err == nil || begun.Load())); err != nil {
		fmt.Fprintln(c.App.ErrWriter, "vhdfs: log of the folder: "+err.Error())
	}
	var b bytes.Buffer
	err := a.WriteJSON(&b)
	return b.Bytes(), err
}
