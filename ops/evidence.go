package ops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

const (
	// evidencePlaces is how many places of a disk are compared, spread over all of
	// it, each of at most evidenceBytes; in less than evidencePart there is one.
	evidencePlaces = 128
	evidenceBytes  = 16 << 10
	evidencePart   = 4 << 10
	// evidenceSteps bounds the runs that are looked at for one place.
	evidenceSteps = 64
)

// Evidence is what speaks for and against a file as the parent of an image. Only
// a file whose disk is that of the parent lost, byte for byte, makes a whole disk
// of the two.
type Evidence struct {
	StoredIdentifiers       []GUID // what the image records
	Identifier              GUID   // of the file
	IdentifierMatches       bool
	ChildSize               int64 // bytes of the disks
	ParentSize              int64
	ChildLogicalSectorSize  uint32
	ParentLogicalSectorSize uint32
	ChildVirtualDiskId      *GUID      `json:",omitempty"` // where a child inherits it: VHDX
	ParentVirtualDiskId     *GUID      `json:",omitempty"`
	StoredTimestamp         *time.Time `json:",omitempty"` // when the parent was changed, as recorded: VHD
	ParentModified          time.Time  // when the files were
	ChildModified           time.Time
	WithChild               *Samples `json:",omitempty"`
	WithPresentParent       *Samples `json:",omitempty"`
	For, Against            []string
}

// Samples compares two disks at places where the first holds data.
type Samples struct {
	Places int    // that were compared
	Same   int    // of these with the same bytes
	Alike  int    // that differ, but begin in the same eight bytes, not zeros: of one kind
	Zeros  int    // that are zeros in the file
	Differ *int64 `json:",omitempty"` // the first that differs, in bytes of the disk
}

// sampled is a disk, or one layer of it, as samples are taken from it.
type sampled interface {
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
	Extent(off, max int64) (ChainExtent, error)
}

// lone is a layer without its parents.
type lone struct{ Layer }

// Extent implements sampled.
func (l lone) Extent(off, max int64) (ChainExtent, error) {
	x, err := l.Layer.Extent(off, max)
	return ChainExtent{Extent: x}, err
}

