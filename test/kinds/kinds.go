// Package kinds is the list of images that the engines of test/ work on: every
// format, type, block size and sector size that can be written, empty and used,
// small enough to try a lot.
package kinds

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
)

// Kind is an image to start from.
type Kind struct {
	Name         string
	Format       *ops.Format
	Path         string       // host path
	Differencing bool         // without its parent: absent sectors are told from zeros
	Steps        []crash.Step // beside [crash.Steps]
	Damaged      bool         // has to be repaired before it is written
	image        func() []byte
	held         []fixture.Write                                 // what the image holds
	used         bool                                            // some blocks are written, zeroed and flushed first
	also         func(s *crash.Subject, p *crash.Prepared) error // sets Subject.Also
	summed       func(sim.Event) bool                            // [crash.Recording.Summed]
}

// Sequences are short sequences of steps that the image can take, first those of
// one step that only some images can take.
func (k Kind) Sequences(seed uint64) []crash.Sequence {
	var list []crash.Sequence
	for _, s := range k.Steps {
		list = append(list, crash.Sequence{s})
	}
	list = append(list, crash.Sequences(seed, k.Steps...)...)
	if k.Damaged {
		for i, q := range list {
			list[i] = append(crash.Sequence{repair}, q...)
		}
	}
	return list
}

// Random is a long sequence of steps that the image can take.
func (k Kind) Random(seed uint64, n int) crash.Sequence {
	q := crash.Random(seed, n, k.Steps...)
	if k.Damaged {
		q = append(crash.Sequence{repair}, q...)
	}
	return q
}

var repair = crash.Step{Lasts: true, Name: "repair", Do: (*crash.Guest).Repair}

// All are the kinds.
func All() []Kind {
	list := append(vhds(), vhdxs()...)
	for i := range list {
		steps, err := list[i].changes()
		if err != nil {
			panic(err) // an image of this package does not open
		}
		list[i].Steps = append(list[i].Steps, steps...)
	}
	return list
}

func vhds() []Kind {
	const block = 4096
	no := fixture.VHD{Size: 32 << 10, BlockSize: block, Blocks: []int64{1}}
	noTail, noCopy := no, no
	noTail.NoTail, noCopy.NoCopy = true, true
	bits := fixture.VHD{Size: 32 << 10, BlockSize: block, ExactBitmap: true, Blocks: []int64{1, 0}}
	leak := fixture.VHD{Size: 32 << 10, BlockSize: block, Type: 4, Gap: 2 * block, Blocks: []int64{1}, BAT: map[int64]uint32{1: 0xffffffff}}
	// As many blocks as the last sector of the table has entries for, but two.
	tap := fixture.VHD{Size: 126 * 512, BlockSize: 512, Batmap: true, Creator: "tap\x00", Blocks: []int64{1}}
	// Behind the disk's end, in its last block, too: what a growth must not show.
	old := fixture.VHD{Size: 30 << 10, BlockSize: block, Gap: 2 * block, Blocks: []int64{1, 2, 7}, BAT: map[int64]uint32{1: 0xffffffff, 2: 0xffffffff}}
	old.Patches = []fixture.VHDPatch{{Part: "file", Off: old.Layout().Blocks[7] + 512 + 2<<10, Data: bytes.Repeat([]byte{0xA5}, 2<<10)}}
	short, shortFixed := fixture.VHD{Size: 32 << 10, BlockSize: block, ShortFooter: true, Blocks: []int64{1}}, fixture.VHD{Size: 32 << 10, Type: 2, ShortFooter: true}
	batmap := vhdKind("dynamic, blktap's batmap", tap, false)
	batmap.also = batmapTells
	return []Kind{
		damaged(vhdKind("dynamic, footer of 511 bytes", short, false)),
		damaged(vhdKind("fixed, footer of 511 bytes", shortFixed, false)),
		batmap,
		vhdKind("dynamic, old bytes in free space", old, false),
		vhdKind("fixed", fixture.VHD{Size: 32 << 10, Type: 2}, false),
		vhdKind("dynamic", fixture.VHD{Size: 30 << 10, BlockSize: block}, false),
		vhdKind("dynamic, used", fixture.VHD{Size: 30 << 10, BlockSize: block}, true),
		vhdKind("dynamic, unaligned", fixture.VHD{Size: 32 << 10, BlockSize: 2 * block, Unaligned: true}, true),
		vhdKind("dynamic, no footer at the end", noTail, false),
		vhdKind("dynamic, no footer at 0", noCopy, false),
		vhdKind("dynamic, bitmaps of zeros", bits, false),
		vhdKind("differencing, lost block", leak, false),
		vhdKind("differencing", fixture.VHD{Size: 30 << 10, BlockSize: block, Type: 4}, false),
		vhdKind("differencing, used", fixture.VHD{Size: 30 << 10, BlockSize: block, Type: 4}, true),
	}
}

func vhdKind(name string, v fixture.VHD, used bool) Kind {
	if v.Type == 4 {
		v.Parent = &fixture.VHDParent{UUID: [16]byte{1}, Timestamp: 1, Name: "p.vhd",
			Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\p.vhd`}}}
	}
	k := Kind{Name: "vhd " + name, Format: vhd.Format, Path: "/vms/disk.vhd", Differencing: v.Type == 4, image: v.Bytes, used: used}
	if v.Type != 2 {
		k.summed = isFooter
		k.Steps = append(k.Steps, crash.Step{Name: "write footers", Do: writeFooters})
	}
	return k
}

// writeFooters stores a sound footer of another disk where each block ends, and
// perhaps the file.
func writeFooters(g *crash.Guest) error {
	forged := fixture.VHD{Size: 512, Type: 2, UUID: forgedID}.Bytes()[512:]
	for off := g.Block - 512; off < g.Writer.Size(); off += g.Block {
		if err := g.Store(off, forged); err != nil {
			return err
		}
	}
	return nil
}

func damaged(k Kind) Kind {
	k.Damaged = true
	return k
}

// isFooter tells a footer of the image, which has two, from what the guest forges.
func isFooter(e sim.Event) bool {
	return e.Len == 512 && string(e.Data[:8]) == "conectix" && [16]byte(e.Data[68:84]) != forgedID
}

var forgedID = [16]byte{0xF0}

// Prepare lays the image on a host of its own.
func (k Kind) Prepare(t testing.TB) (*crash.Subject, *crash.Prepared) {
	t.Helper()
	h := sim.New()
	h.Put(k.Path, k.image())
	s := &crash.Subject{Format: k.Format, Path: k.Path, Differencing: k.Differencing, Damaged: k.Damaged, Summed: k.summed}
	p := &crash.Prepared{Host: h, History: crash.NewHistory(k.Differencing)}
	for _, w := range k.held {
		p.History.Hold(w.Off, w.Data)
	}
	if k.used {
		var err error
		p, err = s.Prepare(h, crash.Steps[1], crash.Steps[5], crash.Steps[2], crash.Steps[8])
		require.NoError(t, err)
	}
	require.NoError(t, s.Describe(p))
	if k.also != nil {
		require.NoError(t, k.also(s, p))
	}
	return s, p
}
