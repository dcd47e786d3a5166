package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"sync"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// View is a whole disk as it was read.
type View struct {
	size   int64
	length int64 // of the file
	facts  map[string]string
	odd    map[string]bool  // anomalies that opening shows
	data   map[int64][]byte // sectors that are not zeros
	stored [][2]int64       // of a differencing disk: runs of sectors that are not absent, in order
}

var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// Read reads the whole disk: extents say what there is, runs what it holds, but
// where data stand in a hole of the host file they are taken for the zeros that
// they are.
func (s *Subject) Read(h *sim.Host, l ops.Layer) (*View, error) {
	f, err := h.Dir(path.Dir(s.Path)).Open(path.Base(s.Path), ops.Read)
	if err != nil {
		return nil, err
	}
	v, err := s.read(f, l)
	if err == nil {
		var st ops.FileStat
		st, err = f.Stat()
		v.length = st.Size
	}
	return v, errors.Join(err, f.Close())
}

func (s *Subject) read(f ops.File, l ops.Layer) (*View, error) {
	v := &View{size: l.Size(), facts: describe(l.Info()), odd: map[string]bool{}, data: map[int64][]byte{}}
	for _, a := range l.Info().Anomalies {
		v.odd[a.Name] = true
	}
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	for off := int64(0); off < l.Size(); {
		e, err := l.Extent(off, l.Size()-off)
		if err != nil {
			return nil, err
		}
		if e.Len <= 0 {
			return nil, fmt.Errorf("extent at %d is empty", off)
		}
		if e.Kind == ops.Data {
			if err := readStored(f, l, off, e, buf[:], v); err != nil {
				return nil, err
			}
		}
		if s.Differencing && e.Kind != ops.Absent {
			v.stored = append(v.stored, [2]int64{off / sector, (off + e.Len) / sector})
		}
		off += e.Len
	}
	return v, nil
}

// describe is what an image says of itself that only operations change.
func describe(i ops.Info) map[string]string {
	f := map[string]string{
		"type":   fmt.Sprintf("%s, blocks of %d, sectors of %d", i.Type, i.BlockSize, i.LogicalSector),
		physical: fmt.Sprint(i.PhysicalSector),
		diskID:   i.DiskID.String(),
	}
	if i.Parent != nil {
		f[parent] = fmt.Sprintf("%v, of %s, at %q", i.Parent.IDs, i.Parent.Timestamp.UTC(), i.Parent.Paths)
	}
	return f
}

// Names of facts.
const (
	physical = "physical sector"
	diskID   = "disk id"
	parent   = "parent"
)

// dirtyLog is the anomaly of a log that has to be replayed.
const dirtyLog = "vhdx.log.dirty"