// ReadAt implements sampled; what the layer does not hold stays as it was in p.
func (l lone) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, _, err := l.ReadRun(p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// weighHeaders compares what the headers of both files say.
func weighHeaders(child, parent *Found) *Evidence {
	rec := newParentRecord(child.Info.Parent)
	e := &Evidence{
		StoredIdentifiers: append([]GUID{}, rec.Identifiers...), StoredTimestamp: rec.Timestamp,
		Identifier: parent.Info.LinkID, IdentifierMatches: records(child, parent.Info.LinkID),
		ChildSize: child.Size, ParentSize: parent.Size,
		ChildLogicalSectorSize: child.Info.LogicalSector, ParentLogicalSectorSize: parent.Info.LogicalSector,
		ParentModified: parent.Stat.Mtime.UTC(), ChildModified: child.Stat.Mtime.UTC(),
		For: []string{}, Against: []string{},
	}
	if len(e.StoredIdentifiers) > 0 {
		e.count(e.IdentifierMatches, "the id is the recorded one", "the id is %s, recorded is %s", e.Identifier, idList(e.StoredIdentifiers))
	} else {
		e.Against = append(e.Against, "no id is recorded that could be compared: "+rec.Error)
	}
	e.count(e.ChildSize == e.ParentSize, "both disks have the same size", "the disk has %d bytes, the image's %d", e.ParentSize, e.ChildSize)
	if child.Format.Number == FormatVHDX {
		e.ChildVirtualDiskId, e.ParentVirtualDiskId = &child.Info.DiskID, &parent.Info.DiskID
		e.count(child.Info.DiskID == parent.Info.DiskID, "both have the same VirtualDiskId, which a child inherits",
			"its VirtualDiskId is %s, the image's %s", parent.Info.DiskID, child.Info.DiskID)
	}
	if rec.Timestamp != nil {
		e.count(near(*rec.Timestamp, parent.Stat.Mtime), "the file was last changed at the recorded time",
			"the file was last changed at %s, recorded is %s", e.ParentModified.Format(time.RFC3339), rec.Timestamp.Format(time.RFC3339))
	}
	if parent.Stat.Mtime.After(child.Stat.Mtime) {
		e.Against = append(e.Against, "the file was changed after the image was: it may have been written since")
	}
	return e
}

// records tells whether an image records an id of its parent.
func records(child *Found, id GUID) bool {
	return !id.IsZero() && slices.Contains(child.Info.Parent.IDs, id)
}

// count adds one sentence to either side.
func (e *Evidence) count(holds bool, yes, no string, args ...any) {
	if holds {
		e.For = append(e.For, yes)
	} else {
		e.Against = append(e.Against, fmt.Sprintf(no, args...))
	}
}

// weighContent compares bytes: of the file with what the image itself holds,
// where a guest often wrote the same or the like again, and with the present
// parent, where there is one, which has to be the same throughout. What cannot be
// read is no failure: it speaks against the file.
func (l *Library) weighContent(ctx context.Context, e *Evidence, child, parent Ref, present *Link) error {
	p, err := l.Look(parent)
	if err == nil {
		err = errors.Join(l.weighChild(ctx, e, child, p), l.weighPresent(ctx, e, present, p), p.Close())
	}
	if err != nil && ctx.Err() == nil {
		e.Against = append(e.Against, "not all of it can be compared: "+err.Error())
	}
	return ctx.Err()
}

// weighChild compares what the image itself holds.
func (l *Library) weighChild(ctx context.Context, e *Evidence, child Ref, p sampled) error {
	own, err := l.OpenLayer(child)
	if err != nil {
		return err
	}
	s, err := compareSamples(ctx, lone{own}, p)
	if err = errors.Join(err, own.Close()); err != nil || s.Places == 0 {
		return err
	}
	e.WithChild = s
	e.count(s.Same+s.Alike > 0, fmt.Sprintf("of %d places that the image holds, the file has the same bytes at %d and like ones at %d", s.Places, s.Same, s.Alike),
		"of %d places that the image holds, the file has neither the same nor like bytes at any", s.Places)
	return nil
}

// weighPresent looks for a place at which the new parent is not the present one.
func (l *Library) weighPresent(ctx context.Context, e *Evidence, present *Link, p sampled) error {
	if present == nil {
		return nil
	}
	old, err := l.Look(present.Ref)
	if err != nil {
		return nil // the image cannot be read through it, either
	}
	s, err := compareSamples(ctx, old, p)
	if err == nil {
		var back *Samples
		if back, err = compareSamples(ctx, p, old); err == nil {
			s.add(back)
		}
	}
	if err := errors.Join(err, old.Close()); err != nil {
		return err
	}
	e.WithPresentParent = s
	switch {
	case s.Places == 0:
	case s.Differ == nil:
		e.For = append(e.For, fmt.Sprintf("it has the bytes of the present parent %s at all of %d places", present.Ref.Path(), s.Places))
	default:
		e.Against = append(e.Against, fmt.Sprintf("it differs from the present parent %s at byte %d of the disk", present.Ref.Path(), *s.Differ))
	}
	return nil
}

func (s *Samples) add(o *Samples) {
	s.Places, s.Same, s.Alike, s.Zeros = s.Places+o.Places, s.Same+o.Same, s.Alike+o.Alike, s.Zeros+o.Zeros
	if s.Differ == nil {
		s.Differ = o.Differ
	}
}

// compareSamples compares b with a where a holds data: the first such place in
// each of evidencePlaces parts of the disk, as far as it is found in evidenceSteps
// runs.
func compareSamples(ctx context.Context, a, b sampled) (*Samples, error) {
	s, size := &Samples{}, a.Size()
	part := (size/evidencePlaces + evidencePart) / evidencePart * evidencePart
	for off := int64(0); off < size; off += part {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		x, err := firstData(a, off, min(off+part, size))
		if err != nil {
			return nil, err
		}
		if x.Len > 0 {
			if err := s.take(a, b, x.Pos, x.Len); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// firstData is the first data in [off, end): Pos in bytes of the disk. Len is 0
// where there is none.
func firstData(d sampled, off, end int64) (Extent, error) {
	for range evidenceSteps {
		if off >= end {
			break
		}
		x, err := d.Extent(off, end-off)
		if err != nil {
			return Extent{}, err
		}
		if x.Kind == Data {
			return Extent{Pos: off, Len: min(x.Len, evidenceBytes)}, nil
		}
		off += x.Len
	}
	return Extent{}, nil
}

// take compares n bytes at off. What lies past the end of b is zeros there.
func (s *Samples) take(a, b sampled, off, n int64) error {
	x, y := make([]byte, n), make([]byte, n)
	if _, err := a.ReadAt(x, off); err != nil && err != io.EOF {
		return err
	}
	if _, err := b.ReadAt(y, off); err != nil && err != io.EOF {
		return err
	}
	s.Places++
	zero := len(bytes.Trim(y, "\x00")) == 0
	if zero {
		s.Zeros++
	}
	head := min(n, 8)
	switch {
	case bytes.Equal(x, y):
		if !zero {
			s.Same++
		}
		return nil
	case bytes.Equal(x[:head], y[:head]) && len(bytes.Trim(x[:head], "\x00")) > 0:
		s.Alike++
	}
	if s.Differ == nil {
		for i := range x {
			if x[i] != y[i] {
				at := off + int64(i)
				s.Differ = &at
				break
			}
		}
	}
	return nil
}
