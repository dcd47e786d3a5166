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
)

// Kind is an image to start from.
type Kind struct {
	Name         string
	Format       *ops.Format
	Path         string // host path
	Differencing bool   // without its parent: absent sectors are told from zeros
	image        func() []byte
	used         bool // some blocks are written, zeroed and flushed first
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
	return Kind{"vhd " + name, vhd.Format, "/vms/disk.vhd", v.Type == 4, v.Bytes, used}
}

// Prepare lays the image on a host of its own.
func (k Kind) Prepare(t testing.TB) (*crash.Subject, *crash.Prepared) {
	t.Helper()
	h := sim.New()
	h.Put(k.Path, k.image())
	s := &crash.Subject{Format: k.Format, Path: k.Path, Differencing: k.Differencing}
	if !k.used {
		return s, &crash.Prepared{Host: h, History: crash.NewHistory(k.Differencing)}
	}
	p, err := s.Prepare(h, crash.Steps[1], crash.Steps[5], crash.Steps[2], crash.Steps[8])
	require.NoError(t, err)
	return s, p
}

func vhdxs() []Kind { return nil }
