package forest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"vhdfs/ops"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// many is how many images there are at most, and deepest the longest chain.
const many, deepest = 7, 5

// step does what a number says.
func (f *Forest) step(n uint64) error {
	f.rng = rand.New(rand.NewPCG(n, 0xF1))
	kinds := []struct {
		in int
		do func() error
	}{
		{30, f.guest}, {9, f.child}, {3, f.create}, {9, f.merge}, {8, f.compact}, {8, f.resize},
		{6, f.convert}, {6, f.setParent}, {3, f.set}, {4, f.startAnew}, {4, f.discard}, {4, f.regrow},
	}
	if len(f.disks) >= many {
		return f.remove()
	}
	all := 0
	for _, k := range kinds {
		all += k.in
	}
	n %= uint64(all)
	for _, k := range kinds {
		if n < uint64(k.in) {
			return k.do()
		}
		n -= uint64(k.in)
	}
	panic("no step")
}

func (f *Forest) startAnew() error {
	f.trail = append(f.trail, "restart")
	return errors.Join(f.restart(), f.look())
}

// remove deletes the file of a leaf, as its user may.
func (f *Forest) remove() error {
	if err := f.release(); err != nil {
		return err
	}
	d := f.any(func(d *disk) bool { return len(f.kids(d)) == 0 })
	f.trail = append(f.trail, "rm "+d.name)
	f.disks = slices.DeleteFunc(f.disks, func(o *disk) bool { return o == d })
	return f.host.Dir(folder).Remove(d.name)
}

// guest writes to a leaf, and may stay. Disks that others were made from are not
// to be written.
func (f *Forest) guest() error {
	d := f.any(func(*disk) bool { return true })
	if err := f.enter(d); err != nil || f.user == nil {
		return err
	}
	for range 1 + f.rng.IntN(8) {
		if err := f.write(); err != nil {
			return err
		}
	}
	if f.rng.IntN(2) == 0 {
		if err := f.release(); err != nil {
			return err
		}
	}
	return f.look()
}

// enter lets a guest open a disk for writing, which is refused where others were
// made from it: then there is none.
func (f *Forest) enter(d *disk) error {
	if f.user == d {
		return nil
	}
	if err := f.release(); err != nil {
		return err
	}
	w, err := f.lib.Open(f.lib.Top(d.name), ops.Write)
	if len(f.kids(d)) > 0 {
		f.trail = append(f.trail, "write to the parent "+d.name)
		if !errors.Is(err, ops.ErrReadOnly) {
			return fmt.Errorf("%s has children; to open it for writing answers %w", d.name, err)
		}
		return nil
	}
	if err == nil {
		f.writer, f.user = w, d
	}
	return err
}

// write is one request of the guest.
func (f *Forest) write() error {
	size := int64(len(f.user.data))
	n := 1 + f.rng.Int64N(6000)
	off := f.rng.Int64N(size)
	if f.rng.IntN(3) == 0 {
		n, off = 64<<10*(1+f.rng.Int64N(40)), off/(512<<10)*(512<<10)
	}
	n = min(n, size-off)
	return f.ask(f.rng.IntN(8), off, n)
}

// ask is a request of the guest for [off, off+n): a flush, zeros with and without
// space, zeros as bytes, or bytes.
func (f *Forest) ask(what int, off, n int64) error {
	d := f.user
	part, fill := d.data[off:off+n], byte(1+f.rng.IntN(255))
	f.trail = append(f.trail, fmt.Sprintf("guest of %s: %s off=%d n=%d fill=%d", d.name, []string{"flush", "zero", "unmap", "write zeros"}[min(what, 3)], off, n, fill))
	switch what {
	case 0:
		return f.writer.Flush()
	case 1, 2:
		clear(part)
		return f.writer.Zero(off, n, what == 2)
	case 3:
		clear(part)
	default:
		f.trail[len(f.trail)-1] = fmt.Sprintf("guest of %s: write off=%d n=%d fill=%d", d.name, off, n, fill)
		copy(part, bytes.Repeat([]byte{fill}, int(n)))
	}
	_, err := f.writer.WriteAt(part, off)
	return err
}

// block is one that a format's new images may have.
func (f *Forest) block(format *ops.Format) int64 {
	if format == vhd.Format {
		return []int64{512 << 10, 2 * mib}[f.rng.IntN(2)]
	}
	return mib << f.rng.IntN(3)
}

