package ops

import (
	"cmp"
	"errors"
	"path"
	"slices"
	"strings"
)

// maxLikely is how many files are named that may be a missing parent.
const maxLikely = 8

// Likely is a file that may be the parent that is not found: [opSetParent] takes
// it, after the evidence.
type Likely struct {
	Found *Found
	Why   []string // what speaks for it
}

// likely are the images of the folders that may be the parent of own, which err
// says is not found: those with its disk's id, which a VHDX inherits, with a
// recorded name, or with the recorded time. An image that records what own records
// is its brother, and one that reads through it is no parent.
func (r *resolver) likely(own *Found, err error) []Likely {
	unknown := errors.Is(err, ErrParentMissing) || errors.Is(err, ErrParentMismatch) || errors.Is(err, errUnrecorded)
	if !unknown || r.scan() != nil {
		return nil
	}
	var names []string
	for _, p := range own.Info.Parent.Paths {
		if rec, err := parseRecorded(p.Path); err == nil {
			names = append(names, rec.base())
		}
	}
	var list []Likely
	for _, f := range r.index {
		if f.Err != nil || f.Set != nil || f.Stat.ID == own.Stat.ID || f.Format.Number != own.Format.Number ||
			f.Info.LogicalSector != own.Info.LogicalSector {
			continue
		}
		if why := likeness(own, f, names); len(why) > 0 && !r.isBrother(own, f) && !r.readsThrough(f, own) {
			list = append(list, Likely{f, why})
		}
	}
	slices.SortStableFunc(list, func(a, b Likely) int { return cmp.Compare(len(b.Why), len(a.Why)) })
	return list[:min(len(list), maxLikely)]
}

// likeness is what speaks for f as the parent of own; nothing where only the size
// does.
func likeness(own, f *Found, names []string) []string {
	var why []string
	if own.Format.Number == FormatVHDX && f.Info.DiskID == own.Info.DiskID && !own.Info.DiskID.IsZero() {
		why = append(why, "the same VirtualDiskId")
	}
	if slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, path.Base(f.Ref.Name)) }) {
		why = append(why, "a recorded name")
	}
	if t := own.Info.Parent.Timestamp; !t.IsZero() && near(t, f.Stat.Mtime) {
		why = append(why, "the recorded time")
	}
	if len(why) > 0 && f.Size == own.Size {
		why = append(why, "the same size")
	}
	return why
}

func (r *resolver) isBrother(own, f *Found) bool {
	return f.Info.Parent != nil && slices.ContainsFunc(f.Info.Parent.IDs, func(id GUID) bool { return slices.Contains(own.Info.Parent.IDs, id) })
}

// readsThrough follows the chain of f, by links that hold.
func (r *resolver) readsThrough(f, own *Found) bool {
	below := []FileID{f.Stat.ID}
	for f.Info.Parent != nil && len(below) < MaxChain {
		got, _, err := r.resolve(child{found: f, below: below})
		if err != nil {
			return false
		}
		if f = got.found; f.Stat.ID == own.Stat.ID {
			return true
		}
		below = append(below, f.Stat.ID)
	}
	return false
}
