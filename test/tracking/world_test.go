// Package tracking_test holds change tracking to its one promise, with real disks,
// engines and operations: whatever differs from the content that an id stands for is
// in the answer, for every id that still holds.
package tracking_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"vhdfs/ops"
	"vhdfs/ops/track"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

const (
	folder  = "/vms"
	granule = 64 << 10
	sector  = 512
)

// spy is the seam of these tests: it remembers the trackers that are in use, and puts
// others in their place.
type spy struct {
	track.Files
	live   []ops.Tracker
	wrap   func(ops.Tracker) ops.Tracker // nil: as they are
	before func(ops.Ref)                 // comes before a tracking file is opened; nil: nothing
	marked func()                        // comes when a write is marked and not stored yet; nil: nothing
}

func (s *spy) Open(r ops.Ref, d ops.TrackedDisk, write bool) (ops.Tracker, error) {
	if s.before != nil {
		s.before(r)
	}
	t, err := s.Files.Open(r, d, write)
	return s.see(t, write), err
}

func (s *spy) Create(r ops.Ref, d ops.TrackedDisk) (ops.Tracker, error) {
	t, err := s.Files.Create(r, d)
	return s.see(t, true), err
}

func (s *spy) see(t ops.Tracker, write bool) ops.Tracker {
	if t == nil || !write {
		return t
	}
	if s.wrap != nil {
		t = s.wrap(t)
	}
	t = &watched{t, s}
	s.live = append(s.live, t)
	return t
}

// watched is a tracker that says when a write is marked.
type watched struct {
	ops.Tracker
	spy *spy
}

func (w *watched) Write(off, n int64) error {
	err := w.Tracker.Write(off, n)
	if err == nil && w.spy.marked != nil {
		w.spy.marked()
	}
	return err
}

// settle is what time does.
func (s *spy) settle(all bool) error {
	if len(s.live) == 0 {
		return nil
	}
	return s.live[len(s.live)-1].Settle(all)
}

// free is a partition table that leaves a part of the disk to nobody.
type free struct{ ops.Range }

func (f free) Layout(_ io.ReaderAt, size int64, _ uint32) (*ops.Layout, error) {
	l := &ops.Layout{MinInternalSize: sector}
	if f.Off+f.Len <= size && f.Len > 0 {
		l.Free = []ops.Range{f.Range}
	}
	return l, nil
}

func (free) MoveGPT(ops.GuestDisk, int64, uint32) (bool, error) { return false, nil }

// world is a folder with a program that has it open, and a guest on one disk.
type world struct {
	host *sim.Host
	spy  *spy
	free free
	lib  *ops.Library
	name string      // of the disk
	disk *ops.Handle // nil: nobody has it open
	refs map[int64]bool
}

func newWorld(h *sim.Host, name string) *world {
	w := &world{host: h, name: name, spy: &spy{}, refs: map[int64]bool{}}
	w.start()
	return w
}

// start is a program that starts.
func (w *world) start() {
	w.spy.live = nil
	w.lib = ops.NewLibrary(ops.LibraryOptions{Top: w.host.Dir(folder), Formats: []*ops.Format{vhdx.Format, vhdx.SetFormat, vhd.Format}, Tracking: w.spy, Tables: w.free})
}

func (w *world) open() (err error) {
	if w.disk == nil {
		w.disk, err = w.lib.Open(w.lib.Top(w.name), ops.Write)
	}
	return err
}

func (w *world) close() error {
	if w.disk == nil {
		return nil
	}
	d := w.disk
	w.disk = nil
	return d.Close()
}

// stop ends the program.
func (w *world) stop() error { return errors.Join(w.close(), w.lib.Close()) }

// write stores a number at the beginning of a granule.
func (w *world) write(i int64, v uint64) error {
	if err := w.open(); err != nil {
		return err
	}
	w.refs[i] = true
	_, err := w.disk.WriteAt(binary.LittleEndian.AppendUint64(nil, v), i*granule)
	return err
}

