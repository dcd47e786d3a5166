// Package forest runs random sequences of everything that a user does to a folder
// of images, beside a plain model: guests write, children are made, disks are
// merged, compacted, resized, copied and given other parents, and programs start
// anew. After each step every image reads as the model says. The operations are the
// rows of the table, with requests as a control file takes them.
//
// A step is a number, which decides with the forest as it is what is done: a list
// of steps can be cut short and run again.
package forest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"vhdfs/ops"
	"vhdfs/test/budget"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

const (
	mib = 1 << 20
	// least is the smallest disk that create and convert make, most the largest
	// that is made here; resize makes smaller ones.
	least, most, small = 3 * mib, 5 * mib, 3 * mib / 2
	folder             = "/vms/"
)

// disk is an image, and what it reads as.
type disk struct {
	name   string
	format *ops.Format
	typ    ops.Type
	parent *disk
	data   []byte
}

// Forest is a folder of images and its model. One goroutine uses it.
type Forest struct {
	Cut Cut

	host   *sim.Host
	lib    *ops.Library
	rng    *rand.Rand // of the step
	sector int64      // of every disk
	disks  []*disk
	made   int

	writer *ops.Handle // a guest that stays, nil: none
	user   *disk       // what it writes
	former string      // the name of a disk that was merged into that under its hands, "": none

	trail []string // what was done
}

// Cut is what happens to operations besides.
type Cut int

// Cuts: none; one call of some operations fails; the power goes in some.
const (
	Whole Cut = iota
	Faults
	Crashes
)

// New is a chain of images as other programs write them, and an empty disk.
func New(seed uint64, cut Cut) (*Forest, error) {
	f := &Forest{Cut: cut, host: sim.New(), rng: rand.New(rand.NewPCG(seed, 0xF0)), sector: 512}
	format := vhd.Format
	if seed%2 == 0 {
		format = vhdx.Format
		if seed%10 == 0 {
			f.sector = 4096
		}
	}
	f.host.Dir(folder)
	block := []uint32{4 << 10, 32 << 10, 512 << 10, 2 * mib}[f.rng.IntN(4)]
	var parent *disk
	for range 1 + f.rng.IntN(4) {
		parent = f.plant(format, block, parent)
	}
	f.lib = f.library(f.host)
	a := &action{op: "create", made: f.newName(format), request: fmt.Sprintf("size=%d type=dynamic block=%d sector=%d", least, 2*mib, f.sector)}
	a.request += " path=" + a.made
	return f, f.run(a.then(f, &disk{name: a.made, format: format, typ: ops.Dynamic, data: make([]byte, least)}))
}