// readStored reads an extent of data where its file is no hole. Blocks start, and
// holes end, at whole sectors of the file.
func readStored(f ops.File, l ops.Layer, off int64, e ops.Extent, buf []byte, v *View) error {
	for at, end := e.Pos, e.Pos+e.Len; at < end; {
		data, hole, err := f.NextData(at)
		if err == io.EOF || data >= end {
			return nil
		}
		if err != nil {
			return err
		}
		if at = min(hole, end); data < at {
			err = readRuns(l, off+data-e.Pos, at-data, buf, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readRuns(l ops.Layer, off, n int64, buf []byte, v *View) error {
	for end := off + n; off < end; {
		k, kind, err := l.ReadRun(buf[:min(int64(len(buf)), end-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if k <= 0 || kind == ops.Absent {
			return fmt.Errorf("run at %d of a stored extent: %d bytes of kind %d", off, k, kind)
		}
		for at := 0; at < k; at += sector {
			b := buf[at:min(at+sector, k)]
			if !isZero(b) {
				v.data[(off+int64(at))/sector] = append([]byte(nil), b...)
			}
		}
		off += int64(k)
	}
	return nil
}

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// absent tells whether a differencing disk leaves a sector to its parent.
func (v *View) absent(i int64) bool {
	_, found := slices.BinarySearchFunc(v.stored, i, func(r [2]int64, i int64) int {
		switch {
		case r[1] <= i:
			return -1
		case r[0] > i:
			return 1
		}
		return 0
	})
	return !found
}

// Within asks that size, facts and every sector are as the history allows.
func (v *View) Within(h *History) error {
	if h.sizes != nil && !slices.Contains(h.sizes, v.size) {
		return fmt.Errorf("size is %d, may be %d", v.size, h.sizes)
	}
	for name, list := range h.facts {
		if !slices.Contains(list, v.facts[name]) {
			return fmt.Errorf("%s is %s, may be %q", name, v.facts[name], list)
		}
	}
	if h.length > 0 && v.length > h.length {
		return fmt.Errorf("the file has %d bytes, was compacted to %d", v.length, h.length)
	}
	for name := range h.mended {
		if v.odd[name] && (h.closed || name != dirtyLog) { // the session may have begun its own
			return fmt.Errorf("%s is there, was mended", name)
		}
	}
	for i, b := range v.data {
		if err := h.allows(i, false, b); err != nil {
			return err
		}
	}
	end := (v.size + sector - 1) / sector
	for i := range h.sectors {
		if v.data[i] == nil && i < end {
			if err := h.allows(i, h.blank.absent && v.absent(i), zeros[:]); err != nil {
				return err
			}
		}
	}
	for _, r := range v.stored {
		for i := r[0]; i < r[1]; i++ {
			if _, known := h.sectors[i]; !known {
				if err := h.allows(i, false, zeros[:]); err != nil {
					return err
				}
			}
		}
	}
	return v.withinAdded(h, end)
}

// withinAdded asks that nothing shows in what a differencing disk got when it grew.
func (v *View) withinAdded(h *History, end int64) error {
	for _, a := range h.added {
		for i := a.from; i < min(a.to, end); i++ {
			if _, known := h.sectors[i]; !known && v.data[i] == nil {
				if err := h.allows(i, v.absent(i), zeros[:]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Same asks that two views of a disk are equal, facts included.
func (v *View) Same(w *View) error {
	if v.size != w.size || !maps.Equal(v.facts, w.facts) {
		return fmt.Errorf("size and facts changed to %d, %v, were %d, %v", v.size, v.facts, w.size, w.facts)
	}
	return v.SameBytes(w)
}

// SameBytes asks that two views hold the same, and leave the same to a parent.
func (v *View) SameBytes(w *View) error {
	for i, b := range v.data {
		if !bytes.Equal(b, w.data[i]) {
			return fmt.Errorf("sector %d changed: %x…, was %.16x…", i, b[:16], w.data[i])
		}
	}
	for i, b := range w.data {
		if v.data[i] == nil {
			return fmt.Errorf("sector %d is gone, was %x…", i, b[:16])
		}
	}
	for _, pair := range [][2]*View{{v, w}, {w, v}} {
		for _, r := range pair[0].stored {
			for i := r[0]; i < r[1]; i++ {
				if pair[1].absent(i) {
					return fmt.Errorf("sector %d: stored or absent, which has changed", i)
				}
			}
		}
	}
	return nil
}

// exactly is the history that allows this view alone.
func (v *View) exactly(differencing bool) *History {
	h := NewHistory(differencing)
	v.tell(h)
	for _, r := range v.stored {
		for i := r[0]; i < r[1]; i++ {
			h.sectors[i] = []value{{}}
		}
	}
	for i, b := range v.data {
		h.sectors[i] = []value{{data: b}}
	}
	return h
}

// tell puts size and facts into a history.
func (v *View) tell(h *History) {
	h.sizes, h.facts = []int64{v.size}, facts{}
	for name, value := range v.facts {
		h.facts[name] = []string{value}
	}
}
