package crash

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"vhdfs/ops"
)

// Resize changes the size of the disk, whose parent's disk has below bytes.
func (g *Guest) Resize(size, below int64) error {
	from := g.Writer.Size()
	g.Host.Ack("resize", resizing{from: from, to: size, below: below})
	if err := g.Writer.(ops.Resizer).Resize(context.Background(), size, below); err != nil {
		g.Host.Ack("not resized", unresized{from: from, to: size})
		g.doubt = true
		return err
	}
	m := resized{size: size}
	if size < from {
		m.length = g.Host.Bytes(g.Subject.Path).Size()
	}
	g.Host.Ack("resized", m)
	if got := g.Writer.Size(); got != size {
		return fmt.Errorf("resized to %d, size is %d", size, got)
	}
	return nil
}

// Compact gives space back. No byte that the guest sees may change, but those that
// are free, from block free on; the parents are zeros from byte under on. The file
// may not grow, unless footers are put where they have to be.
func (g *Guest) Compact(o ops.CompactOptions, under, free int64) error {
	c := g.Writer.(ops.Compacter)
	m := compacting{under: under / sector, free: math.MaxInt64}
	if g.Subject.Differencing {
		o.Below = func(off, _ int64) (bool, error) { return off >= under, nil }
	}
	if free > 0 {
		o.Free = func(off, _ int64) bool { return off >= free }
		m.free = free / sector
	}
	if !o.Dry {
		g.Host.Ack("compact", m)
	}
	whole := sound(g.Writer.Info())
	before := g.Host.Bytes(g.Subject.Path).Size()
	r, err := c.Compact(context.Background(), o)
	after := g.Host.Bytes(g.Subject.Path).Size()
	switch {
	case err != nil:
		g.doubt = true
		return err
	case whole && after > before || o.Dry && after != before:
		return fmt.Errorf("compaction made %d bytes of %d", after, before)
	case !o.Dry && r.After != after:
		return fmt.Errorf("compaction says that the file has %d bytes, it has %d", r.After, after)
	}
	if !o.Move {
		after = 0 // the cut at the end of the session before may not be durable yet
	}
	if !o.Dry {
		g.Host.Ack("compacted", compacted{after})
	}
	return nil
}

// sound tells whether an image shows no anomaly that a first write mends.
func sound(i ops.Info) bool {
	return !slices.ContainsFunc(i.Anomalies, func(a ops.Anomaly) bool { return a.Severity != ops.Note })
}

// Repair mends what can be mended.
func (g *Guest) Repair() error {
	g.Host.Ack("repair", repairing{})
	names := map[string]bool{}
	err := g.Writer.(ops.Repairer).Repair(context.Background(), func(a ops.Anomaly) error { names[a.Name] = true; return nil })
	if err != nil {
		g.doubt = true
		return err
	}
	if len(names) > 0 {
		g.Host.Ack("mended", mended{names})
	}
	return nil
}

// say lets do change what the image says of itself: the fact's value before is
// kept, the one after is asked for, and settled when do answers nil.
func (g *Guest) say(name, value string, do func() error) error {
	g.Host.Ack("say "+name, saying{name, value})
	if err := do(); err != nil {
		g.doubt = true
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
