package kinds

import (
	"encoding/binary"
	"fmt"
	"time"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
	"vhdfs/vhdx"
)

// changes are the steps for what an image can do beyond guest I/O.
func (k Kind) changes() ([]crash.Step, error) {
	h := sim.New()
	h.Put(k.Path, k.image())
	l, err := (&crash.Subject{Format: k.Format, Path: k.Path, Damaged: k.Damaged}).Open(h, ops.Write)
	if err != nil {
		return nil, err
	}
	list := append(sizes(l), compactions(l)...)
	if k.Format == vhdx.Format {
		list = append(list, crash.Step{Name: "reopen quietly", Do: (*crash.Guest).ReopenQuietly})
	}
	if s, ok := l.(ops.Settable); ok && s.SetPhysicalSector(l.Info().PhysicalSector) == nil {
		list = append(list, crash.Step{Lasts: true, Name: "set disk id", Do: func(g *crash.Guest) error { return g.SetDiskID(newID(g)) }})
		if l.Info().LogicalSector == 512 {
			list = append(list, crash.Step{Lasts: true, Name: "set physical sector", Do: func(g *crash.Guest) error {
				return g.SetPhysicalSector(512 + 4096 - g.Writer.Info().PhysicalSector)
			}})
		}
	}
	if _, ok := l.(ops.LinkSetter); ok {
		list = append(list, crash.Step{Lasts: true, Name: "set link id", Do: func(g *crash.Guest) error { return g.Writer.(ops.LinkSetter).SetLinkID(newID(g)) }})
	}
	if _, ok := l.(ops.Repairer); ok {
		list = append(list, repair)
	}
	if _, ok := l.(ops.Relinker); ok && k.Differencing {
		far := fmt.Sprintf("./%0200d.vhdx", 7)
		list = append(list,
			crash.Step{Lasts: true, Name: "set parent", Do: func(g *crash.Guest) error { return g.SetParent(newParent(g, "./q.vhdx")) }},
			crash.Step{Lasts: true, Name: "set a far parent", Do: func(g *crash.Guest) error { return g.SetParent(newParent(g, far)) }})
	}
	return list, l.Close()
}

// newID is an id that was not there before.
func newID(g *crash.Guest) (id ops.GUID) {
	id[0] = 0xE0
	binary.BigEndian.PutUint64(id[8:], g.Stamp())
	return id
}

func newParent(g *crash.Guest, path string) ops.CreateParent {
	id := newID(g)
	return ops.CreateParent{LinkID: id, DiskID: id, Timestamp: time.Unix(1_700_000_000, 0), Relative: path, Absolute: "/vms/" + path[2:]}
}

// sizes are other sizes that the format allows, at least three blocks and a few
// more than at the start.
func sizes(l ops.Layer) (list []crash.Step) {
	r, ok := l.(ops.Resizer)
	if !ok {
		return nil
	}
	start, block := l.Size(), int64(l.Info().BlockSize)
	if block == 0 {
		block = start / 4 / 4096 * 4096
	}
	add := func(name string, below int64, to func(size int64) int64) {
		if r.CanResize(to(start)) != nil {
			return
		}
		list = append(list, crash.Step{Lasts: true, Name: name, Do: func(g *crash.Guest) error {
			size := to(g.Writer.Size())
			if size < 3*block || size > start+4*block+16<<10 {
				return nil
			}
			return g.Resize(size, below)
		}})
	}
	add("grow", 0, func(size int64) int64 { return size + block + 4096 })
	add("grow over a parent", 1<<40, func(size int64) int64 { return size + block/2/4096*4096 })
	list = append(list, crash.Step{Lasts: true, Name: "write and grow", Do: func(g *crash.Guest) error {
		if err := g.Write(g.Block+g.Unit, g.Unit); err != nil || r.CanResize(start+block+4096) != nil || g.Writer.Size() > start {
			return err
		}
		return g.Resize(g.Writer.Size()+block+4096, 0)
	}})
	add("grow to a border", start, func(size int64) int64 { return size/block*block + block })
	add("shrink", 0, func(size int64) int64 { return size - min(4096, block) })
	add("shrink by a block", 0, func(size int64) int64 { return (size - 1) / block * block })
	return list
}

// compactions are the ways to give space back, with a parent that has something
// in its first block.
func compactions(l ops.Layer) (list []crash.Step) {
	if _, ok := l.(ops.Compacter); !ok || l.Info().Type == ops.Fixed {
		return nil
	}
	block := int64(l.Info().BlockSize)
	for _, c := range []struct {
		name string
		o    ops.CompactOptions
		free int64
	}{
		{"compact", ops.CompactOptions{Move: true}, 0},
		{"compact after a scan", ops.CompactOptions{Scan: true, Move: true}, 0},
		{"drop zeros", ops.CompactOptions{Scan: true}, 0},
		{"drop what is free", ops.CompactOptions{Scan: true, Move: true}, 2 * block},
		{"trim", ops.CompactOptions{Trim: true}, 0},
		{"plan a compaction", ops.CompactOptions{Scan: true, Trim: true, Move: true, Dry: true}, 0},
	} {
		list = append(list, crash.Step{Lasts: true, Name: c.name, Do: func(g *crash.Guest) error { return g.Compact(c.o, block, c.free) }})
	}
	return list
}
