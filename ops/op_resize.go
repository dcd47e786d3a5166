package ops

import (
	"context"
	"errors"
	"io"
	"math"
	"path"
)

// opResize changes the virtual size, whoever uses the disk.
var opResize = &Op{
	Name:    "resize",
	Method:  "ResizeVirtualHardDisk",
	Brief:   "change the virtual size",
	JobType: 4,
	Writes:  true,
	Plans:   true,
	Args: []Arg{
		{Name: "MaxInternalSize", Short: "size", Kind: ArgSize, Words: []Word{{Text: "min"}}, Required: true, Bare: true,
			Help: "the size, such as 40G, +10G to add to it, or min for the smallest that all partitions need"},
		{Name: "Unsafe", Kind: ArgBool, Help: "shrink also where a partition is cut, or no partition table says what would be"},
		{Name: "MoveGPT", Kind: ArgBool, Help: "move the backup GPT to where the disk ends then"},
	},
	Can: canResize,
	Run: runResize,
}

// resizing is one resize.
type resizing struct {
	*Operation
	r        *Request
	old, new int64 // bytes
	below    int64 // bytes of the parent's disk, 0 without a parent
	movegpt  bool
	unsafe   bool
	min      bool    // the new size is the floor, whatever that is
	layout   *Layout // of the disk as it is; nil where nobody had to look
	moved    bool    // the backup GPT
	warnings []string
}