// plant puts a fixture into the folder.
func (f *Forest) plant(format *ops.Format, block uint32, parent *disk) *disk {
	d := &disk{name: f.newName(format), format: format, typ: ops.Dynamic, parent: parent, data: make([]byte, least)}
	if parent != nil {
		d.typ = ops.Differencing
		copy(d.data, parent.data)
	}
	var writes []fixture.Write
	for range 6 {
		n := (f.rng.Int64N(9) + 1) * f.sector
		if f.rng.IntN(2) == 0 {
			n = mib / 2 * (1 + f.rng.Int64N(3))
		}
		off := f.rng.Int64N((least-n)/f.sector) * f.sector
		w := fixture.Write{Off: off, Data: bytes.Repeat([]byte{byte(f.rng.IntN(255) + 1)}, int(n))}
		writes = append(writes, w)
		copy(d.data[off:], w.Data)
	}
	id := [16]byte{0xD0, 15: byte(f.made)}
	f.host.Put(folder+d.name, nil)
	file := f.host.Bytes(folder + d.name)
	if format == vhd.Format {
		v := fixture.VHD{Size: least, BlockSize: block, UUID: id, Writes: writes}
		if parent != nil {
			v.Type = 4
			v.Parent = &fixture.VHDParent{UUID: [16]byte{0xD0, 15: byte(f.made - 1)}, Name: parent.name, Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\` + parent.name}}}
		}
		v.Lay(file.Truncate, file.Write)
	} else {
		v := fixture.VHDX{Size: least, BlockSize: mib, LogicalSector: uint32(f.sector), DataWriteGUID: id, Writes: writes}
		if parent != nil {
			v.Parent = &fixture.Locator{Entries: [][2]string{
				{"parent_linkage", fmt.Sprintf("{%s}", ops.GUID{0xD0, 15: byte(f.made - 1)})}, {"relative_path", `.\` + parent.name}}}
		}
		m, err := v.Build()
		if err != nil {
			panic(err)
		}
		file.Truncate(m.Size)
		for off, p := range m.Pages() {
			file.Write(off, p)
		}
	}
	f.disks = append(f.disks, d)
	f.trail = append(f.trail, fmt.Sprintf("%s, a fixture of blocks of %d, parent %t", d.name, block, parent != nil))
	return d
}

// newName is one that was never used. Numbers do not sort as names do.
func (f *Forest) newName(format *ops.Format) string {
	f.made++
	return fmt.Sprintf("%d%s", f.made, format.Extensions[0])
}

// library is a program that has just started.
func (f *Forest) library(h *sim.Host) *ops.Library {
	return ops.NewLibrary(ops.LibraryOptions{Top: h.Dir(folder), Formats: []*ops.Format{vhdx.Format, vhdx.SetFormat, vhd.Format}})
}

func (f *Forest) kids(d *disk) (list []*disk) {
	for _, k := range f.disks {
		if k.parent == d {
			list = append(list, k)
		}
	}
	return list
}

// through tells whether d reads through p, or is it.
func (d *disk) through(p *disk) bool {
	for ; d != nil; d = d.parent {
		if d == p {
			return true
		}
	}
	return false
}

func (d *disk) depth() (n int) {
	for ; d != nil; d = d.parent {
		n++
	}
	return n
}

// any is a random disk that f likes, nil where there is none.
func (f *Forest) any(likes func(*disk) bool) *disk {
	var list []*disk
	for _, d := range f.disks {
		if likes(d) {
			list = append(list, d)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[f.rng.IntN(len(list))]
}

// view is what every image reads as.
func (f *Forest) view() map[string][]byte {
	v := map[string][]byte{}
	for _, d := range f.disks {
		v[d.name] = d.data
	}
	return v
}

// release lets the guest go that stays.
func (f *Forest) release() error {
	if f.writer == nil {
		return nil
	}
	err := f.writer.Close()
	f.writer, f.user, f.former = nil, nil, ""
	return err
}

// restart is another program on the same files.
func (f *Forest) restart() error {
	err := errors.Join(f.release(), f.lib.Close())
	f.lib = f.library(f.host)
	return err
}

// sound asks for broken things in every image.
func (f *Forest) sound() error {
	for _, d := range f.disks {
		l, err := f.lib.OpenLayer(f.lib.Top(d.name))
		if err != nil {
			return err
		}
		if c, ok := l.(ops.Checker); ok {
			err = c.Check(context.Background(), func(a ops.Anomaly) {
				if a.Severity == ops.Broken {
					err = errors.Join(err, fmt.Errorf("%s: %s: %s", d.name, a.Name, a.Text))
				}
			})
		}
		if err = errors.Join(err, l.Close()); err != nil {
			return err
		}
	}
	return nil
}

// finish ends all programs and looks once more, as the next one would.
func (f *Forest) finish() error {
	return errors.Join(f.restart(), f.sound(), reads(f.lib, f.view()), f.lib.Close())
}

// Failure is a step that went wrong.
type Failure struct {
	At    int // index of the step; the number of steps for what the end showed
	Trail []string
	Err   error
}

func (f *Failure) Error() string {
	return fmt.Sprintf("step %d: %v\n%s", f.At, f.Err, strings.Join(f.Trail, "\n"))
}

// Steps are those of a seed.
func Steps(seed uint64, n int) []uint64 {
	rng, list := rand.New(rand.NewPCG(seed, 0x57)), make([]uint64, n)
	for i := range list {
		list[i] = rng.Uint64()
	}
	return list
}

// Run takes the steps on a new forest. nil: all as the model says.
func Run(seed uint64, cut Cut, steps []uint64) (failure *Failure) {
	at, trail := 0, []string(nil)
	fail := func(err error) *Failure { return &Failure{at, trail, err} }
	var f *Forest
	defer func() {
		if p := recover(); p != nil {
			if f != nil {
				trail = f.trail
			}
			failure = fail(fmt.Errorf("panic: %v", p))
		}
	}()
	f, err := New(seed, cut)
	for ; err == nil && at < len(steps); at++ {
		if err = f.step(steps[at]); err != nil {
			break
		}
	}
	if err == nil {
		err = f.finish()
	}
	if trail = f.trail; err != nil {
		return fail(err)
	}
	return nil
}

// Shrink leaves steps out of a list as long as it fails, within tries runs.
func Shrink(seed uint64, cut Cut, steps []uint64, failure *Failure, tries int) ([]uint64, *Failure) {
	short := budget.Shrink(steps, failure.At, tries, func(shorter []uint64) (int, bool) {
		f := Run(seed, cut, shorter)
		if f == nil {
			return 0, false
		}
		failure = f
		return f.At, true
	})
	return short, failure
}
