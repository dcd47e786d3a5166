package ops

import (
	"errors"
	iofs "io/fs"
	"path"
	"slices"
)

const (
	// MaxChain is the greatest number of images in a chain, the image itself
	// included: each holds a descriptor of the host while it is open.
	MaxChain = 256
	// maxFolderDepth bounds the folders within folders that are searched.
	maxFolderDepth = 64
)

// ChainOf follows the parents of an image as far as they can be found, without
// locks. The last link's Err says why a chain is broken; nil when it is whole.
func (l *Library) ChainOf(r Ref) ([]Link, error) {
	if into, ok := l.MergedInto(r); ok {
		r = into
	}
	found, err := l.Inspect(r)
	if err != nil {
		return nil, err
	}
	res := &resolver{lib: l}
	chain := []Link{{Ref: r, Found: found}}
	below := []FileID{found.itself().Stat.ID}
	for {
		last := &chain[len(chain)-1]
		if last.Found.Err != nil {
			last.Err = last.Found.Err
			return chain, nil
		}
		parent := last.Found.Info.Parent
		if parent == nil {
			return chain, nil
		}
		last.Stored, last.WantIDs = parent.Paths, parent.IDs
		if len(chain) == MaxChain {
			last.Err = tooDeep(r)
			return chain, nil
		}
		got, passed, err := res.resolve(child{found: last.Found.itself(), below: below})
		last.Passed = passed
		if err != nil {
			last.Err = err
			last.Likely = res.likely(last.Found.itself(), err)
			return chain, nil
		}
		last.Warnings = got.warnings
		below = append(below, got.found.Stat.ID)
		chain = append(chain, Link{Ref: got.found.Ref, Found: got.found, Rule: got.rule})
	}
}

func tooDeep(r Ref) error {
	return Errorf(ErrCycle, StatusCycle, "chain of %s: more than %d images", r.Path(), MaxChain)
}

// scan looks at every image of the top and search folders. It costs a stat for
// each image that was looked at before and has not changed since.
func (r *resolver) scan() error {
	if r.scanned {
		return nil
	}
	var s survey
	for _, d := range distinct(append([]Dir{r.lib.opts.Top}, r.lib.opts.Search...)) {
		if err := r.lib.walk(d, ".", nil, &s); err != nil {
			return err
		}
	}
	r.lib.inspectAll(s.images)
	r.byLink, r.indexed = map[GUID][]*Found{}, map[FileID]bool{}
	for i := range s.images {
		if err := r.add(&s.images[i]); err != nil {
			return err
		}
	}
	r.scanned, r.folders = true, s.folders
	return nil
}

// add puts an image into the index.
func (r *resolver) add(s *sighting) error {
	if skip(s.err) {
		return nil
	}
	if s.err != nil {
		return s.err
	}
	found := s.found
	if s.ref.Dir.Path(".") != r.lib.opts.Top.Path(".") && r.indexed[found.Stat.ID] {
		return nil // a search folder within the image folder
	}
	r.indexed[found.Stat.ID] = true
	r.index = append(r.index, found)
	if found.Set == nil && found.Err == nil {
		r.byLink[found.Info.LinkID] = append(r.byLink[found.Info.LinkID], found)
	}
	return nil
}

// distinct leaves out folders that are none, and those that came before.
func distinct(dirs []Dir) []Dir {
	var one []Dir
	for _, d := range dirs {
		if d != nil && !slices.ContainsFunc(one, func(o Dir) bool { return o.Path(".") == d.Path(".") }) {
			one = append(one, d)
		}
	}
	return one
}

// walk adds the images of a folder and of those in it. above are the folders around
// it: a symbolic link to one of them is not followed.
func (l *Library) walk(d Dir, name string, above []FileID, s *survey) error {
	st, err := d.Stat(name)
	if skip(err) || slices.Contains(above, st.ID) || len(above) == maxFolderDepth {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := l.list(d, name)
	if skip(err) {
		return nil
	}
	if err != nil {
		return err
	}
	s.folders = append(s.folders, sighting{ref: Ref{Dir: d, Name: name}, stat: st})
	above = append(above[:len(above):len(above)], st.ID)
	files := sight(d, name, list)
	for _, e := range list {
		if !e.IsDir {
			s.images, files = append(s.images, files[0]), files[1:]
		} else if err := l.walk(d, path.Join(name, e.Name), above, s); err != nil {
			return err
		}
	}
	return nil
}

// skip errors concern one name alone: it went away, or is not for us.
func skip(err error) bool {
	return absent(err) || errors.Is(err, iofs.ErrPermission) || errors.Is(err, ErrForbidden)
}

// Children are the images whose parent, by the rules of resolution, is this
// very file with the id that they record. Of a set they are its leaf's.
func (l *Library) Children(r Ref) ([]Ref, error) { return (&resolver{lib: l}).childrenOf(r) }

func (r *resolver) childrenOf(ref Ref) ([]Ref, error) {
	found, err := r.lib.Inspect(ref)
	if err != nil {
		return nil, err
	}
	if found.Err != nil {
		return nil, nil // no link leads to what cannot be read
	}
	return r.children(found.itself())
}

func (r *resolver) children(of *Found) ([]Ref, error) {
	if err := r.scan(); err != nil {
		return nil, err
	}
	var list []Ref
	for _, f := range r.index {
		if f.Set != nil || f.Err != nil || f.Info.Parent == nil || !slices.Contains(f.Info.Parent.IDs, of.Info.LinkID) {
			continue
		}
		got, _, err := r.resolve(child{found: f, below: []FileID{f.Stat.ID}})
		if err == nil && got.found.Stat.ID == of.Stat.ID {
			list = append(list, f.Ref)
		}
	}
	return list, nil
}

// owner is a set of the folders that owns this very file, nil without one.
func (r *resolver) owner(file FileID) (*Found, error) {
	if err := r.scan(); err != nil {
		return nil, err
	}
	for _, f := range r.index {
		if f.Set == nil {
			continue
		}
		if f.itself().Stat.ID == file {
			return f, nil
		}
		for _, own := range f.Set.Files {
			st, err := f.Ref.Dir.Stat(f.Beside(own.Name).Name)
			if err == nil && st.ID == file {
				return f, nil
			}
		}
	}
	return nil, nil
}

// Beside is a file in the folder of an image.
func (f *Found) Beside(name string) Ref { return beside(f.Ref, name) }

// unused tells whether a file is a set's own, and nothing that it shows: made for a
// change that was broken off, or left to be removed.
func (f *Found) unused(r Ref) bool {
	name := path.Base(r.Name)
	return f.Beside(name).Path() == r.Path() && f.Set.Owns(name) && !f.Set.Refers(name)
}
