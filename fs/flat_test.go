package fs

import (
	"context"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"vhdfs/ops"
)

// knobs are what tests change in the child that serves the mount, through
// operations of their own.
type knobs struct {
	mu      sync.Mutex
	fail    syscall.Errno // of the next writes
	opens   int
	started int
	flushes int
	stop    string        // why the slow operation ended
	held    chan struct{} // writes wait for its end, unless nil
}

// flat is a disk whose file holds its bytes: the simplest writable format.
type flat struct {
	*ops.Raw
	f ops.File
	k *knobs
}

var _ ops.Writer = (*flat)(nil)

func (k *knobs) format() *ops.Format {
	return &ops.Format{
		Name:       "flat",
		Extensions: []string{".flat"},
		Probe:      func(_ ops.File, ext string) (bool, error) { return ext == ".flat", nil },
		Open: func(f ops.File, _ ops.OpenOptions) (ops.Layer, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.opens++
			st, err := f.Stat()
			if err != nil {
				return nil, err
			}
			return &flat{Raw: ops.NewRaw(f, st.Size), f: f, k: k}, nil
		},
	}
}

func (d *flat) Info() ops.Info { return ops.Info{LogicalSector: 512, PhysicalSector: 512} }

func (d *flat) fault() error {
	d.k.mu.Lock()
	held := d.k.held
	d.k.mu.Unlock()
	if held != nil {
		<-held
	}
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if d.k.fail == 0 {
		return nil
	}
	return d.k.fail
}

func (d *flat) WriteAt(p []byte, off int64) (int, error) {
	if err := d.fault(); err != nil {
		return 0, err
	}
	return d.f.WriteAt(p, off)
}

func (d *flat) Zero(off, n int64, _ bool) error { return d.f.Punch(off, n) }

func (d *flat) Flush() error {
	d.k.mu.Lock()
	d.k.flushes++
	d.k.mu.Unlock()
	return d.f.Sync("flat")
}

// faultOp sets the errno of writes, 0 for none, and answers the counts.
func (k *knobs) faultOp() *ops.Op {
	return &ops.Op{
		Name: "fault",
		Args: []ops.Arg{{Name: "number", Kind: ops.ArgSize, Default: "0", Bare: true}},
		Run: func(_ context.Context, r *ops.Request) (ops.Fields, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.fail = syscall.Errno(r.Args.Amount("number").Bytes)
			return ops.Fields{{Name: "Opens", Value: k.opens}, {Name: "Started", Value: k.started}, {Name: "Flushes", Value: k.flushes}, {Name: "Stopped", Value: k.stop}}, nil
		},
	}
}

// holdOp makes writes wait until it runs again.
func (k *knobs) holdOp() *ops.Op {
	return &ops.Op{Name: "hold", Run: func(context.Context, *ops.Request) (ops.Fields, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.held == nil {
			k.held = make(chan struct{})
		} else {
			close(k.held)
			k.held = nil
		}
		return nil, nil
	}}
}

// slowOp works until it is told to stop.
func (k *knobs) slowOp() *ops.Op {
	return &ops.Op{Name: "slow", Writes: true, Plans: true, JobType: 3, Run: func(ctx context.Context, r *ops.Request) (ops.Fields, error) {
		if r.Dry {
			return ops.Plan{Move: 7}.Fields(), nil
		}
		r.Begin(200)
		r.Progress(50, 200)
		k.mu.Lock()
		k.started++
		k.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Minute):
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.stop = "time"; ctx.Err() != nil {
			k.stop = ctx.Err().Error()
		}
		return nil, ctx.Err()
	}}
}

// longOp answers more than is kept in memory.
var longOp = &ops.Op{Name: "long", Run: func(context.Context, *ops.Request) (ops.Fields, error) {
	return ops.Fields{{Name: "Ranges", Value: manyNumbers(3<<20 + 1)}}, nil
}}

// manyNumbers is a list of ones, so many bytes of JSON: an odd number.
type manyNumbers int

func (n manyNumbers) WriteJSON(w io.Writer) error {
	_, err := io.WriteString(w, "["+strings.Repeat("1,", (int(n)-3)/2)+"1]")
	return err
}

// panicOp has a broken invariant.
var panicOp = &ops.Op{Name: "panic", Run: func(context.Context, *ops.Request) (ops.Fields, error) { panic("broken on purpose") }}