// zero clears granules [i, i+n).
func (w *world) zero(i, n int64, unmap bool) error {
	if err := w.open(); err != nil {
		return err
	}
	return w.disk.Zero(i*granule, n*granule, unmap)
}

// do runs an operation on an image with a request, and gives its answer.
func (w *world) do(op, image, request string) (map[string]any, error) {
	i := slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == op })
	args, err := ops.All[i].Parse(request)
	if err != nil {
		return nil, err
	}
	a := ops.All[i].Do(context.Background(), &ops.Request{Library: w.lib, Image: w.lib.Top(image), Args: args})
	var b bytes.Buffer
	if err := a.WriteJSON(&b); err != nil {
		return nil, err
	}
	var m map[string]any
	return m, errors.Join(json.Unmarshal(b.Bytes(), &m), a.Err)
}

// seal gives the present content an id, and says what it is.
func (w *world) seal() (id string, is []uint64, err error) {
	a, err := w.do("tracking", w.name, "new")
	if err != nil {
		return "", nil, err
	}
	is, err = w.content(w.name)
	return a["ResilientChangeTrackingId"].(string), is, err
}

// content is the numbers of the granules that anybody wrote; of the others 0.
func (w *world) content(name string) (_ []uint64, err error) {
	h, err := w.lib.Open(w.lib.Top(name), ops.Read)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	list, b := make([]uint64, (h.Size()+granule-1)/granule), make([]byte, 8)
	for _, i := range slices.Sorted(maps.Keys(w.refs)) {
		if i >= int64(len(list)) {
			break
		}
		if _, err := h.ReadAt(b, i*granule); err != nil {
			return nil, err
		}
		list[i] = binary.LittleEndian.Uint64(b)
	}
	return list, nil
}

// ids are those that hold.
func (w *world) ids(name string) (list []string, err error) {
	a, err := w.do("tracking", name, "")
	if err != nil {
		return nil, err
	}
	if lost := a["Lost"]; lost != nil {
		return nil, fmt.Errorf("lost: %v", lost)
	}
	for _, r := range a["Ids"].([]any) {
		list = append(list, r.(map[string]any)["Id"].(string))
	}
	return list, nil
}

// changes are the granules that the answer has.
func (w *world) changes(name, request string) (map[int64]bool, error) {
	a, err := w.do("changes", name, request)
	if err != nil {
		return nil, err
	}
	told := map[int64]bool{}
	offsets, lengths := a["ChangedByteOffsets"].([]any), a["ChangedByteLengths"].([]any)
	if len(offsets) != len(lengths) || a["More"] != false {
		return nil, fmt.Errorf("%d offsets, %d lengths, more %v", len(offsets), len(lengths), a["More"])
	}
	for k := range offsets {
		off, n := int64(offsets[k].(float64)), int64(lengths[k].(float64))
		for i := off / granule; i*granule < off+n; i++ {
			told[i] = true
		}
	}
	return told, nil
}

// underReport is a granule that changed and is not in the answer.
type underReport struct{ error }

// covers asks for what changed since the id, which stood for was.
func (w *world) covers(name, id string, was []uint64) error {
	is, err := w.content(name)
	if err != nil {
		return err
	}
	return w.tells(name, id, was, is)
}

// tells is covers with the present content.
func (w *world) tells(name, id string, was, is []uint64) error {
	told, err := w.changes(name, "since="+id)
	if err != nil {
		return err
	}
	for i, v := range is {
		if (i >= len(was) || was[i] != v) && !told[int64(i)] {
			return underReport{fmt.Errorf("%s: granule %d changed since %s and is not told", name, i, id)}
		}
	}
	return nil
}

// plant makes a disk.
func (w *world) plant(request string) error {
	_, err := w.do("create", ".", "path="+path.Base(w.name)+" "+request)
	return err
}
