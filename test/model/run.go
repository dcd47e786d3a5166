package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"

	"vhdfs/ops"
	"vhdfs/test/budget"
	"vhdfs/test/sim"
)

// Op is one operation; what it does follows from its fields alone, so that a list
// of operations can be cut and run again.
type Op struct {
	Kind   string
	Off, N int64
	Unmap  bool
	Fill   byte // of a write: bytes fill+i%251; of a compaction: its mode
}

func (o Op) String() string {
	switch o.Kind {
	case "write":
		return fmt.Sprintf("write off=%d n=%d fill=%d", o.Off, o.N, o.Fill)
	case "zero":
		return fmt.Sprintf("zero off=%d n=%d unmap=%v", o.Off, o.N, o.Unmap)
	case "resize":
		return fmt.Sprintf("resize size=%d", o.N)
	case "compact":
		return "compact mode=" + modes[int(o.Fill)%len(modes)]
	case "read", "extents":
		return fmt.Sprintf("%s off=%d n=%d", o.Kind, o.Off, o.N)
	}
	return o.Kind
}

// Random makes a list of operations for a disk.
func Random(seed uint64, c Config, n int) []Op {
	rng := rand.New(rand.NewPCG(seed, 0x0D))
	list := make([]Op, n)
	block := max(int64(c.Block), 4096)
	for i := range list {
		o := Op{Off: rng.Int64N(c.Size), N: 1 + rng.Int64N(6000), Unmap: rng.IntN(2) == 0, Fill: byte(rng.IntN(256))}
		switch rng.IntN(4) {
		case 0: // whole sectors
			o.Off, o.N = o.Off/int64(c.Sector)*int64(c.Sector), (o.N/int64(c.Sector)+1)*int64(c.Sector)
		case 1: // around a block's border
			o.Off = max(0, o.Off/block*block-rng.Int64N(3000))
		}
		o.Kind = pick(rng)
		if o.Kind == "resize" {
			o.N = c.Size/2 + rng.Int64N(c.Size)
			if o.Unmap { // more often inside one block
				o.N = c.Size - 64*kib + rng.Int64N(128*kib)
			}
			o.N = max(o.N/int64(c.Sector), 8) * int64(c.Sector)
			list[i] = o
			continue
		}
		if o.Kind == "zero" && rng.IntN(3) == 0 {
			o.Off, o.N = o.Off/block*block, block*(1+rng.Int64N(2))
		}
		if o.Kind != "past the end" {
			o.N = min(o.N, c.Size-o.Off)
		}
		list[i] = o
	}
	return list
}

// pick weighs the kinds.
func pick(rng *rand.Rand) string {
	for _, k := range []struct {
		kind string
		in   int // 1000
	}{
		{"flush", 40}, {"resize", 15}, {"compact", 8}, {"reopen", 8}, {"restart", 4}, {"past the end", 10}, {"second handle", 8}, {"extents", 40}, {"read", 200}, {"zero", 160},
	} {
		if rng.IntN(1000) < k.in {
			return k.kind
		}
	}
	return "write"
}

// machine is a library on a host beside the model of one image.
type machine struct {
	c     Config
	host  *sim.Host
	lib   *ops.Library
	h     *ops.Handle
	model []byte
}

func (m *machine) start() error {
	m.lib = ops.NewLibrary(ops.LibraryOptions{Top: m.host.Dir("/vms"), Formats: []*ops.Format{m.c.Format}})
	return m.open()
}

func (m *machine) open() (err error) {
	m.h, err = m.lib.Open(m.lib.Top(m.c.name(m.c.Depth)), ops.Write)
	return err
}

func (m *machine) stop() error {
	return errors.Join(m.h.Close(), m.lib.Close())
}

// Failure is an operation that went wrong.
type Failure struct {
	At  int // index of the operation; the number of operations for what the end showed
	Err error
}

func (f *Failure) Error() string { return fmt.Sprintf("operation %d: %v", f.At, f.Err) }

// Run carries a list out on a new chain. nil: all as the model says, the image
// sound and its parents untouched.
func Run(c Config, seed uint64, list []Op) (failure *Failure) {
	at := 0
	defer func() {
		if p := recover(); p != nil {
			failure = &Failure{at, fmt.Errorf("panic: %v", p)}
		}
	}()
	host, model, err := c.Build(seed)
	m := &machine{c: c, host: host, model: model}
	if err == nil {
		err = m.start()
	}
	if err != nil {
		return &Failure{0, err}
	}
	parents := m.parents()
	for ; at < len(list); at++ {
		if err := m.do(list[at]); err != nil {
			return &Failure{at, err}
		}
	}
	if err := m.finish(parents); err != nil {
		return &Failure{len(list), err}
	}
	return nil
}

