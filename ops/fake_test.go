package ops_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// A fake image: a line of JSON in 16 KiB, a byte for each sector that says where
// its bytes are, then the sectors. It is as simple as a format with holes can be,
// so that what fails in these tests is the code above formats.
const fakeData = 16 << 10

type fakeImage struct {
	Magic    string // fakeMagic[Number]
	Size     int64
	Sector   uint32
	ID       string
	Parent   []string   `json:",omitempty"` // ids
	Paths    []fakePath `json:",omitempty"` // recorded
	Time     time.Time  `json:",omitzero"`  // recorded of the parent
	ReadOnly string     `json:",omitempty"`
	Broken   string     `json:",omitempty"` // Open fails with this
	Disk     string     `json:",omitempty"` // id of the disk
	Physical uint32     `json:",omitempty"`
	Findings []string   `json:",omitempty"` // of a check; those that begin with "mend" can be mended
	Panics   bool       `json:",omitempty"` // ReadRun panics
	Fixed    bool       `json:",omitempty"`
	number   uint16
	blocks   map[int64]byte // sector: what it is filled with; 0 is Zero, not Absent
}

type fakePath struct {
	Kind ops.PathKind
	Path string
}

// guid is an id that is easy to read in messages.
func guid(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-000000000000", n) }

func (im fakeImage) bytes() []byte {
	if im.Magic == "" {
		im.Magic = "fakex"
	}
	if im.Sector == 0 {
		im.Sector = 512
	}
	if im.Size == 0 {
		im.Size = 8 * int64(im.Sector)
	}
	head, err := json.Marshal(im)
	if err != nil {
		panic(err)
	}
	sectors := (im.Size + int64(im.Sector) - 1) / int64(im.Sector)
	b := make([]byte, fakeData+sectors+sectors*int64(im.Sector))
	copy(b, append(head, '\n'))
	for s, fill := range im.blocks {
		b[fakeData+s] = byte(ops.Zero)
		if fill != 0 {
			b[fakeData+s] = byte(ops.Data)
			at := fakeData + sectors + s*int64(im.Sector)
			for i := range int64(im.Sector) {
				b[at+i] = fill
			}
		}
	}
	return b
}

// fakeFormat makes a format of a family.
func fakeFormat(magic string, number uint16, extensions ...string) *ops.Format {
	return &ops.Format{
		Name: magic, Number: number, Extensions: extensions,
		Probe: func(f ops.File, _ string) (bool, error) {
			im, err := readFake(f)
			return err == nil && im.Magic == magic, ioError(err)
		},
		Open: func(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
			im, err := readFake(f)
			if err == nil && im.Broken != "" {
				err = ops.Corruptf(ops.StatusSparseCorrupt, "fake: %s", im.Broken)
			}
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			l := &fakeLayer{fakeImage: *im, f: f, sectors: (im.Size + int64(im.Sector) - 1) / int64(im.Sector)}
			if o.Write {
				return &fakeWriter{fakeLayer: l}, nil
			}
			return l, nil
		},
	}
}

// fakeSet is a format of files that hold "set:" and a leaf's name.
func fakeSet() *ops.Format {
	read := func(f ops.File) (string, error) {
		b := make([]byte, 300)
		n, err := f.ReadAt(b, 0)
		if err == io.EOF {
			err = nil
		}
		leaf, ok := strings.CutPrefix(string(b[:n]), "set:")
		if !ok {
			return "", err
		}
		return leaf, err
	}
	return &ops.Format{
		Name: "fakeset", Number: ops.FormatSet, Extensions: []string{".vhds"},
		Probe: func(f ops.File, _ string) (bool, error) {
			leaf, err := read(f)
			return leaf != "", err
		},
		Set: func(f ops.File) (ops.Set, error) {
			leaf, err := read(f)
			return ops.Set{Leaf: leaf}, err
		},
	}
}

var errNoFake = errors.New("no fake image")

func ioError(err error) error {
	if err == errNoFake {
		return nil
	}
	return err
}

func readFake(f ops.File) (*fakeImage, error) {
	b := make([]byte, fakeData)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	line, _, ok := strings.Cut(string(b[:n]), "\n")
	im := &fakeImage{}
	if !ok || json.Unmarshal([]byte(line), im) != nil {
		return nil, errNoFake
	}
	return im, nil
}

type fakeLayer struct {
	fakeImage
	f       ops.File
	sectors int64
	mu      sync.RWMutex
}

func (l *fakeLayer) Size() int64 { return l.fakeImage.Size }

func (l *fakeLayer) Info() ops.Info {
	id, _ := ops.ParseGUID(l.ID)
	disk, _ := ops.ParseGUID(l.Disk)
	info := ops.Info{Type: ops.Dynamic, LinkID: id, DiskID: disk, LogicalSector: l.Sector, PhysicalSector: l.Physical, ReadOnly: l.ReadOnly}
	if l.Fixed {
		info.Type = ops.Fixed
	}
	if l.Parent != nil {
		info.Type = ops.Differencing
		info.Parent = &ops.Parent{Timestamp: l.Time}
		for _, s := range l.Parent {
			id, _ := ops.ParseGUID(s)
			info.Parent.IDs = append(info.Parent.IDs, id)
		}
		for _, p := range l.Paths {
			info.Parent.Paths = append(info.Parent.Paths, ops.ParentPath(p))
		}
	}
	return info
}

func (l *fakeLayer) state(sector int64) (ops.Kind, error) {
	var b [1]byte
	_, err := l.f.ReadAt(b[:], fakeData+sector)
	return ops.Kind(b[0]), err
}

func (l *fakeLayer) at(sector int64) int64 { return fakeData + l.sectors + sector*int64(l.Sector) }

func (l *fakeLayer) Extent(off, limit int64) (ops.Extent, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.extentLocked(off, limit)
}

func (l *fakeLayer) extentLocked(off, limit int64) (ops.Extent, error) {
	if off < 0 || off >= l.Size() {
		return ops.Extent{}, io.EOF
	}
	sec := int64(l.Sector)
	first := off / sec
	kind, err := l.state(first)
	if err != nil {
		return ops.Extent{}, err
	}
	end := (first + 1) * sec
	for s := first + 1; s < l.sectors && end < off+limit; s++ {
		k, err := l.state(s)
		if err != nil {
			return ops.Extent{}, err
		}
		if k != kind {
			break
		}
		end += sec
	}
	x := ops.Extent{Len: min(end-off, limit, l.Size()-off), Kind: kind, Pos: -1}
	if kind == ops.Data {
		x.Pos = l.at(first) + off%sec
	}
	return x, nil
}

func (l *fakeLayer) ReadRun(p []byte, off int64) (int, ops.Kind, error) {
	if l.Panics {
		l.mu.Lock() // for ever
		panic("fake panic")
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	x, err := l.extentLocked(off, int64(len(p)))
	if err != nil {
		return 0, 0, err
	}
	switch x.Kind {
	case ops.Zero:
		clear(p[:x.Len])
	case ops.Data:
		_, err = l.f.ReadAt(p[:x.Len], x.Pos)
	}
	return int(x.Len), x.Kind, err
}

func (l *fakeLayer) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

type fakeWriter struct {
	*fakeLayer
}

func (w *fakeWriter) whole(off, n int64) error {
	sec := int64(w.Sector)
	if off%sec != 0 || n%sec != 0 && off+n != w.Size() {
		return ops.Errorf(ops.ErrUsage, 0, "fake: %d bytes at %d are no whole sectors", n, off)
	}
	return nil
}

func (w *fakeWriter) mark(off, n int64, k ops.Kind) error {
	sec := int64(w.Sector)
	for s := off / sec; s*sec < off+n; s++ {
		if _, err := w.f.WriteAt([]byte{byte(k)}, fakeData+s); err != nil {
			return err
		}
	}
	return nil
}

func (w *fakeWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := w.whole(off, int64(len(p))); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.f.WriteAt(p, w.at(off/int64(w.Sector))); err != nil {
		return 0, err
	}
	return len(p), w.mark(off, int64(len(p)), ops.Data)
}

func (w *fakeWriter) Zero(off, n int64, _ bool) error {
	if err := w.whole(off, n); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mark(off, n, ops.Zero)
}

func (w *fakeWriter) Flush() error { return w.f.Sync("fake.flush") }

// world is a host with folders for tests.
type world struct {
	*testing.T
	host *sim.Host
	dirs map[string]ops.Dir
	lib  *ops.Library
}

// newWorld is /vms as the folder, /search and /allow as the others, and /other
// that no library knows.
func newWorld(t *testing.T) *world {
	w := &world{T: t, host: sim.New(), dirs: map[string]ops.Dir{}}
	for _, d := range []string{"/vms", "/search", "/allow", "/other"} {
		w.dirs[d] = w.host.Dir(d)
	}
	w.lib = ops.NewLibrary(w.options())
	t.Cleanup(func() { require.NoError(t, w.lib.Close()) })
	return w
}

func (w *world) options() ops.LibraryOptions {
	return ops.LibraryOptions{
		Top: w.dirs["/vms"], Search: []ops.Dir{w.dirs["/search"]}, Allow: []ops.Dir{w.dirs["/allow"]},
		Formats: []*ops.Format{
			fakeFormat("fakex", ops.FormatVHDX, ".vhdx", ".avhdx"),
			fakeFormat("fakev", ops.FormatVHD, ".vhd", ".avhd"),
			fakeSet(),
		},
	}
}

// put stores a file at an absolute host path, its directories too.
func (w *world) put(path string, b []byte) {
	w.Helper()
	i := strings.LastIndex(path, "/")
	f, err := w.host.Dir(path[:i]).Create(path[i+1:], 0o600)
	require.NoError(w, err)
	_, err = f.WriteAt(b, 0)
	require.NoError(w, err)
	require.NoError(w, f.Close())
}

func (w *world) image(path string, im fakeImage) { w.Helper(); w.put(path, im.bytes()) }

func (w *world) open(name string, a ops.Access) *ops.Handle {
	w.Helper()
	h, err := w.lib.Open(w.lib.Top(name), a)
	require.NoError(w, err)
	w.Cleanup(func() {
		if err := h.Close(); err != nil {
			require.ErrorContains(w, err, "closed")
		}
	})
	return h
}

// read is the whole disk.
func (w *world) read(name string) ([]byte, error) {
	h, err := w.lib.Open(w.lib.Top(name), ops.Read)
	if err != nil {
		return nil, err
	}
	b := make([]byte, h.Size())
	_, err = h.ReadAt(b, 0)
	return b, errors.Join(err, h.Close())
}
