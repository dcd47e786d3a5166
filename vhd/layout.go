package vhd

import (
	"errors"

	"vhdfs/ops"
)

// span is a range of the file that is no block's.
type span struct {
	off, len int64
	what     string
}

func (s span) end() int64 { return s.off + s.len }

// layout is where the structures of a dynamic or differencing file are.
type layout struct {
	end   int64  // where blocks have to end: the end footer, or the file's end without one
	spans []span // footer copy, dynamic header, table, and the batmap if there is one
}

func newLayout(f *footer, h *header, end int64) *layout {
	return &layout{end: end, spans: []span{
		{0, footerSize, "footer copy"},
		{int64(f.dataOffset), headerSize, "dynamic header"},
		{int64(h.tableOffset), h.tableBytes(), "block table"},
	}}
}

// overlaps finds a structure in [off, off+n).
func (l *layout) overlaps(off, n int64) (span, bool) {
	for _, s := range l.spans {
		if off < s.end() && s.off < off+n {
			return s, true
		}
	}
	return span{}, false
}

func anomaly(name string, sev ops.Severity, where string, err error) ops.Anomaly {
	text := err.Error()
	var e *ops.Error
	if errors.As(err, &e) {
		text = e.Msg
	}
	return ops.Anomaly{Name: name, Severity: sev, Where: where, Text: text}
}

func isCorrupt(err error) bool { return errors.Is(err, ops.ErrCorrupt) }
