package view

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"vhdfs/ops"
)

// Mapper is an open image as a map needs it.
type Mapper interface {
	Size() int64
	Extent(off, max int64) (ops.ChainExtent, error)
	Layers() []ops.Ref
}

// Run is one line of a map. Lengths and offsets are bytes.
type Run struct {
	Offset int64
	Length int64
	Kind   string // "data", "zero" or "hole"
	File   string `json:",omitempty"` // the image of the chain that says so
	At     *int64 `json:",omitempty"` // where data starts in File
}

// WriteMap streams map.json: nothing is kept, however many runs there are. A
// hole is what no image of the chain says anything about; it reads as zeros.
func WriteMap(w io.Writer, m Mapper) error {
	b := bufio.NewWriterSize(w, 64<<10)
	files := m.Layers()
	path, err := json.Marshal(files[0].Path())
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "{\n  \"Path\": %s,\n  \"Size\": %d,\n  \"Runs\": [", path, m.Size())
	sep := "\n"
	err = EachRun(m, func(r Run) error {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%s    %s", sep, line)
		sep = ",\n"
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprint(b, "\n  ]\n}\n")
	return b.Flush() // keeps the first error of every write before it
}

// EachRun calls do for every run of an image in order, neighbours joined where
// they continue each other in the same file.
func EachRun(m Mapper, do func(Run) error) error {
	files, size := m.Layers(), m.Size()
	var last Run
	for off := int64(0); off < size; {
		e, err := m.Extent(off, size-off)
		if err != nil {
			return err
		}
		r := newRun(off, e, files)
		off += e.Len
		if last.continuedBy(r) {
			last.Length += r.Length
			continue
		}
		if last.Length > 0 {
			if err := do(last); err != nil {
				return err
			}
		}
		last = r
	}
	if last.Length == 0 {
		return nil
	}
	return do(last)
}

func newRun(off int64, e ops.ChainExtent, files []ops.Ref) Run {
	r := Run{Offset: off, Length: e.Len, Kind: "zero"}
	switch {
	case e.Hole:
		r.Kind = "hole"
		return r
	case e.Kind == ops.Data:
		r.Kind, r.At = "data", &e.Pos
	}
	r.File = files[e.Depth].Path()
	return r
}

func (r *Run) continuedBy(n Run) bool {
	if r.Length == 0 || r.Kind != n.Kind || r.File != n.File {
		return false
	}
	return r.At == nil || *r.At+r.Length == *n.At
}
