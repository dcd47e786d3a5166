package ops

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"path"
	"sort"
)

// Modes of a compaction: the service's numbers.
const (
	modeFull       = "full"
	modeQuick      = "quick"
	modeRetrim     = "retrim"
	modePretrimmed = "pretrimmed"
	modePrezeroed  = "prezeroed"
)

// opCompact gives the host back what a disk does not need, whoever uses it.
var opCompact = &Op{
	Name:    "compact",
	Method:  "CompactVirtualHardDisk",
	Brief:   "give space that the disk does not need back to the host",
	JobType: 3,
	Writes:  true,
	Plans:   true,
	Args: []Arg{{Name: "Mode", Kind: ArgWord,
		Words: []Word{{modeFull, 0}, {modeQuick, 1}, {modeRetrim, 2}, {modePretrimmed, 3}, {modePrezeroed, 4}},
		Help: "full: drop blocks of zeros and space outside of all partitions, then as quick; quick and pretrimmed: drop unused blocks, and move the others together; " +
			"retrim: only give back what is unused within blocks; prezeroed: full without looking at partitions; default full for a VHD, quick for others"}},
	Can: canCompact,
	Run: runCompact,
}

// compaction is one compact.
type compaction struct {
	*Operation
	r        *Request
	mode     string
	free     []Range // in order, of no use to anybody as long as nobody came
	visits   int64   // of the engine when that was seen
	freed    bool    // anything of it was given up
	result   CompactResult
	warnings []string
}

