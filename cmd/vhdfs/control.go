package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// control is a control file of a mount.
type control struct {
	mount mountLine
	file  string
}

// control is the control file that the request is to be written to; nil when no
// mount shows the image, or when it asks for what a mount does not do.
func (q *request) control(c *cli.Context) (*control, error) {
	if q.mnt != "" {
		return &control{mount: mountLine{point: q.mnt, source: q.image}, file: filepath.Join(q.mnt, ".vhdfs", q.op.File())}, nil
	}
	m, rel, ok := q.place()
	if !ok || c.IsSet("search") || c.IsSet("allow-parent") {
		return nil, nil
	}
	for _, name := range q.paths {
		if _, inside := m.shows(q.args.Text(name)); !inside {
			return nil, nil
		}
	}
	dir := filepath.Join(m.point, rel)
	if q.op.Service {
		dir = filepath.Join(m.point, ".vhdfs")
	}
	_, err := os.Stat(dir)
	switch {
	case errors.Is(err, iofs.ErrNotExist) || errors.Is(err, unix.ENOTCONN):
		return nil, nil // not shown there, or a mount whose daemon is dead
	case errors.Is(err, iofs.ErrPermission):
		return nil, ops.Wrapf(err, ops.ErrForbidden, 0, "%s is shown by %s, which you may not use: ask that user, or unmount it", q.image, m)
	case err != nil:
		return nil, fmt.Errorf("%s is shown by %s: %w", q.image, m, err)
	}
	return &control{mount: m, file: filepath.Join(dir, q.op.File())}, nil
}

// place is the mount that shows the image, and where. A directory in a mount that
// was typed is where it is.
func (q *request) place() (m mountLine, rel string, ok bool) {
	if q.inside == "" {
		return showing(q.mounts, q.image)
	}
	for _, l := range q.mounts {
		if r, in := beneath(l.point, q.inside); in && len(l.point) >= len(m.point) {
			m, rel, ok = l, r, true
		}
	}
	if !ok {
		return mountLine{point: filepath.Dir(q.inside), source: filepath.Dir(q.image)}, filepath.Base(q.inside), true
	}
	return m, rel, ok
}

// do writes the request to the control file and reads the answer on the same
// handle: another one could get another request's. When ctx ends it cancels the
// job, whose answer comes then.
func (f *control) do(ctx context.Context, q *request, p *progress) ([]byte, error) {
	text, err := requestJSON(q.args)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(f.file, os.O_RDWR, 0)
	switch {
	case errors.Is(err, iofs.ErrPermission):
		return nil, ops.Wrapf(err, ops.ErrForbidden, 0, "%s is shown by %s, who alone may operate there: ask that user, or unmount it", q.image, f.mount)
	case errors.Is(err, iofs.ErrNotExist):
		return nil, ops.Errorf(errors.ErrUnsupported, 0, "%s: %s has no operation %s for it", q.image, f.mount, q.op.Name)
	case err != nil:
		return nil, err
	}
	answered := make(chan error, 1)
	go func() {
		_, err := file.Write(text)
		answered <- err
	}()
	err = f.attend(ctx, answered, p)
	p.end()
	if errors.Is(err, errLeft) {
		return nil, err // the handle is taken by the write
	}
	answer, rerr := io.ReadAll(file)
	if rerr == nil && len(answer) == 0 {
		rerr = err
	}
	return bytes.TrimSpace(answer), errors.Join(rerr, file.Close())
}

// Times of who waits for a job in a mount.
const (
	firstLook = 300 * time.Millisecond // most operations are over by then
	nextLook  = 200 * time.Millisecond
	findWait  = 2 * time.Second
)

// attend waits for the answer, shows how far the job is meanwhile, and cancels it
// when ctx ends.
func (f *control) attend(ctx context.Context, answered <-chan error, p *progress) error {
	j := &jobFinder{dir: filepath.Join(f.mount.point, ".vhdfs", "jobs"), seen: map[int]bool{}}
	look := time.NewTimer(firstLook)
	defer look.Stop()
	for {
		select {
		case err := <-answered:
			return err
		case <-ctx.Done():
			return f.interrupt(j, answered)
		case <-look.C:
			if p.shown() {
				if s, ok := j.status(); ok {
					p.set(s.BytesDone, s.BytesInAll)
				}
			}
			look.Reset(nextLook)
		}
	}
}

// interrupt cancels the job and waits for its end. A job that cannot be found, in
// another namespace of processes, has a writer that cannot be found either: it is
// left to itself.
func (f *control) interrupt(j *jobFinder, answered <-chan error) error {
	for late := time.Now().Add(findWait); time.Now().Before(late); {
		if j.cancel() {
			return <-answered
		}
		select {
		case err := <-answered:
			return err
		case <-time.After(nextLook / 4): // it may be about to begin
		}
	}
	return ops.Errorf(errLeft, 0, "%s: the job of this command is not among those of %s and may go on", f.file, f.mount)
}

// errLeft says that nobody waits for an answer any more.
var errLeft = fmt.Errorf("left: %w", context.Canceled)

// jobFinder looks for the job of this process among those of a mount.
type jobFinder struct {
	dir  string
	seen map[int]bool // numbers of others
	mine int
}

// jobStatus is what matters here of a job's status.json.
type jobStatus struct {
	Process    uint32
	JobState   uint16
	BytesDone  int64
	BytesInAll int64
}

// status is that of the job of this process that runs.
func (j *jobFinder) status() (jobStatus, bool) {
	if j.mine != 0 {
		return j.read(j.mine)
	}
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return jobStatus{}, false
	}
	for _, e := range slices.Backward(entries) {
		n, err := strconv.Atoi(e.Name())
		if err != nil || j.seen[n] {
			continue
		}
		s, ok := j.read(n)
		if ok && s.Process == uint32(os.Getpid()) && !ops.JobState(s.JobState).Ended() {
			j.mine = n
			return s, true
		}
		j.seen[n] = true
	}
	return jobStatus{}, false
}

func (j *jobFinder) read(n int) (s jobStatus, ok bool) {
	b, err := os.ReadFile(filepath.Join(j.dir, strconv.Itoa(n), "status.json"))
	return s, err == nil && json.Unmarshal(b, &s) == nil
}

// cancel asks for the end of the job; false when there is none to be found.
func (j *jobFinder) cancel() bool {
	if _, ok := j.status(); !ok {
		return false
	}
	return os.WriteFile(filepath.Join(j.dir, strconv.Itoa(j.mine), "cancel"), []byte("1\n"), 0) == nil
}

// requestJSON is the form of a request that needs no quoting.
func requestJSON(args ops.Args) ([]byte, error) {
	request := map[string]string{}
	for name, v := range args {
		request[name] = fmt.Sprint(v)
	}
	return json.Marshal(request)
}