// runResize changes nothing where the answer is an error, unless moving the
// backup GPT of a disk that shrinks was done when the shrinking failed. The same
// request goes on from any state that a crash leaves.
func runResize(ctx context.Context, r *Request) (_ Fields, err error) {
	o, err := r.Library.Operate(r.Image, Terms{Name: "resize"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	z := &resizing{Operation: o, r: r, old: o.Size(), movegpt: r.Args.Bool("MoveGPT"), unsafe: r.Args.Bool("Unsafe")}
	if err := z.prepare(ctx); err != nil {
		return z.fields(), err
	}
	p, err := z.plan()
	if err != nil {
		return z.fields(), err
	}
	if r.Dry {
		return append(p.Fields(), z.fields()...), nil
	}
	if err := p.Enough(o.Image().Path()); err != nil {
		return z.fields(), err
	}
	r.Begin(0)
	err = z.carryOut(ctx)
	z.tell()
	return z.fields(), err
}

// prepare decides the size and asks everything that forbids it, cheapest first.
func (z *resizing) prepare(ctx context.Context) error {
	if len(z.chain.layers()) > 1 { // a parent stays as it is while a child is open
		var err error
		if _, z.below, err = z.chain.layers()[1].describe(); err != nil {
			return err
		}
	}
	if err := z.readSize(); err != nil {
		return err
	}
	if err := z.ask(z.new); err != nil {
		return err
	}
	if err := z.look(ctx); err != nil {
		return err
	}
	if z.min {
		var err error
		if z.new, err = z.smallest(); err == nil {
			err = z.ask(z.new)
		}
		if err != nil {
			return err
		}
	}
	if z.movegpt && !z.layout.GPT {
		return Errorf(ErrUsage, 0, "movegpt: %s has no GPT that can be used", z.Image().Path())
	}
	return z.guardFloor(z.layout)
}

// readSize is the size that is asked for, in whole sectors.
func (z *resizing) readSize() error {
	a := z.r.Args.Amount("MaxInternalSize")
	if z.min = a.Word == "min"; z.min {
		z.new = z.old
		return nil
	}
	sector := z.engine().sector
	z.new = a.Bytes
	most := math.MaxInt64 - sector
	if a.Relative {
		most -= z.old
	}
	if z.new > most {
		return Errorf(ErrUsage, StatusSizeInvalid, "size: %d bytes more than the %d that %s has are more than any image holds", z.new, z.old, z.Image().Path())
	}
	if a.Relative {
		z.new += z.old
	}
	z.new = (z.new + sector - 1) / sector * sector
	if z.new == 0 {
		return Errorf(ErrUsage, StatusSizeInvalid, "size: 0 bytes are no disk")
	}
	return nil
}

func (z *resizing) smallest() (int64, error) {
	floor := z.layout.MinInternalSize
	if floor == 0 {
		return 0, z.noFloor(z.layout)
	}
	sector := z.engine().sector
	floor = (floor + sector - 1) / sector * sector
	if floor >= z.old {
		return 0, Errorf(ErrUsage, StatusAtMinimum, "size=min: %s has %d bytes, all of which its partitions need", z.Image().Path(), z.old)
	}
	return floor, nil
}

func (z *resizing) noFloor(l *Layout) error {
	return Errorf(ErrUsage, StatusMinimumUnknown, "size: %s cannot become smaller than %d bytes: %s, so nothing says what would be cut off; unsafe=true shrinks it all the same",
		z.Image().Path(), z.old, l.Unknown)
}

// guardFloor refuses to cut a partition off.
func (z *resizing) guardFloor(l *Layout) error {
	switch {
	case z.new >= z.old || z.unsafe:
		return nil
	case l.MinInternalSize == 0:
		return z.noFloor(l)
	case z.new < l.MinInternalSize:
		return Errorf(ErrUsage, StatusTruncates, "size: %d bytes for %s, whose partitions need %d; size=min shrinks it to that",
			z.new, z.Image().Path(), l.MinInternalSize)
	}
	return nil
}

// ask whether the format can make the disk so long. Before the smallest size is
// known it is asked for any smaller one: a type that cannot shrink cannot.
func (z *resizing) ask(size int64) error {
	typeOnly := z.min && size == z.old
	if typeOnly {
		size -= z.engine().sector
	}
	return z.Do(func(w Writer) error {
		rz, ok := w.(Resizer)
		if !ok {
			return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: a %s %s image cannot be resized", z.Image().Path(), z.Info().Type, z.engine().format.Name)
		}
		if size == z.old {
			return nil
		}
		err := rz.CanResize(size)
		if typeOnly && !errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		return err
	})
}

// look reads the partition table. Growing needs none, and goes on without. One
// that a guest has written and the kernel still holds counts for the others.
func (z *resizing) look(ctx context.Context) (err error) {
	needed := z.min || z.movegpt || z.new < z.old
	if needed {
		if err := z.launder(ctx); err != nil {
			return err
		}
	}
	if z.layout, err = z.readLayout(z.Operation); err == nil {
		return nil
	}
	z.layout = nil
	if needed {
		return err
	}
	z.warnings = append(z.warnings, "the partition table cannot be read: "+Sentence(err))
	return nil
}

func (z *resizing) readLayout(from io.ReaderAt) (*Layout, error) {
	return z.lib.tables().Layout(from, z.old, uint32(z.engine().sector))
}

// plan is what the host needs for it: a fixed disk has all of its space.
func (z *resizing) plan() (p Plan, err error) {
	at := z.Image()
	p = Plan{Changes: []string{at.Path()}, Size: z.new, Free: math.MaxInt64}
	if z.new == z.old && !z.movegpt {
		p.Changes = nil
	}
	if z.Info().Type == Fixed {
		p.Need = max(0, z.new-z.old)
		p.Free, err = at.Dir.Free(path.Dir(at.Name))
	}
	return p, err
}

// carryOut is the order:
//
//	grow            the disk has the new size; the backup GPT is in its middle
//	move the GPT    first header and backup fit the new size
//
//	move the GPT    they fit the smaller size, of a disk that is larger still
//	shrink          the disk has the new size
//
// Each step is durable before the next. A disk that has its size already is asked
// for it all the same, which gives back what a failure left. Guests go on, but for the moment in
// which a disk shrinks: nothing may be on its way to what is cut off, and the
// partition table is looked at once more when nobody can write one.
func (z *resizing) carryOut(ctx context.Context) error {
	if z.new >= z.old {
		if err := z.Do(func(w Writer) error { return z.resize(ctx, w) }); err != nil {
			return err
		}
	}
	if z.movegpt {
		moved, err := z.lib.tables().MoveGPT(z.Operation, z.new, uint32(z.engine().sector))
		if z.moved = moved; moved {
			z.warn(z.Replaced())
		}
		if err != nil {
			return err
		}
	}
	if z.new >= z.old {
		return nil
	}
	return z.DoAlone(func(w Writer) error {
		if !z.unsafe {
			l, err := z.readLayout(locked{z.chain.layers()})
			if err == nil {
				err = z.guardFloor(l)
			}
			if err != nil {
				return err
			}
		}
		return z.resize(ctx, w)
	})
}

func (z *resizing) resize(ctx context.Context, w Writer) error {
	return z.engine().trackResize(w, z.new, func() error { return w.(Resizer).Resize(ctx, z.new, z.below) })
}

// tell makes those who have the disk open see what it is now: it may have become
// smaller though something failed after that. It is done all the same where they
// cannot be told.
func (z *resizing) tell() {
	now := z.Size()
	if now == z.old || now == 0 { // 0: the image is poisoned, or closed underneath
		return
	}
	z.warn(z.Resized())
	switch l := z.layout; {
	case l == nil || !l.GPT || z.movegpt:
	case now < z.old:
		z.warnings = append(z.warnings, "the backup GPT is cut off; resize with movegpt=true, or a partitioning tool, writes it anew")
	default:
		z.warnings = append(z.warnings, "the backup GPT is not at the end of the disk; resize with movegpt=true, or a partitioning tool, moves it")
	}
}

func (z *resizing) warn(err error) {
	if err != nil {
		z.warnings = append(z.warnings, Sentence(err))
	}
}

func (z *resizing) fields() Fields {
	f := Fields{{"SizeBefore", z.old}}
	if z.new > 0 {
		f = append(f, Field{"MaxInternalSize", z.new})
	}
	if z.layout != nil {
		var floor any
		if z.layout.MinInternalSize > 0 {
			floor = z.layout.MinInternalSize
		}
		f = append(f, Field{"MinInternalSize", floor})
	}
	if z.movegpt {
		f = append(f, Field{"MovedGPT", z.moved})
	}
	if len(z.warnings) > 0 {
		f = append(f, Field{"Warnings", z.warnings})
	}
	return f
}
