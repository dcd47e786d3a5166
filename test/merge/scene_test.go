// Package merge tries MergeVirtualHardDisk on the formats themselves: random
// chains, every state in which a power cut may leave them, and every call of the
// host that may fail.
package merge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

const mib = 1 << 20

// image is one image of a scene.
type image struct {
	path   string // host path
	parent *image
	size   int64
	fixed  bool
	writes []fixture.Write
	zeros  []int64 // blocks that say they are zeros, whatever the parent has
	block  int64
	id     byte
	disk   []byte // what reads gives
}

// scene is a line of images on a host, the first has no parent, and others that
// were made from some of them.
type scene struct {
	format *ops.Format
	sector uint32
	line   []*image
	others []*image
	source int // in line
	dest   int
	keep   bool
}

func (s *scene) all() []*image { return append(s.line[:len(s.line):len(s.line)], s.others...) }

// reads is what a guest sees.
func (im *image) reads() []byte {
	if im.disk != nil {
		return im.disk
	}
	b := make([]byte, im.size)
	if im.parent != nil {
		copy(b, im.parent.reads())
	}
	for _, z := range im.zeros {
		clear(b[min(z*im.block, im.size):min((z+1)*im.block, im.size)])
	}
	for _, w := range im.writes {
		copy(b[w.Off:], w.Data)
	}
	im.disk = b
	return b
}

func guid(id byte) [16]byte { return [16]byte{0xD0, 15: id} }

// bytes is the file.
func (s *scene) bytes(im *image) []byte {
	if s.format == vhd.Format {
		v := fixture.VHD{Size: im.size, BlockSize: uint32(im.block), UUID: guid(im.id), Writes: im.writes}
		if im.fixed {
			v.Type = 2
		}
		if im.parent != nil {
			v.Type = 4
			v.Parent = &fixture.VHDParent{UUID: guid(im.parent.id), Name: path.Base(im.parent.path),
				Locators: []fixture.VHDLocator{{Code: "W2ru", Path: windows(im)}}}
		}
		return v.Bytes()
	}
	v := fixture.VHDX{Size: im.size, BlockSize: uint32(im.block), LogicalSector: s.sector, Fixed: im.fixed, DataWriteGUID: guid(im.id), Writes: im.writes, States: map[int64]uint8{}}
	for _, z := range im.zeros {
		v.States[z] = 2
	}
	if im.parent != nil {
		v.Parent = &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", fmt.Sprintf("{%s}", ops.GUID(guid(im.parent.id)))}, {"relative_path", windows(im)}}}
	}
	return v.Bytes()
}

