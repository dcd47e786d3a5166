package crash

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"

	"vhdfs/test/sim"
)

// Hold says that whole sectors hold data from the start.
func (h *History) Hold(off int64, data []byte) {
	for at := int64(0); at < int64(len(data)); at += sector {
		h.sectors[(off+at)/sector] = []value{{data: data[at : at+sector]}}
	}
}

// value is what a sector may hold: nil data are zeros.
type value struct {
	absent bool // the parent's
	either bool // the parent's, which has nothing there, or zeros
	maybe  bool // the request for it failed: it may be there or not
	data   []byte
}

var zeros [sector]byte

// fits tells whether a sector that is absent, or holds b, has the value.
func (v value) fits(absent bool, b []byte) bool {
	switch {
	case v.either:
		return absent || isZero(b)
	case absent || v.absent:
		return absent && v.absent
	case v.data == nil:
		return isZero(b)
	}
	return bytes.Equal(b, v.data)
}

// nothing tells whether the value is zeros where the parents are.
func (v value) nothing() bool { return v.either || v.absent || v.data == nil || isZero(v.data) }

// History is what each sector of a disk may read as after a power cut: the last
// value that a flush acknowledged, or any that was asked for since (C1, C2).
type History struct {
	blank   value // of a sector that nobody ever wrote
	sectors map[int64][]value
	loose   map[int64]bool // sectors with more than one value
	sizes   []int64        // of the disk in bytes; nil: as it is at the start
	facts   facts          // what the image may say of itself; nil: as at the start
	added   []addition
	under   int64           // the parents read as zeros from this sector on; nobody asks before a compaction
	free    int64           // nobody wants what is there from this sector on: what is the parent's may become zeros
	length  int64           // of the file at most, after a compaction or a shrink, until the next change; 0: any
	mended  map[string]bool // anomalies that a repair ended, until the next change
	wrote   bool            // the session wrote something, for certain
	before  bool            // wrote, before what was asked last
	closed  bool            // the last session did, ended cleanly, and none has begun since
}

// addition are sectors that the disk got when it grew, until they are written.
type addition struct {
	from, to int64
	value    value // maybe: growing failed, and what had been tried before may hold
}

// facts are the values that what an image says of itself may have, by name.
type facts map[string][]string

// NewHistory is that of an empty disk; absent where it has a parent.
func NewHistory(differencing bool) *History {
	return &History{blank: value{absent: differencing}, sectors: map[int64][]value{}, loose: map[int64]bool{}, under: math.MaxInt64, free: math.MaxInt64}
}

// Clone is an independent copy.
func (h *History) Clone() *History {
	c := NewHistory(h.blank.absent)
	c.wrote, c.before, c.closed = h.wrote, h.before, h.closed
	c.under, c.free, c.length, c.mended = h.under, h.free, h.length, h.mended
	c.sizes, c.added = slices.Clone(h.sizes), slices.Clone(h.added)
	c.facts = maps.Clone(h.facts)
	for i, v := range h.sectors {
		c.sectors[i] = v[:len(v):len(v)]
	}
	for i := range h.loose {
		c.loose[i] = true
	}
	return c
}

// Until is the history of the first size bytes alone: of a disk that was made
// smaller.
func (h *History) Until(size int64) *History {
	c := h.Clone()
	for i := range h.sectors {
		if i*sector >= size {
			delete(c.sectors, i)
			delete(c.loose, i)
		}
	}
	return c
}

// refused marks that the request before it failed: each of its sectors may have
// changed or not, and flushes that follow do not decide it.
type refused struct{ off, n int64 }

// asked marks that a change was asked for; nil data are zeros.
type asked struct {
	off, n int64
	data   []byte
}

// flushed marks that a flush was acknowledged.
type flushed struct{}

// resizing marks that the disk is to get another size, resized that it has it,
// durably. Added sectors below the size of the parent's disk become zeros.
type (
	resizing  struct{ from, to, below int64 }
	resized   struct{ size, length int64 } // length: of the file at most; 0: any
	unresized struct{ from, to int64 }     // failed: it may have either
)

// compacting marks that zeros may become absent from sector under on, and that what
// there is from sector free on may become zeros, compacted that the file is no
// longer than length, durably.
type (
	compacting struct{ under, free int64 }
	compacted  struct{ length int64 } // of the file at most; 0: any
)

// repairing marks a repair, which may make the file longer, mended that anomalies
// are gone, durably.
type repairing struct{}

type mended struct{ names map[string]bool }

// saying marks that the image is to say something else of itself, said that it
// does, durably.
type (
	saying struct{ name, value string }
	said   struct{ name, value string }
)

// opened and closed mark the beginning and the clean end of a session.
type (
	opened struct{}
	closed struct{}
)

// doubted marks that a session ended without a promise: what was written since the
// last flush may last or not, whatever later sessions flush.
type doubted struct{}

// Note takes up an event of a recording: the marks of a [Guest], and that somebody
// changes files again after a close.
func (h *History) Note(e sim.Event) {
	if e.Op != sim.OpAck && e.Op != sim.OpSync && e.Op != sim.OpSyncDir {
		h.closed = false
	}
	switch m := e.Mark.(type) {
	case nil:
	case flushed:
		h.Settle()
	case repairing:
		h.length = 0
	case opened:
		h.wrote, h.closed = false, false
	case closed:
		h.Settle()
		h.closed = h.wrote
	default:
		h.closed, h.length, h.mended = false, 0, nil
		h.change(m)
	}
}

