package ops

import (
	"errors"
	iofs "io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"
)

// timestampSlack is how far a parent's time may be from the recorded one: host
// file systems keep times in steps of up to two seconds.
const timestampSlack = 2 * time.Second

// resolver finds the parents of one chain, or of every image for a graph: the
// scan of the folders is made once, when first needed.
type resolver struct {
	lib     *Library
	names   folder
	scanned bool
	index   []*Found          // every image of the folders
	byLink  map[GUID][]*Found // of these the disks that can be opened
	indexed map[FileID]bool
	folders []sighting        // that were scanned
	looked  map[string]*Found // candidates that are there, by host path
}

// child is the image whose parent is looked for, and those that it is a parent
// of: none of them may come again.
type child struct {
	found *Found   // of a disk, not of a set
	below []FileID // its own identity last
}

// search is one look for one parent.
type search struct {
	*resolver
	child
	want   []GUID
	paths  []recordedPath
	seen   []FileID
	passed []Candidate

	// What there is to say when no candidate is right.
	cycle      string // path of a right one that is in the chain already
	sector     string // path of a right one with other sectors
	sectorSize uint32
	broken     error // why a candidate could not be looked at
	mismatch   []Candidate
}

// resolved is a parent that was found.
type resolved struct {
	found    *Found
	rule     Rule
	warnings []string
}

// resolve looks for the parent of c by every rule in turn. Candidates that were
// not taken are in the result in either case.
func (r *resolver) resolve(c child) (*resolved, []Candidate, error) {
	s := &search{resolver: r, child: c}
	parent := c.found.Info.Parent
	if err := parent.Err; err != nil {
		return nil, nil, Wrapf(err, errUnrecorded, StatusOf(err), "parent of %s", c.found.Ref.Path())
	}
	for _, id := range parent.IDs {
		if !id.IsZero() {
			s.want = append(s.want, id)
		}
	}
	for _, p := range parent.Paths {
		rec, err := parseRecorded(p.Path)
		if err != nil {
			s.pass(p.Path, "", GUID{}, err.Error())
			continue
		}
		s.paths = append(s.paths, rec)
	}
	for _, rule := range []func() (*resolved, error){s.relative, s.besides, s.folded, s.absolute, s.suffix, s.byID} {
		got, err := rule()
		if err != nil {
			return nil, s.passed, err
		}
		if got != nil {
			got.warnings = s.warnings(got.found)
			return got, s.passed, nil
		}
	}
	return nil, s.passed, s.failure()
}

func (s *search) relative() (*resolved, error) {
	for _, p := range s.paths {
		if p.abs {
			continue
		}
		ref, ok := s.placeRelative(p)
		if !ok {
			continue
		}
		if got, err := s.choose(RuleRelative, []Ref{ref}); got != nil || err != nil {
			return got, err
		}
	}
	return nil, nil
}

// placeRelative is the name that a relative path means, seen from the child's
// directory: as it is named here, symbolic links not followed. A path that
// leaves the child's folder counts where it arrives in another one of the
// library; else it is refused without a look.
func (s *search) placeRelative(p recordedPath) (Ref, bool) {
	host := path.Join(s.found.Ref.Dir.Path(path.Dir(s.found.Ref.Name)), strings.Repeat("../", p.up), path.Join(p.parts...))
	ref, ok := s.placeHost(host)
	if !ok {
		s.pass(host, RuleRelative, GUID{}, "leads outside the folder")
	}
	return ref, ok
}

// placeHost names a clean absolute host path in a folder of the library.
func (s *search) placeHost(host string) (Ref, bool) {
	for _, d := range s.roots() {
		if name, ok := beneath(d.Path("."), host); ok && name != "." {
			return Ref{Dir: d, Name: name}, true
		}
	}
	return Ref{}, false
}

// roots are the folders in which a recorded path may arrive, the child's own first.
func (s *search) roots() []Dir {
	roots := append([]Dir{s.found.Ref.Dir, s.lib.opts.Top}, s.lib.opts.Search...)
	return distinct(append(roots, s.lib.opts.Allow...))
}

func (s *search) besides() (*resolved, error) {
	for _, p := range s.paths {
		ref := Ref{Dir: s.found.Ref.Dir, Name: path.Join(path.Dir(s.found.Ref.Name), p.base())}
		if got, err := s.choose(RuleName, []Ref{ref}); got != nil || err != nil {
			return got, err
		}
	}
	return nil, nil
}

func (s *search) folded() (*resolved, error) {
	dir := path.Dir(s.found.Ref.Name)
	for _, p := range s.paths {
		if p.abs {
			continue
		}
		ref, ok := s.placeRelative(p)
		if !ok {
			continue
		}
		if got, err := s.choose(RuleFolded, refs(ref.Dir, s.names.find(ref.Dir, ".", strings.Split(ref.Name, "/")))); got != nil || err != nil {
			return got, err
		}
	}
	for _, p := range s.paths {
		beside := refs(s.found.Ref.Dir, s.names.find(s.found.Ref.Dir, dir, []string{p.base()}))
		if got, err := s.choose(RuleFolded, beside); got != nil || err != nil {
			return got, err
		}
	}
	return nil, nil
}

