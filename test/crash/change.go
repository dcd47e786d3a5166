package crash

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vhdfs/ops"
)

// Resize changes the size of the disk, whose parent's disk has below bytes.
func (g *Guest) Resize(size, below int64) error {
	from := g.Writer.Size()
	g.Host.Ack("resize", resizing{from: from, to: size, below: below})
	if err := g.Writer.(ops.Resizer).Resize(context.Background(), size, below); err != nil {
		g.Host.Ack("not resized", unresized{from: from, to: size})
		return err
	}
	g.Host.Ack("resized", resized{size})
	if got := g.Writer.Size(); got != size {
		return fmt.Errorf("resized to %d, size is %d", size, got)
	}
	return nil
}

// Compact gives space back. No byte that the guest sees may change, and the file
// may not grow.
func (g *Guest) Compact(o ops.CompactOptions) error {
	before := g.Host.Bytes(g.Subject.Path).Size()
	r, err := g.Writer.(ops.Compacter).Compact(context.Background(), o)
	after := g.Host.Bytes(g.Subject.Path).Size()
	switch {
	case err != nil:
		return err
	case after > before || o.Dry && after != before:
		return fmt.Errorf("compaction made %d bytes of %d", after, before)
	case !o.Dry && r.After != after:
		return fmt.Errorf("compaction says that the file has %d bytes, it has %d", r.After, after)
	}
	return nil
}

// say lets do change what the image says of itself: the fact's value before is
// kept, the one after is asked for, and settled when do answers nil.
func (g *Guest) say(name, value string, do func() error) error {
	g.Host.Ack("say "+name, saying{name, value})
	if err := do(); err != nil {
		return err
	}
	g.Host.Ack("said "+name, said{name, value})
	if got := describe(g.Writer.Info())[name]; got != value {
		return fmt.Errorf("%s is %s, was set to %s", name, got, value)
	}
	return nil
}

// SetPhysicalSector changes the physical sector size.
func (g *Guest) SetPhysicalSector(bytes uint32) error {
	return g.say(physical, fmt.Sprint(bytes), func() error { return g.Writer.(ops.Settable).SetPhysicalSector(bytes) })
}

// SetDiskID changes the virtual disk id.
func (g *Guest) SetDiskID(id ops.GUID) error {
	return g.say(diskID, id.String(), func() error { return g.Writer.(ops.Settable).SetDiskID(id) })
}

// SetParent records another parent.
func (g *Guest) SetParent(p ops.CreateParent) error {
	// What the image will say is up to the format: asked of a copy.
	l, err := g.Subject.Open(g.Host.Clone(), ops.Write)
	if err != nil {
		return err
	}
	err = l.(ops.Relinker).SetParent(p)
	value := describe(l.Info())[parent]
	if err = errors.Join(err, l.Close()); err != nil {
		return err
	}
	if !strings.Contains(value, p.LinkID.String()) {
		return fmt.Errorf("parent %s is recorded as %s", p.LinkID, value)
	}
	return g.say(parent, value, func() error { return g.Writer.(ops.Relinker).SetParent(p) })
}