func (f *Forest) size(from int64) int64 {
	return from + f.rng.Int64N((most-from)/f.sector+1)*f.sector
}

// larger is a disk's bytes, and zeros up to a size.
func larger(data []byte, size int64) []byte {
	b := make([]byte, size)
	copy(b, data)
	return b
}

// child makes one of a disk, larger than that at times.
func (f *Forest) child() error {
	if err := f.release(); err != nil {
		return err
	}
	p := f.any(func(d *disk) bool { return d.depth() < deepest })
	d := &disk{name: f.newName(p.format), format: p.format, typ: ops.Differencing, parent: p, data: bytes.Clone(p.data)}
	a := &action{op: "create", made: d.name, request: fmt.Sprintf("path=%s parent=%s block=%d", d.name, p.name, f.block(p.format))}
	if n := int64(len(p.data)); n < least || p.format == vhdx.Format && f.rng.IntN(4) == 0 {
		size := max(f.size(least), n)
		d.data = larger(p.data, size)
		a.request += fmt.Sprintf(" size=%d", size)
	}
	return f.run(a.then(f, d))
}

// format is one that a disk of the forest may have.
func (f *Forest) format() *ops.Format {
	if f.sector == 512 && f.rng.IntN(2) == 0 {
		return vhd.Format
	}
	return vhdx.Format
}

// kind says in a request what a new image is, and in the disk.
func (f *Forest) kind(d *disk) string {
	if f.rng.IntN(4) == 0 {
		d.typ = ops.Fixed
		return " type=fixed"
	}
	d.typ = ops.Dynamic
	return fmt.Sprintf(" type=dynamic block=%d", f.block(d.format))
}

func (f *Forest) create() error {
	d := &disk{format: f.format(), data: make([]byte, f.size(least))}
	d.name = f.newName(d.format)
	a := &action{op: "create", made: d.name, request: fmt.Sprintf("path=%s size=%d", d.name, len(d.data))}
	a.request += f.kind(d)
	if d.format == vhdx.Format {
		a.request += fmt.Sprintf(" sector=%d", f.sector)
	}
	return f.run(a.then(f, d))
}

// convert copies a disk into a new one, a child of another where that can be.
func (f *Forest) convert() error {
	if err := f.release(); err != nil {
		return err
	}
	src := f.any(func(*disk) bool { return true })
	d := &disk{format: f.format(), data: bytes.Clone(src.data)}
	d.name = f.newName(d.format)
	a := &action{op: "convert", image: src.name, made: d.name, request: "path=" + d.name}
	if len(d.data) < least {
		d.data = larger(d.data, least)
		a.request += fmt.Sprintf(" size=%d", least)
	}
	parent := f.any(func(p *disk) bool {
		alike := len(p.data) == len(d.data) || p.format == vhdx.Format && len(p.data) < len(d.data)
		return p.format == d.format && alike && p.depth() < deepest
	})
	if parent != nil && f.rng.IntN(2) == 0 {
		d.parent, d.typ = parent, ops.Differencing
		a.request += " parent=" + parent.name
	} else {
		a.request += f.kind(d)
	}
	return f.run(a.then(f, d))
}

func (f *Forest) compact() error {
	d := f.any(func(*disk) bool { return true })
	mode := []string{"full", "quick", "retrim", "pretrimmed", "prezeroed"}[f.rng.IntN(5)]
	a := &action{op: "compact", image: d.name, request: "mode=" + mode}
	return f.run(a.alone(f))
}

func (f *Forest) resize() error {
	return f.resizeTo(f.any(func(*disk) bool { return true }), f.size(small))
}

func (f *Forest) resizeTo(d *disk, size int64) error {
	a := &action{op: "resize", image: d.name, request: fmt.Sprintf("size=%d unsafe=true", size)}
	switch n := int64(len(d.data)); {
	case len(f.kids(d)) > 0:
		return f.run(a.refuse(f, ops.ErrReadOnly))
	case d.format == vhd.Format && (size < n || d.typ == ops.Differencing && size != n):
		return f.run(a.refuse(f, errors.ErrUnsupported))
	}
	data := larger(d.data[:min(int64(len(d.data)), size)], size)
	a.alone(f)
	a.after[d.name] = data
	a.commit = func() { d.data = data }
	return f.run(a)
}