// absolute takes a path of this kind of system as it stands, below a folder of
// the library only.
func (s *search) absolute() (*resolved, error) {
	for _, p := range s.paths {
		if !p.unix {
			continue
		}
		host := "/" + path.Join(p.parts...)
		ref, ok := s.placeHost(host)
		if !ok {
			s.pass(host, RuleAbsolute, GUID{}, "leads outside the folder")
			continue
		}
		if got, err := s.choose(RuleAbsolute, []Ref{ref}); got != nil || err != nil {
			return got, err
		}
	}
	return nil, nil
}

func (s *search) suffix() (*resolved, error) {
	for _, p := range s.paths {
		if !p.abs {
			continue
		}
		for from := range p.parts {
			for _, d := range s.roots() {
				got, err := s.choose(RuleSuffix, []Ref{{Dir: d, Name: path.Join(p.parts[from:]...)}})
				if got == nil && err == nil {
					got, err = s.choose(RuleSuffix, refs(d, s.names.find(d, ".", p.parts[from:])))
				}
				if got != nil || err != nil {
					return got, err
				}
			}
		}
	}
	return nil, nil
}

func (s *search) byID() (*resolved, error) {
	if err := s.scan(); err != nil {
		return nil, err
	}
	var same []Ref
	for _, id := range s.want {
		for _, f := range s.byLink[id] {
			if s.sameFamily(f) {
				same = append(same, f.Ref)
			}
		}
	}
	return s.choose(RuleID, same)
}

func refs(d Dir, names []string) []Ref {
	list := make([]Ref, len(names))
	for i, n := range names {
		list[i] = Ref{Dir: d, Name: n}
	}
	return list
}

// choose looks at candidates that one rule gives and takes the one that is
// right. An exact spelling wins over others because it is asked for alone,
// before them. Two right files are none: both are named.
func (s *search) choose(rule Rule, list []Ref) (*resolved, error) {
	var right []*Found
	for _, ref := range list {
		if found := s.consider(rule, ref); found != nil {
			right = append(right, found)
		}
	}
	switch len(right) {
	case 0:
		return nil, nil
	case 1:
		return &resolved{found: right[0], rule: rule}, nil
	}
	var names []string
	for _, f := range right {
		s.pass(f.Ref.Path(), rule, f.Info.LinkID, "not the only one with this id")
		names = append(names, f.Ref.Path())
	}
	return nil, Errorf(ErrParentMissing, StatusParentNotFound, "parent of %s: %d files have the recorded id %s, none is taken: %s",
		s.found.Ref.Path(), len(right), right[0].Info.LinkID, quoteList(names))
}

// consider opens a candidate, beneath its folder and through no symbolic link,
// and answers what it is when it is right.
func (s *search) consider(rule Rule, ref Ref) *Found {
	if slices.Contains(strings.Split(ref.Name, "/"), StateDir) {
		s.pass(ref.Path(), rule, GUID{}, "is in a folder of vhdfs's own")
		return nil
	}
	found, err := s.candidate(ref)
	if err != nil {
		if !absent(err) {
			s.pass(ref.Path(), rule, GUID{}, err.Error())
			if !errors.Is(err, ErrForbidden) {
				s.broken = err
			}
		}
		return nil
	}
	if slices.Contains(s.seen, found.Stat.ID) {
		return nil
	}
	s.seen = append(s.seen, found.Stat.ID)
	why := s.judge(found)
	if why == "" {
		return found
	}
	s.pass(ref.Path(), rule, found.Info.LinkID, why)
	return nil
}

// candidate looks at a file once for all children that may have it as their parent.
func (r *resolver) candidate(ref Ref) (*Found, error) {
	if found := r.looked[ref.Path()]; found != nil {
		return found, nil
	}
	found, err := r.lib.inspect(ref, Read|NoFollow, false)
	if err == nil {
		if r.looked == nil {
			r.looked = map[string]*Found{}
		}
		r.looked[ref.Path()] = found
	}
	return found, err
}

// judge says why a candidate is not taken, "" when it is right.
func (s *search) judge(f *Found) string {
	own := s.child.found
	switch {
	case f.Format == nil:
		if !errors.Is(f.Err, ErrCorrupt) {
			s.broken = f.Err // the host could not read it
		}
		return "no image: " + f.Err.Error()
	case !s.sameFamily(f):
		return "a " + f.Format.Name + " image cannot be the parent of a " + own.Format.Name + " image"
	case f.Err != nil:
		s.broken = f.Err
		return f.Err.Error()
	case !slices.Contains(s.want, f.Info.LinkID):
		s.mismatch = append(s.mismatch, Candidate{Path: f.Ref.Path(), ID: f.Info.LinkID})
		return "has another id"
	case slices.Contains(s.below, f.Stat.ID):
		s.cycle = f.Ref.Path()
		return "is in this chain already"
	case f.Info.LogicalSector != own.Info.LogicalSector:
		s.sector, s.sectorSize = f.Ref.Path(), f.Info.LogicalSector
		return "has other logical sectors"
	}
	return ""
}

// sameFamily: a VHD's parent is a VHD, a VHDX's a VHDX.
func (s *search) sameFamily(f *Found) bool {
	return f.Format != nil && f.Format.Set == nil && f.Format.Number == s.child.found.Format.Number
}

// absent errors mean that a name leads nowhere.
func absent(err error) bool {
	return errors.Is(err, iofs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.EINVAL)
}

func (s *search) pass(path string, rule Rule, id GUID, why string) {
	c := Candidate{Path: path, Rule: rule, ID: id, Why: why}
	if !slices.ContainsFunc(s.passed, func(p Candidate) bool { return p.Path == path && p.Why == why }) {
		s.passed = append(s.passed, c)
	}
}
