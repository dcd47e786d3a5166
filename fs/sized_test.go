package fs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"vhdfs/ops"
)

// sized is a flat disk whose size can change, and whose writes can be made to
// hang.
type sized struct {
	f     ops.File
	stall *atomic.Bool
	mu    sync.RWMutex
	raw   *ops.Raw
}

var (
	_ ops.Writer  = (*sized)(nil)
	_ ops.Resizer = (*sized)(nil)
)

// sizes are the knobs of sized disks.
type sizes struct{ stall atomic.Bool }

func (k *sizes) format() *ops.Format {
	return &ops.Format{
		Name: "sized", Number: ops.FormatVHDX, Extensions: []string{".sized"},
		Probe: func(_ ops.File, ext string) (bool, error) { return ext == ".sized", nil },
		Open: func(f ops.File, _ ops.OpenOptions) (ops.Layer, error) {
			st, err := f.Stat()
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			return &sized{f: f, stall: &k.stall, raw: ops.NewRaw(f, st.Size)}, nil
		},
	}
}

func (d *sized) now() *ops.Raw {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.raw
}

func (d *sized) Size() int64 { return d.now().Size() }
func (d *sized) Info() ops.Info {
	return ops.Info{Type: ops.Dynamic, LogicalSector: 512, PhysicalSector: 512}
}
func (d *sized) ReadRun(p []byte, off int64) (int, ops.Kind, error) { return d.now().ReadRun(p, off) }
func (d *sized) Extent(off, max int64) (ops.Extent, error)          { return d.now().Extent(off, max) }
func (d *sized) Zero(off, n int64, _ bool) error                    { return d.f.Punch(off, n) }
func (d *sized) Flush() error                                       { return d.f.Sync("sized") }
func (d *sized) Close() error                                       { return d.f.Close() }
func (d *sized) CanResize(int64) error                              { return nil }

func (d *sized) WriteAt(p []byte, off int64) (int, error) {
	if d.stall.Load() {
		select {} // until the daemon is killed
	}
	return d.f.WriteAt(p, off)
}

func (d *sized) Resize(_ context.Context, size, _ int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.f.Truncate(size, "sized"), d.f.Sync("sized")); err != nil {
		return err
	}
	d.raw = ops.NewRaw(d.f, size)
	return nil
}

// stallOp makes writes hang.
func (k *sizes) stallOp() *ops.Op {
	return &ops.Op{Name: "stall", Run: func(context.Context, *ops.Request) (ops.Fields, error) {
		k.stall.Store(true)
		return nil, nil
	}}
}

// cachesOp asks for what an operation may ask of those who cache an image:
// launder, or other bytes at an offset and that they are seen.
var cachesOp = &ops.Op{
	Name: "caches",
	Args: []ops.Arg{{Name: "what", Kind: ops.ArgText, Required: true, Bare: true}, {Name: "at", Kind: ops.ArgSize, Default: "0"}},
	Run: func(_ context.Context, r *ops.Request) (_ ops.Fields, err error) {
		o, err := r.Library.Operate(r.Image, ops.Terms{Name: "caches"})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, o.Close()) }()
		if what := r.Args.Text("what"); what != "launder" {
			if _, err := o.WriteAt([]byte(what), r.Args.Amount("at").Bytes); err != nil {
				return nil, err
			}
			return nil, o.Replaced()
		}
		return nil, o.Launder()
	},
}

func (k *sizes) ops() []*ops.Op { return []*ops.Op{k.stallOp(), cachesOp} }