// change takes up what a guest asks for, and what became of it.
func (h *History) change(mark any) {
	switch m := mark.(type) {
	case asked:
		h.before = h.wrote
		h.wrote = h.wrote || m.data != nil // zeros may be there already
		for at := int64(0); at < m.n; at += sector {
			v := value{}
			if m.data != nil {
				v.data = m.data[at : at+sector]
			}
			h.ask((m.off+at)/sector, v)
		}
	case refused:
		h.wrote = h.before
		h.doubt(m.off/sector, (m.off+m.n)/sector)
	case resizing:
		h.resize(m)
	case resized:
		h.sizes, h.length = []int64{m.size}, m.length
		h.settle(m.size/sector, math.MaxInt64)
	case unresized:
		h.doubt(min(m.from, m.to)/sector, math.MaxInt64)
		if m.to > m.from && h.blank.absent {
			for k := range h.added[len(h.added)-2:] {
				h.added[len(h.added)-2+k].value.maybe = true
			}
		}
	case compacting:
		h.under, h.free = min(h.under, m.under), min(h.free, m.free)
		for i := range h.sectors {
			if i >= m.free {
				h.ask(i, value{})
			}
		}
		h.doubt(m.free, math.MaxInt64)
	case compacted:
		h.length = m.length
	case mended:
		h.mended = m.names
	case saying:
		if was, known := h.facts[m.name]; known {
			h.facts[m.name] = append(slices.Clone(was), m.value)
		}
	case said:
		if h.facts != nil {
			h.facts[m.name] = []string{m.value}
		}
	case doubted:
		for i := range h.loose {
			v := slices.Clone(h.sectors[i])
			for k := range v[1:] {
				v[k+1].maybe = true
			}
			h.sectors[i] = v
		}
	}
}

// doubt says that the last request for each known sector from first up to end may
// not have taken place.
func (h *History) doubt(first, end int64) {
	for i, list := range h.sectors {
		if i >= first && i < end {
			list = slices.Clone(list)
			list[len(list)-1].maybe = true
			h.sectors[i] = list
		}
	}
}

// Settle drops what an acknowledged flush rules out; for the disk that is open it
// gives what may be read now.
func (h *History) Settle() { h.settle(0, math.MaxInt64) }

// settle settles the sectors from first on, up to end.
func (h *History) settle(first, end int64) {
	for i := range h.loose {
		if i < first || i >= end {
			continue
		}
		if h.sectors[i] = remaining(h.sectors[i]); len(h.sectors[i]) == 1 {
			delete(h.loose, i)
		}
	}
}

// resize takes up another size: what is cut off may be gone at once, and is when
// it comes back.
func (h *History) resize(m resizing) {
	h.sizes = append(slices.Clone(h.sizes), m.to)
	gone := func(i int64) value { return value{either: h.blank.absent && i >= m.below/sector} }
	for i := range h.sectors {
		if i >= min(m.from, m.to)/sector {
			h.ask(i, gone(i))
		}
	}
	if covered := max(m.from, min(m.to, m.below)); m.to > m.from && h.blank.absent {
		h.added = append(h.added,
			addition{m.from / sector, covered / sector, value{}},
			addition{covered / sector, m.to / sector, value{either: true}})
	}
}

// of are the values that a sector may have.
func (h *History) of(i int64) []value {
	if list, ok := h.sectors[i]; ok {
		return list
	}
	var list []value
	for k := len(h.added) - 1; k >= 0; k-- {
		a := h.added[k]
		if i < a.from || i >= a.to {
			continue
		}
		sure := !a.value.maybe
		a.value.maybe = false // it has one of these where it is there at all
		if list = append([]value{a.value}, list...); sure {
			break
		}
	}
	if list == nil {
		list = []value{h.blank}
	}
	return list
}

// remaining is what a flush leaves possible: the last value whose request
// succeeded, and those of failed requests since.
func remaining(list []value) []value {
	last := len(list) - 1
	for last > 0 && list[last].maybe {
		last--
	}
	return list[last:]
}

func (h *History) ask(i int64, v value) {
	had := h.of(i)
	h.sectors[i] = append(had[:len(had):len(had)], v)
	h.loose[i] = true
}

// AllowsDisk asks that a disk without absent sectors, read whole, is as the
// history allows.
func (h *History) AllowsDisk(b []byte) error {
	for i := int64(0); i*sector < int64(len(b)); i++ {
		if err := h.allows(i, false, b[i*sector:min((i+1)*sector, int64(len(b)))]); err != nil {
			return err
		}
	}
	return nil
}

// allows tells whether a sector may read as b, or as absent.
func (h *History) allows(i int64, absent bool, b []byte) error {
	list := h.of(i)
	for _, v := range list {
		if v.fits(absent, b) || i >= h.under && v.nothing() && (absent || isZero(b)) || i >= h.free && v.absent && !absent && isZero(b) {
			return nil
		}
	}
	got := fmt.Sprintf("%x…", b[:min(16, len(b))])
	if absent {
		got = "the parent's"
	}
	want := make([]string, len(list))
	for k, v := range list {
		switch {
		case v.either:
			want[k] = "nothing"
		case v.absent:
			want[k] = "the parent's"
		case v.data == nil:
			want[k] = "zeros"
		default:
			want[k] = fmt.Sprintf("%x…", v.data[:16])
		}
	}
	return fmt.Errorf("sector %d reads as %s, may be %q", i, got, want)
}
