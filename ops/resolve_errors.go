package ops

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// failure says why there is no parent. ErrParentMismatch only where a file with
// another id was found and none with the right one.
func (s *search) failure() error {
	who := "parent of " + s.found.Ref.Path()
	switch {
	case s.cycle != "":
		return Errorf(ErrCycle, StatusCycle, "%s: %s is in its own chain", who, s.cycle)
	case s.sector != "":
		return Corruptf(StatusSectorSize, "%s: %s has logical sectors of %d bytes, the child of %d",
			who, s.sector, s.sectorSize, s.child.found.Info.LogicalSector)
	case s.broken != nil && !errors.Is(s.broken, ErrParentMissing):
		return fmt.Errorf("%s cannot be read: %w", who, s.broken)
	case len(s.mismatch) > 0:
		c := s.mismatch[0]
		return Errorf(ErrParentMismatch, StatusIDMismatch, "%s: %s has id %s, recorded is %s", who, c.Path, c.ID, idList(s.want))
	case len(s.want) == 0:
		return Errorf(ErrParentMissing, StatusParentNotFound, "%s: no id is recorded", who)
	}
	return Errorf(ErrParentMissing, StatusParentNotFound, "%s: no image with id %s at %s or elsewhere in the folder",
		who, idList(s.want), s.storedList())
}

// storedList quotes the recorded paths, shortened.
func (s *search) storedList() string {
	var list []string
	for _, p := range s.child.found.Info.Parent.Paths {
		list = append(list, p.Path)
	}
	if len(list) == 0 {
		return "any recorded path"
	}
	return quoteList(list)
}

// warnings are what is odd about a parent with the right id.
func (s *search) warnings(parent *Found) []string {
	var list []string
	rec := s.child.found.Info.Parent.Timestamp
	if !rec.IsZero() && !near(rec, parent.Stat.Mtime) && !near(rec, parent.Info.Timestamp) {
		list = append(list, fmt.Sprintf("the time recorded for the parent is %s, its file was changed at %s: it may have been written since",
			rec.UTC().Format(time.RFC3339), parent.Stat.Mtime.UTC().Format(time.RFC3339)))
	}
	if own := s.child.found.Size; parent.Size < own {
		list = append(list, fmt.Sprintf("the parent has %d bytes, this image %d: past the parent's end it reads as zeros", parent.Size, own))
	}
	return list
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() <= timestampSlack }

func idList(ids []GUID) string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
	}
	return strings.Join(list, " or ")
}

// quoteList quotes names for a message, at most eight.
func quoteList(names []string) string {
	var list []string
	for i, n := range names {
		if i == 8 {
			list = append(list, fmt.Sprintf("and %d more", len(names)-i))
			break
		}
		list = append(list, fmt.Sprintf("%.200q", n))
	}
	return strings.Join(list, ", ")
}
