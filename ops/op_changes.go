package ops

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
)

// opChanges tells what was written since an id was given.
var opChanges = &Op{
	Name:   "changes",
	Method: "GetVirtualDiskChanges",
	Brief:  "tell which parts of the disk may have changed since an id was given",
	Args: []Arg{
		{Name: "LimitId", Short: "since", Kind: ArgText, Required: true, Bare: true, Help: "id that tracking answered, or a snapshot of a set"},
		{Name: "TargetSnapshotId", Short: "target", Kind: ArgText, Help: "snapshot of a set: what changed up to that; default up to now"},
		{Name: "ByteOffset", Short: "offset", Kind: ArgSize, Help: "where to begin, default 0"},
		{Name: "ByteLength", Short: "length", Kind: ArgSize, Help: "how many bytes of the disk to look at, default all that follow"},
	},
	Can: canTrack,
	Run: runChanges,
}

// runChanges answers everything that was asked for, however long: ProcessedByteLength
// is ByteLength, and nothing has to be asked once more.
func runChanges(_ context.Context, r *Request) (_ Fields, err error) {
	h, err := r.Library.Open(r.Image, Read)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	limit, err := h.limitID(r.Args.Text("LimitId"))
	if err != nil {
		return nil, err
	}
	c, within, err := h.changedSince(limit, r)
	if err != nil {
		return nil, err
	}
	ranges, bytes := int64(0), int64(0)
	_ = c.Each(within.Off, within.Len, func(r Range) error { // which fails not at all
		ranges, bytes = ranges+1, bytes+r.Len
		return nil
	})
	return Fields{
		{"Path", r.Image.Path()}, {"LimitId", limit},
		{"ByteOffset", within.Off}, {"ProcessedByteLength", within.Len}, {"More", false},
		{"Ranges", ranges}, {"ChangedBytes", bytes}, {"Granularity", c.Granule},
		{"ChangedByteOffsets", changedList{c, within, func(r Range) int64 { return r.Off }}},
		{"ChangedByteLengths", changedList{c, within, func(r Range) int64 { return r.Len }}},
	}, nil
}

// changesWithin is the part of a disk that is asked about.
func (r *Request) changesWithin(size int64) (Range, error) {
	off, err := r.bytes("offset", "ByteOffset", size-1)
	if err != nil {
		return Range{}, err
	}
	n, err := r.bytes("length", "ByteLength", size-off)
	if err == nil && n == 0 && r.Args.Has("ByteLength") {
		err = Errorf(ErrUsage, 0, "length: 0 bytes")
	}
	if n == 0 {
		n = size - off
	}
	return Range{off, n}, err
}

// limitID is the id that a request means: a snapshot of a set stands for its own.
func (h *Handle) limitID(asked string) (string, error) {
	if h.set == nil || strings.Contains(asked, ":") {
		return asked, nil
	}
	n := h.set.Set.Snapshot(asked)
	switch {
	case n == nil:
		return "", Errorf(ErrNoTracking, StatusTrackingID, "since=%q: %s has no snapshot of this label or id", asked, h.set.Ref.Path())
	case n.TrackingID == "":
		return "", Errorf(ErrNoTracking, StatusTrackingMissing, "since=%q: changes of %s were not tracked when the snapshot was taken", asked, h.set.Ref.Path())
	}
	return n.TrackingID, nil
}

// changedSince is what changed since the id was given, up to now or to a snapshot, and
// the part of the disk that was asked about.
func (h *Handle) changedSince(id string, r *Request) (c *Changed, within Range, err error) {
	e := h.engine()
	if target := r.Args.Text("TargetSnapshotId"); target != "" {
		if e, err = h.acquireSnapshot(target); err != nil {
			return nil, within, err
		}
		defer func() { err = errors.Join(err, h.lib.release(e)) }()
	}
	_, size, err := e.describe()
	if err != nil {
		return nil, within, err
	}
	if within, err = r.changesWithin(size); err != nil {
		return nil, within, err
	}
	err = h.lib.readTracking(e, func(t Tracker) error {
		c, err = t.Changes(id, within)
		return err
	})
	return c, within, err
}

// acquireSnapshot takes the engine of the file that holds a snapshot of the set.
func (h *Handle) acquireSnapshot(name string) (*Engine, error) {
	if h.set == nil {
		return nil, Errorf(ErrUsage, 0, "target=%q: %s is not a set", name, h.ref.Path())
	}
	n := h.set.Set.Snapshot(name)
	switch {
	case n == nil:
		return nil, Errorf(ErrNoTracking, StatusTrackingID, "target=%q: %s has no snapshot of this label or id", name, h.set.Ref.Path())
	case n.Path == "":
		return nil, Errorf(ErrNoTracking, StatusTrackingMissing, "target=%q: the snapshot is a reference without data", name)
	case n.TrackingID == "":
		return nil, Errorf(ErrNoTracking, StatusTrackingMissing, "target=%q: changes of %s were not tracked when the snapshot was taken", name, h.set.Ref.Path())
	}
	e, err := h.lib.acquire(h.set.Beside(n.Path), NoFollow)
	if err != nil {
		return nil, err
	}
	if _, err := h.set.Set.judged(e, n.Path); err != nil {
		return nil, errors.Join(err, h.lib.release(e))
	}
	return e, nil
}

// changedList is one number of each range, as JSON.
type changedList struct {
	c      *Changed
	within Range
	of     func(Range) int64
}

// WriteJSON implements [Streamed].
func (l changedList) WriteJSON(w io.Writer) error {
	b := bufio.NewWriter(w)
	before := byte('[')
	err := l.c.Each(l.within.Off, l.within.Len, func(r Range) error {
		if err := b.WriteByte(before); err != nil {
			return err
		}
		before = ','
		_, err := b.Write(strconv.AppendInt(b.AvailableBuffer(), l.of(r), 10))
		return err
	})
	if err != nil {
		return err
	}
	end := "]"
	if before == '[' {
		end = "[]"
	}
	if _, err := b.WriteString(end); err != nil {
		return err
	}
	return b.Flush()
}