func (m *machine) do(o Op) error {
	if size := int64(len(m.model)); o.Kind != "resize" {
		o.Off %= size
		if o.Kind != "past the end" {
			o.N = min(o.N, size-o.Off)
		}
	}
	switch o.Kind {
	case "resize":
		return m.resize(o.N)
	case "compact":
		_, err := m.operate("compact", "mode="+modes[int(o.Fill)%len(modes)])
		return err
	case "write":
		p := make([]byte, o.N)
		for i := range p {
			p[i] = o.Fill + byte(i%251)
		}
		n, err := m.h.WriteAt(p, o.Off)
		if err == nil && n != len(p) {
			err = fmt.Errorf("%d bytes were written", n)
		}
		copy(m.model[o.Off:], p)
		return err
	case "zero":
		clear(m.model[o.Off : o.Off+o.N])
		return m.h.Zero(o.Off, o.N, o.Unmap)
	case "read":
		return m.read(m.h, o.Off, o.N)
	case "extents":
		return m.extents(o.Off, o.N)
	case "flush":
		return m.h.Flush()
	case "reopen":
		return errors.Join(m.h.Close(), m.open())
	case "restart":
		return errors.Join(m.stop(), m.start())
	case "past the end":
		return m.pastEnd(o)
	case "second handle":
		second, err := m.lib.Open(m.lib.Top(m.c.name(m.c.Depth)), ops.Read)
		if err != nil {
			return err
		}
		return errors.Join(m.read(second, o.Off, o.N), second.Close())
	}
	return fmt.Errorf("no operation %q", o.Kind)
}

func (m *machine) read(h *ops.Handle, off, n int64) error {
	p := bytes.Repeat([]byte{0xA5}, int(n))
	k, err := h.ReadAt(p, off)
	if err != nil && err != io.EOF || int64(k) != n {
		return fmt.Errorf("%d bytes were read: %w", k, err)
	}
	return differs(m.model[off:off+n], p, off)
}

func differs(want, got []byte, off int64) error {
	if bytes.Equal(want, got) {
		return nil
	}
	for i := range want {
		if want[i] != got[i] {
			return fmt.Errorf("byte %d reads as %#x, want %#x", off+int64(i), got[i], want[i])
		}
	}
	return nil
}

// extents asks that runs of zeros are zeros, and that runs tile the range.
func (m *machine) extents(off, n int64) error {
	for end := off + n; off < end; {
		x, err := m.h.Extent(off, end-off)
		if err != nil {
			return err
		}
		if x.Len <= 0 || x.Len > end-off || x.Kind == ops.Absent {
			return fmt.Errorf("extent at %d: %+v", off, x)
		}
		if x.Kind == ops.Zero {
			if err := differs(m.model[off:off+x.Len], make([]byte, x.Len), off); err != nil {
				return fmt.Errorf("extent of zeros: %w", err)
			}
		}
		off += x.Len
	}
	return nil
}

// pastEnd writes over the end of the disk, where nothing may be stored, and reads
// over it.
func (m *machine) pastEnd(o Op) error {
	size := int64(len(m.model))
	off := size - min(o.N/2, size)
	if n, err := m.h.WriteAt(make([]byte, o.N), off); !errors.Is(err, ops.ErrPastEnd) || n != 0 {
		return fmt.Errorf("write past the end: %d bytes, %v", n, err)
	}
	p := make([]byte, o.N)
	n, err := m.h.ReadAt(p, off)
	if err != io.EOF || int64(n) != size-off {
		return fmt.Errorf("read past the end: %d bytes, %v", n, err)
	}
	return differs(m.model[off:], p[:n], off)
}

// parents are the files that nothing may change.
func (m *machine) parents() [][]byte {
	var files [][]byte
	for i := 1; i < m.c.Depth; i++ {
		b, err := m.host.ReadFile("/vms/" + m.c.name(i))
		if err != nil {
			panic(err)
		}
		files = append(files, b)
	}
	return files
}

// finish compares everything, closes, compares again, and checks.
func (m *machine) finish(parents [][]byte) error {
	whole := func() error {
		return errors.Join(m.read(m.h, 0, int64(len(m.model))), m.extents(0, int64(len(m.model))))
	}
	if err := errors.Join(whole(), m.stop(), m.start(), whole()); err != nil {
		return err
	}
	if !slices.EqualFunc(parents, m.parents(), bytes.Equal) {
		return errors.New("a parent was written to")
	}
	if err := m.stop(); err != nil {
		return err
	}
	l, err := m.lib.OpenLayer(m.lib.Top(m.c.name(m.c.Depth)))
	if err != nil {
		return err
	}
	if c, ok := l.(ops.Checker); ok {
		err = c.Check(context.Background(), func(a ops.Anomaly) {
			if a.Severity == ops.Broken {
				err = fmt.Errorf("check: %s: %s", a.Name, a.Text)
			}
		})
	}
	return errors.Join(err, l.Close())
}

// Shrink removes operations from a failing list, halves first, as long as it
// still fails, within tries runs.
func Shrink(c Config, seed uint64, list []Op, failure *Failure, tries int) ([]Op, *Failure) {
	short := budget.Shrink(list, failure.At, tries, func(shorter []Op) (int, bool) {
		f := Run(c, seed, shorter)
		if f == nil {
			return 0, false
		}
		failure = f
		return f.At, true
	})
	return short, failure
}

// Script prints a list, one operation a line.
func Script(list []Op) string {
	lines := make([]string, len(list))
	for i, o := range list {
		lines[i] = o.String()
	}
	return strings.Join(lines, "\n")
}