// merge folds a disk into an ancestor. A guest may have it open, or one that was
// made from it.
func (f *Forest) merge() error {
	if source := f.any(func(d *disk) bool { return d.parent != nil }); source != nil {
		return f.fold(source)
	}
	return nil
}

// fold merges a disk into an ancestor.
func (f *Forest) fold(source *disk) error {
	line := []*disk{source}
	for d := source.parent; d != nil; d = d.parent {
		if line = append(line, d); f.rng.IntN(2) == 0 {
			break
		}
	}
	dest := line[len(line)-1]
	keep := f.rng.IntN(4) == 0
	a := &action{op: "merge", image: source.name, request: fmt.Sprintf("into=%s keep=%t", dest.name, keep)}
	for _, d := range line[1:] {
		if len(f.kids(d)) > 1 { // a guest there would be what it is refused for
			return errors.Join(f.release(), f.run(a.refuse(f, ops.ErrReadOnly)))
		}
	}
	a.after = f.view()
	a.after[dest.name] = source.data
	for _, d := range line {
		a.line = append(a.line, d.name)
		if d != dest {
			delete(a.after, d.name)
		}
	}
	a.commit = func() { f.merged(line) }
	if err := f.run(a); err != nil {
		return err
	}
	return f.gone(a, keep)
}

// merged makes the model so.
func (f *Forest) merged(line []*disk) {
	source, dest := line[0], line[len(line)-1]
	for _, k := range f.kids(source) {
		k.parent = dest
	}
	dest.data = source.data
	f.disks = slices.DeleteFunc(f.disks, func(d *disk) bool { return d != dest && slices.Contains(line, d) })
	if f.user == source {
		f.user, f.former = dest, source.name
	}
}

// gone asks that merged files are gone, or shut, and removes them.
func (f *Forest) gone(a *action, keep bool) error {
	if f.former != "" {
		for range 3 {
			if err := f.write(); err != nil {
				return err
			}
		}
		if err := errors.Join(f.release(), f.look()); err != nil {
			return err
		}
	}
	for _, name := range a.line[:len(a.line)-1] {
		if exists(f.host, name) != keep {
			return fmt.Errorf("%s is there: %t", name, !keep)
		}
		if !keep {
			continue
		}
		if err := compare(f.lib, name, f.disks[0].data); !errors.Is(err, ops.ErrParentMismatch) {
			return fmt.Errorf("%s is kept, to open it answers %w", name, err)
		}
		if err := f.host.Dir(folder).Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// setParent replaces the parent of a disk by a copy, and puts it back at times.
func (f *Forest) setParent() error {
	if err := f.release(); err != nil {
		return err
	}
	d := f.any(func(d *disk) bool { return d.parent != nil && len(d.parent.data) >= least })
	if d == nil {
		return nil
	}
	old := d.parent
	to := &disk{name: f.newName(d.format), format: d.format, data: bytes.Clone(old.data)}
	a := &action{op: "convert", image: old.name, made: to.name, request: "path=" + to.name}
	a.request += f.kind(to)
	if err := f.run(a.then(f, to)); err != nil {
		return err
	}
	a = &action{op: "set-parent", image: d.name, request: "parent=" + to.name}
	if err := f.run(a.refuse(f, ops.ErrParentMismatch)); err != nil {
		return err
	}
	a = &action{op: "set-parent", image: d.name, request: "ignoreidmismatch=true parent=" + to.name}
	a.alone(f).commit = func() { d.parent = to }
	if err := f.run(a); err != nil || f.rng.IntN(3) > 0 {
		return err
	}
	a = &action{op: "set-parent", image: d.name, request: "undo=true", once: true}
	a.alone(f).commit = func() { d.parent = old }
	return f.run(a)
}

// set changes a setting that no guest sees.
func (f *Forest) set() error {
	if err := f.release(); err != nil {
		return err
	}
	d := f.any(func(d *disk) bool { return d.format == vhdx.Format })
	if d == nil {
		return nil
	}
	a := &action{op: "set", image: d.name, request: fmt.Sprintf("id=d0000000-0000-4000-8000-%012x", f.rng.Uint32())}
	if f.sector == 512 && f.rng.IntN(2) == 0 {
		a.request = fmt.Sprintf("physical=%d", []int{512, 4096}[f.rng.IntN(2)])
	}
	return f.run(a.alone(f))
}
