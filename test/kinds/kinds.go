// Package kinds is the list of images that the engines of test/ work on: every
// format, type, block size and sector size that can be written, empty and used,
// small enough to try a lot.
package kinds

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// Kind is an image to start from.
type Kind struct {
	Name         string
	Format       *ops.Format
	Path         string // host path
	Differencing bool   // without its parent: absent sectors are told from zeros
	image        func() []byte
	held         []fixture.Write // what the image holds
	used         bool            // some blocks are written, zeroed and flushed first
}

const mib = 1 << 20

// All are the kinds.
func All() []Kind {
	return append(vhds(), vhdxs()...)
}

func vhds() []Kind {
	const block = 4096
	no := fixture.VHD{Size: 32 << 10, BlockSize: block, Blocks: []int64{1}}
	noTail, noCopy := no, no
	noTail.NoTail, noCopy.NoCopy = true, true
	return []Kind{
		vhdKind("fixed", fixture.VHD{Size: 32 << 10, Type: 2}, false),
		vhdKind("dynamic", fixture.VHD{Size: 30 << 10, BlockSize: block}, false),
		vhdKind("dynamic, used", fixture.VHD{Size: 30 << 10, BlockSize: block}, true),
		vhdKind("dynamic, unaligned", fixture.VHD{Size: 32 << 10, BlockSize: 2 * block, Unaligned: true}, true),
		vhdKind("dynamic, no footer at the end", noTail, false),
		vhdKind("dynamic, no footer at 0", noCopy, false),
		vhdKind("differencing", fixture.VHD{Size: 30 << 10, BlockSize: block, Type: 4}, false),
		vhdKind("differencing, used", fixture.VHD{Size: 30 << 10, BlockSize: block, Type: 4}, true),
	}
}

func vhdKind(name string, v fixture.VHD, used bool) Kind {
	if v.Type == 4 {
		v.Parent = &fixture.VHDParent{UUID: [16]byte{1}, Timestamp: 1, Name: "p.vhd",
			Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\p.vhd`}}}
	}
	return Kind{Name: "vhd " + name, Format: vhd.Format, Path: "/vms/disk.vhd", Differencing: v.Type == 4, image: v.Bytes, used: used}
}

// Prepare lays the image on a host of its own.
func (k Kind) Prepare(t testing.TB) (*crash.Subject, *crash.Prepared) {
	t.Helper()
	h := sim.New()
	h.Put(k.Path, k.image())
	s := &crash.Subject{Format: k.Format, Path: k.Path, Differencing: k.Differencing}
	if !k.used {
		history := crash.NewHistory(k.Differencing)
		for _, w := range k.held {
			history.Hold(w.Off, w.Data)
		}
		return s, &crash.Prepared{Host: h, History: history}
	}
	p, err := s.Prepare(h, crash.Steps[1], crash.Steps[5], crash.Steps[2], crash.Steps[8])
	require.NoError(t, err)
	return s, p
}

func vhdxs() []Kind {
	small := fixture.VHDX{Size: 7 << 19, BlockSize: mib}
	large := fixture.VHDX{Size: 7 << 19, BlockSize: mib, LogicalSector: 4096}
	fixed, child, child4k, dirty := small, small, large, small
	fixed.Fixed = true
	child.Parent, child4k.Parent = vhdxParent(), vhdxParent()
	dirty.Writes = []fixture.Write{{Off: 0, Data: pattern(4096)}, {Off: mib + 512, Data: pattern(512)}}
	dirty.Log = &fixture.Log{Tables: true, Entries: []fixture.LogEntry{{}}}
	return []Kind{
		vhdxKind("fixed", fixed, false),
		vhdxKind("dynamic", small, false),
		vhdxKind("dynamic, used", small, true),
		vhdxKind("dynamic, 4096-byte sectors, used", large, true),
		vhdxKind("differencing", child, false),
		vhdxKind("differencing, used", child, true),
		vhdxKind("differencing, 4096-byte sectors, used", child4k, true),
		vhdxKind("with a dirty log", dirty, false),
	}
}

func vhdxKind(name string, v fixture.VHDX, used bool) Kind {
	k := Kind{Name: "vhdx " + name, Format: vhdx.Format, Path: "/vms/disk.vhdx", Differencing: v.Parent != nil, image: v.Bytes, used: used}
	for _, w := range v.Writes {
		k.held = append(k.held, w)
	}
	return k
}

func vhdxParent() *fixture.Locator {
	return &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", "{83ed9ab2-1ca3-4bb8-9b0d-a3f8a3b1c0de}"}, {"relative_path", `.\p.vhdx`},
	}}
}

// pattern is n bytes that differ from sector to sector.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i/512*7 + i%251 + 1)
	}
	return b
}
