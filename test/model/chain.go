// Package model runs random operations through the library against a plain byte
// model, for every format, type, block size, sector size and depth of chain. A
// failure prints its seed and the shortest list of operations that still fails.
package model

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// Config is a chain of images; the last one is written.
type Config struct {
	Name   string
	Format *ops.Format
	Fixed  bool
	Size   int64
	Block  uint32
	Sector uint32 // logical, in bytes
	Depth  int
	Made   bool // by the product's own Create, empty; else by the fixtures, with content
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// Configs are the chains that are tried.
func Configs() []Config {
	var list []Config
	for _, block := range []uint32{4 * kib, 32 * kib, 512 * kib, 2 * mib} {
		for depth := 1; depth <= 5; depth++ {
			size := min(int64(block)*11/2, 3*mib)
			list = append(list, Config{Format: vhd.Format, Size: size, Block: block, Sector: 512, Depth: depth})
		}
	}
	for _, sector := range []uint32{512, 4096} {
		for depth := 1; depth <= 5; depth++ {
			list = append(list, Config{Format: vhdx.Format, Size: 7 << 19, Block: mib, Sector: sector, Depth: depth})
		}
		for _, block := range []uint32{mib, 2 * mib, 32 * mib, 256 * mib} {
			list = append(list, Config{Format: vhdx.Format, Size: 5 * mib, Block: block, Sector: sector, Depth: 1, Made: true})
		}
		list = append(list, Config{Format: vhdx.Format, Fixed: true, Size: 3 * mib, Block: mib, Sector: sector, Depth: 1, Made: true})
	}
	list = append(list,
		Config{Format: vhd.Format, Fixed: true, Size: 300*kib + 512, Sector: 512, Depth: 1, Made: true},
		Config{Format: vhd.Format, Size: 3*mib + 512, Block: 512 * kib, Sector: 512, Depth: 1, Made: true},
		Config{Format: vhd.Format, Size: 3 * mib, Block: 2 * mib, Sector: 512, Depth: 1, Made: true},
	)
	for i := range list {
		c := &list[i]
		c.Name = fmt.Sprintf("%s block %d sector %d depth %d", c.Format.Name, c.Block, c.Sector, c.Depth)
		if c.Fixed {
			c.Name = fmt.Sprintf("%s fixed sector %d", c.Format.Name, c.Sector)
		} else if c.Made {
			c.Name += " made here"
		}
	}
	return list
}

// name of image i of the chain, from 1.
func (c Config) name(i int) string { return strconv.Itoa(i) + c.Format.Extensions[0] }

// Build lays the chain on a host and says what the last image reads as.
func (c Config) Build(seed uint64) (*sim.Host, []byte, error) {
	h, model := sim.New(), make([]byte, c.Size)
	if c.Made {
		return h, model, c.create(h)
	}
	rng := rand.New(rand.NewPCG(seed, 0xF1))
	for i := 1; i <= c.Depth; i++ {
		var writes []fixture.Write
		for range 6 {
			n := (rng.Int64N(9) + 1) * int64(c.Sector)
			off := rng.Int64N((c.Size-n)/int64(c.Sector)) * int64(c.Sector)
			data := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, int(n))
			writes = append(writes, fixture.Write{Off: off, Data: data})
			copy(model[off:], data)
		}
		h.Put("/vms/"+c.name(i), c.image(i, writes))
	}
	return h, model, nil
}

func id(i int) [16]byte { return [16]byte{0xD0, 15: byte(i)} }

func (c Config) image(i int, writes []fixture.Write) []byte {
	if c.Format == vhd.Format {
		v := fixture.VHD{Size: c.Size, BlockSize: c.Block, UUID: id(i), Writes: writes}
		if i > 1 {
			v.Type = 4
			v.Parent = &fixture.VHDParent{UUID: id(i - 1), Name: c.name(i - 1),
				Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\` + c.name(i-1)}}}
		}
		return v.Bytes()
	}
	v := fixture.VHDX{Size: c.Size, BlockSize: c.Block, LogicalSector: c.Sector, DataWriteGUID: id(i), Writes: writes}
	if i > 1 {
		v.Parent = &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", fmt.Sprintf("{%s}", ops.GUID(id(i-1)))}, {"relative_path", `.\` + c.name(i-1)}}}
	}
	return v.Bytes()
}

func (c Config) create(h *sim.Host) error {
	f, err := h.Dir("/vms").Create(c.name(1), 0o600)
	if err != nil {
		return err
	}
	s := ops.CreateSpec{Type: ops.Dynamic, Size: c.Size, BlockSize: c.Block}
	if c.Fixed {
		s.Type = ops.Fixed
	}
	if c.Format == vhdx.Format {
		s.LogicalSector = c.Sector
	}
	if err := c.Format.Create(f, s); err != nil {
		return err
	}
	return f.Close()
}