// windows is the relative path of an image's parent as Windows records it.
func windows(im *image) string {
	from, to := strings.Split(path.Dir(im.path), "/"), strings.Split(im.parent.path, "/")
	for len(from) > 0 && len(to) > 1 && from[0] == to[0] {
		from, to = from[1:], to[1:]
	}
	p := strings.Repeat(`..\`, len(from)) + strings.Join(to, `\`)
	if len(from) == 0 {
		p = `.\` + p
	}
	return p
}

// lay puts the files on a host.
func (s *scene) lay() *sim.Host {
	h := sim.New()
	h.Dir("/vms")
	for _, im := range s.all() {
		h.Put(im.path, s.bytes(im))
	}
	return h
}

// terms of a random scene.
type terms struct {
	format *ops.Format
	sector uint32
	depth  int // images in the line
	source int // index in it
	dest   int
	fork   bool // the source has one more child than the line says
	far    bool // some images lie in another folder
	sizes  bool // disks of other sizes
	fixed  bool // the first is a fixed disk
	keep   bool
}

func (t terms) String() string {
	s := fmt.Sprintf("%s/%d depth %d, %d into %d", t.format.Name, t.sector, t.depth, t.source, t.dest)
	for _, f := range []struct {
		on   bool
		name string
	}{{t.fork, "fork"}, {t.far, "far"}, {t.sizes, "sizes"}, {t.fixed, "fixed"}, {t.keep, "keep"}} {
		if f.on {
			s += ", " + f.name
		}
	}
	return s
}

// scene makes one with content that a seed decides.
func (t terms) scene(seed uint64) *scene {
	rng := rand.New(rand.NewPCG(seed, 0x3E6))
	s := &scene{format: t.format, sector: t.sector, source: t.source, dest: t.dest, keep: t.keep}
	ext := t.format.Extensions[0]
	add := func(name string, parent *image) *image {
		im := &image{path: "/vms/" + name + ext, parent: parent, size: 7 << 19, block: mib, id: byte(len(s.all()) + 1)}
		if t.format == vhd.Format {
			im.size, im.block = 30<<10, 4096
		}
		if t.far && rng.IntN(2) == 0 {
			im.path = "/vms/sub/" + name + ext
		}
		if t.sizes {
			im.size += int64(rng.IntN(3)) * im.block
		}
		im.fixed = t.fixed && parent == nil
		im.fill(rng, int64(t.sector), t.format != vhd.Format && !im.fixed)
		return im
	}
	var parent *image
	for i := range t.depth {
		parent = add(fmt.Sprint(i+1), parent)
		s.line = append(s.line, parent)
	}
	if t.fork {
		s.others = append(s.others, add("other", s.line[t.source]))
	}
	return s
}

// fill gives an image content of its own.
func (im *image) fill(rng *rand.Rand, sector int64, zeros bool) {
	blocks := (im.size + im.block - 1) / im.block
	for range 5 {
		n := (rng.Int64N(9) + 1) * sector
		if rng.IntN(6) == 0 {
			n = im.block / sector * sector
		}
		off := rng.Int64N((im.size-n)/sector+1) * sector
		data := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, int(n))
		if rng.IntN(4) == 0 {
			clear(data)
		}
		im.writes = append(im.writes, fixture.Write{Off: off, Data: data})
	}
	if !zeros {
		return
	}
	for b := range blocks {
		hit := false
		for _, w := range im.writes {
			hit = hit || w.Off < (b+1)*im.block && w.Off+int64(len(w.Data)) > b*im.block
		}
		if !hit && rng.IntN(2) == 0 {
			im.zeros = append(im.zeros, b)
		}
	}
}

// library is a fresh program on a host.
func library(h *sim.Host) *ops.Library {
	return ops.NewLibrary(ops.LibraryOptions{Top: h.Dir("/vms"), Formats: []*ops.Format{vhdx.Format, vhdx.SetFormat, vhd.Format}})
}

func ref(lib *ops.Library, host string) ops.Ref { return lib.Top(strings.TrimPrefix(host, "/vms/")) }

// operation is a row of the table.
func operation(name string) *ops.Op {
	for _, op := range ops.All {
		if op.Name == name {
			return op
		}
	}
	panic("no " + name)
}

// merge runs a request as a control file would.
func merge(lib *ops.Library, host, request string) ops.Answer {
	return mergeCtx(context.Background(), lib, host, request, nil)
}

func mergeCtx(ctx context.Context, lib *ops.Library, host, request string, progress func(done, all int64)) ops.Answer {
	op := operation("merge")
	args, err := op.Parse(request)
	if err != nil {
		return op.Refuse(err)
	}
	return op.Do(ctx, &ops.Request{Library: lib, Image: ref(lib, host), Args: args, Progress: progress})
}

// request is the one of the scene.
func (s *scene) request() string {
	return fmt.Sprintf("into=%q keep=%t", strings.TrimPrefix(s.line[s.dest].path, "/vms/"), s.keep)
}

func exists(h *sim.Host, name string) bool {
	_, err := h.Dir(path.Dir(name)).Stat(path.Base(name))
	return err == nil
}

// over asks that the merge is over: everything reads as it did, and nothing is
// left of what was merged.
func (s *scene) over(h *sim.Host) error {
	lib := library(h)
	for i, im := range s.all() {
		merged := i > s.dest && i <= s.source && i < len(s.line)
		want := im.reads()
		switch {
		case i == s.dest:
			want = s.line[s.source].reads()
		case merged && s.keep:
			if err := opens(lib, im.path); !errors.Is(err, ops.ErrParentMismatch) {
				return fmt.Errorf("%s is kept and opens: %v", im.path, err)
			}
			continue
		case merged:
			if exists(h, im.path) {
				return fmt.Errorf("%s is still there", im.path)
			}
			continue
		}
		if err := shows(lib, im.path, want); err != nil {
			return err
		}
		if err := sound(lib, im.path); err != nil {
			return err
		}
	}
	return errors.Join(lib.Close(), nothingLeft(h))
}

var errLeft = errors.New("something is left")

// nothingLeft asks that no journal is left.
func nothingLeft(h *sim.Host) error {
	for _, dir := range []string{"/vms", "/vms/sub"} {
		list, err := h.Dir(dir).List(".")
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Name == ops.StateDir {
				left, err := h.Dir(dir).List(e.Name)
				return errors.Join(err, fmt.Errorf("%w in %s: %v", errLeft, dir, left))
			}
		}
	}
	return nil
}

// sound asks check about an image.
func sound(lib *ops.Library, host string) error {
	l, err := lib.OpenLayer(ref(lib, host))
	if err != nil {
		return err
	}
	if c, ok := l.(ops.Checker); ok {
		err = c.Check(context.Background(), func(a ops.Anomaly) {
			if a.Severity == ops.Broken {
				err = errors.Join(err, fmt.Errorf("%s: %s: %s", host, a.Name, a.Text))
			}
		})
	}
	return errors.Join(err, l.Close())
}

func requireMerged(t *testing.T, s *scene, h *sim.Host) {
	t.Helper()
	lib := library(h)
	a := merge(lib, s.line[s.source].path, s.request())
	require.NoError(t, a.Err)
	require.NoError(t, lib.Close())
	require.NoError(t, s.over(h))
}
