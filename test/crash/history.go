package crash

import (
	"bytes"
	"fmt"

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
	maybe  bool // the request for it failed: it may be there or not
	data   []byte
}

var zeros [sector]byte

func (v value) is(b []byte) bool {
	if v.data == nil {
		return isZero(b)
	}
	return bytes.Equal(b, v.data)
}

// History is what each sector of a disk may read as after a power cut: the last
// value that a flush acknowledged, or any that was asked for since (C1, C2).
type History struct {
	blank   value // of a sector that nobody ever wrote
	sectors map[int64][]value
	loose   map[int64]bool // sectors with more than one value
}

// NewHistory is that of an empty disk; absent where it has a parent.
func NewHistory(differencing bool) *History {
	return &History{blank: value{absent: differencing}, sectors: map[int64][]value{}, loose: map[int64]bool{}}
}

// Clone is an independent copy.
func (h *History) Clone() *History {
	c := NewHistory(h.blank.absent)
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

// doubted marks that a session ended without a promise: what was written since the
// last flush may last or not, whatever later sessions flush.
type doubted struct{}

// Note takes up an event of a recording; only marks of a [Guest] count.
func (h *History) Note(e sim.Event) {
	switch m := e.Mark.(type) {
	case asked:
		for at := int64(0); at < m.n; at += sector {
			v := value{}
			if m.data != nil {
				v.data = m.data[at : at+sector]
			}
			h.ask((m.off+at)/sector, v)
		}
	case refused:
		for i := m.off / sector; i < (m.off+m.n)/sector; i++ {
			v := append([]value(nil), h.sectors[i]...)
			v[len(v)-1].maybe = true
			h.sectors[i] = v
		}
	case flushed:
		h.Settle()
	case doubted:
		for i := range h.loose {
			v := append([]value(nil), h.sectors[i]...)
			for k := range v[1:] {
				v[k+1].maybe = true
			}
			h.sectors[i] = v
		}
	}
}

// Settle drops what an acknowledged flush rules out; for the disk that is open it
// gives what may be read now.
func (h *History) Settle() {
	for i := range h.loose {
		if h.sectors[i] = settled(h.sectors[i]); len(h.sectors[i]) == 1 {
			delete(h.loose, i)
		}
	}
}

// settled is what remains possible after a flush: the last value whose request
// succeeded, and those of failed requests since.
func settled(list []value) []value {
	last := len(list) - 1
	for last > 0 && list[last].maybe {
		last--
	}
	return list[last:]
}

func (h *History) ask(i int64, v value) {
	had, ok := h.sectors[i]
	if !ok {
		had = []value{h.blank}
	}
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
	list, ok := h.sectors[i]
	if !ok {
		list = []value{h.blank}
	}
	for _, v := range list {
		if v.absent == absent && (absent || v.is(b)) {
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