// runCompact changes no byte of a partition, nor one that a child sees. It may be
// stopped, or cut, at any point, and run again.
func runCompact(ctx context.Context, r *Request) (_ Fields, err error) {
	o, err := r.Library.Operate(r.Image, Terms{Name: "compact", Quiet: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	c := &compaction{Operation: o, r: r, mode: r.Args.Text("Mode")}
	if c.mode == "" {
		c.mode = modeQuick
		if o.engine().format.Number == FormatVHD {
			c.mode = modeFull
		}
	}
	work, err := c.work()
	if err == nil {
		err = o.launder(ctx)
	}
	if err != nil {
		return c.fields(), err
	}
	r.Begin(0)
	err = work(ctx)
	if c.freed && !r.Dry {
		if err := o.Replaced(); err != nil {
			c.warnings = append(c.warnings, Sentence(err))
		}
	}
	return c.answer(err)
}

// work is what there is to do for an image of this type.
func (c *compaction) work() (func(context.Context) error, error) {
	if c.Info().Type == Fixed {
		return c.check, nil
	}
	return c.compact, c.Do(func(w Writer) error {
		if _, ok := w.(Compacter); !ok {
			return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: a %s %s image cannot be compacted", c.Image().Path(), c.Info().Type, c.engine().format.Name)
		}
		return nil
	})
}

// launder is [Operation.Launder] for as long as ctx lasts: it may have gigabytes
// to wait for.
func (o *Operation) launder(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- o.Launder() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check is all that is done to a fixed disk: its blocks stay where they are.
func (c *compaction) check(ctx context.Context) error {
	st, err := c.Stat()
	if err != nil {
		return err
	}
	c.result.Before, c.result.After = st.Size, st.Size
	broken := 0
	var first Anomaly
	err = c.Do(func(w Writer) error {
		k, ok := w.(Checker)
		if !ok {
			return nil
		}
		return k.Check(ctx, func(a Anomaly) {
			if a.Severity == Broken {
				if broken++; broken == 1 {
					first = a
				}
			}
		})
	})
	if err == nil && broken > 0 {
		err = Corruptf(0, "%s: %d errors, the first in %s: %s", c.Image().Path(), broken, first.Where, first.Text)
	}
	return err
}

func (c *compaction) compact(ctx context.Context) error {
	o := CompactOptions{
		Scan: c.mode == modeFull || c.mode == modePrezeroed,
		Move: c.mode != modeRetrim,
		Trim: true,
		Dry:  c.r.Dry, Progress: c.r.Progress,
	}
	if len(c.chain.layers()) > 1 {
		o.Below = c.below
	}
	if c.mode == modeFull {
		if err := c.findFree(); err != nil {
			return err
		}
	}
	if len(c.free) > 0 {
		o.Free = c.isFree
	}
	return c.Do(func(w Writer) (err error) {
		if err := c.track(w); err != nil {
			return err
		}
		c.result, err = w.(Compacter).Compact(ctx, o)
		return err
	})
}

// track tells the tracking file what may change: whole blocks that are free and
// have data.
func (c *compaction) track(w Writer) error {
	t := c.engine().tracked.Load()
	if t == nil || c.r.Dry {
		return nil
	}
	if err := t.Loosen(); err != nil {
		return err
	}
	block := int64(w.Info().BlockSize)
	for _, r := range c.free {
		off, end := (r.Off+block-1)/block*block, r.Off+r.Len
		if end < w.Size() {
			end = end / block * block
		}
		for off < end {
			x, err := w.Extent(off, end-off)
			if err != nil {
				return err
			}
			if x.Kind != Data {
				off += x.Len
				continue
			}
			if err := t.begin(w); err != nil {
				return err
			}
			from := off / block * block
			off = min((off+x.Len+block-1)/block*block, end)
			if err := t.Write(from, off-from); err != nil {
				return err
			}
		}
	}
	return nil
}

// findFree asks the partition table for space that nobody uses. Who writes the
// disk may be about to make a partition there, and a child may have one.
func (c *compaction) findFree() error {
	children, err := c.lib.Children(c.Image())
	if err != nil {
		return err
	}
	c.lib.mu.Lock()
	use := &c.engine().use
	used := use.writers > 0 || use.children > 0 || len(children) > 0
	c.visits = c.engine().visits.Load()
	c.lib.mu.Unlock()
	if used {
		c.warnings = append(c.warnings, "space outside of partitions stays: the disk is open for writing, or has children")
		return nil
	}
	l, err := c.lib.tables().Layout(c, c.Size(), uint32(c.engine().sector))
	if err != nil {
		return err
	}
	c.free = l.Free
	return nil
}

// isFree is CompactOptions.Free. Whoever comes ends what the table has proved.
func (c *compaction) isFree(off, n int64) bool {
	i := sort.Search(len(c.free), func(i int) bool { return c.free[i].Off > off }) - 1
	if i < 0 || off+n > c.free[i].Off+c.free[i].Len || c.engine().visits.Load() != c.visits {
		return false
	}
	c.freed = true
	return true
}

// below is CompactOptions.Below: it looks at the bytes where the map says data.
func (c *compaction) below(off, n int64) (bool, error) {
	parents := newChain(c.chain.layers()[1:])
	for n > 0 {
		x, err := parents.Extent(off, n)
		if err == io.EOF {
			return true, nil // past the parent's end
		}
		if err != nil {
			return false, err
		}
		if x.Kind == Data {
			if zeros, err := readsZero(parents, off, x.Len); err != nil || !zeros {
				return false, err
			}
		}
		off, n = off+x.Len, n-x.Len
	}
	return true, nil
}

// zeroStep is how much is read at a time to see whether it is zeros, in bytes.
const zeroStep = 64 << 10

func readsZero(r io.ReaderAt, off, n int64) (bool, error) {
	buf := make([]byte, min(n, zeroStep))
	for n > 0 {
		b := buf[:min(n, zeroStep)]
		got, err := r.ReadAt(b, off)
		if got < len(b) {
			return false, atEOF(err)
		}
		if !bytes.Equal(b, Zeros(int64(len(b)))) {
			return false, nil
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return true, nil
}

// answer has the same numbers for a dry run.
func (c *compaction) answer(failed error) (Fields, error) {
	if failed != nil || !c.r.Dry {
		return c.fields(), failed
	}
	at := c.Image()
	p := Plan{Size: c.Size(), Free: math.MaxInt64, Move: c.result.Moved * int64(c.Info().BlockSize)}
	if c.result != (CompactResult{Before: c.result.Before, After: c.result.Before}) {
		p.Changes = []string{at.Path()}
	}
	var err error
	p.Free, err = at.Dir.Free(path.Dir(at.Name))
	return append(p.Fields(), c.fields()...), err
}

func (c *compaction) fields() Fields {
	f := Fields{
		{"Mode", c.mode},
		{"FileSizeBefore", c.result.Before}, {"FileSizeAfter", c.result.After},
		{"BlocksDropped", c.result.Dropped}, {"BlocksMoved", c.result.Moved}, {"BytesTrimmed", c.result.Trimmed},
	}
	if len(c.warnings) > 0 {
		f = append(f, Field{"Warnings", c.warnings})
	}
	return f
}
