package ops

import (
	"errors"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// damagedSet tells whether an image is a set whose file cannot be relied on. One that
// holds what is not known here is not: it is another's.
func (r *Request) damagedSet(found *Found) bool {
	format, err := r.Library.formatFor(r.Image.Name, "")
	if err != nil || format == nil || format.CreateSet == nil {
		return false
	}
	if found.Set == nil {
		return errors.Is(found.Err, ErrCorrupt)
	}
	return slices.ContainsFunc(found.Set.Anomalies, func(a Anomaly) bool { return a.Name == "vhds.body" })
}

// rebuildSet makes the file of a set anew from the links of its disks: the one that
// no other is made from is the active one, and the others are snapshots, of new ids
// and without labels. Ids, labels and references are lost. After a crash there is
//
//	rename; sync    the damaged file under its own name or another
//	make the set    that, and none or the new one; convert-to-set of the active disk makes one, too
func (r *Request) rebuildSet() (_ *Anomaly, err error) {
	f, err := r.Image.Dir.Open(r.Image.Name, Write)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Lock(true); err != nil {
		return nil, err
	}
	set, err := r.setOfDisks(r.Image, nil)
	if err != nil {
		return nil, err
	}
	aside := Ref{Dir: r.Image.Dir, Name: r.Image.Name + ".damaged-" + NewGUID().String()}
	mended := &Anomaly{Name: "image.open", Severity: Broken, Where: "set file",
		Text: "made anew from its disks, active " + quoteShort(set.Leaf) + "; the damaged file is " + path.Base(aside.Name)}
	if err := r.note("makes the set anew: active disk %s, %d snapshots; the damaged file becomes %s", set.Leaf, len(set.Snapshots), path.Base(aside.Name)); err != nil {
		return nil, err
	}
	err = r.Image.Dir.Rename(r.Image.Name, aside.Name)
	if err == nil {
		err = r.Image.Dir.Sync(path.Dir(r.Image.Name), "set.rebuild")
	}
	if err != nil {
		return nil, err
	}
	if err := r.Library.makeSet(r.Image, *set); err != nil {
		return nil, errors.Join(err, r.Image.Dir.Rename(aside.Name, r.Image.Name))
	}
	return mended, nil
}

// remakeSet makes the file of a set that is gone from its disks, as rebuildSet does.
// It is there whole, or not.
func (r *Request) remakeSet() (Fields, error) {
	for _, a := range createArgs {
		if r.Args.Has(a.Name) && !slices.Contains([]string{argPath.Name, argRebuild.Name, argLeaf.Name}, a.Name) {
			return nil, Errorf(ErrUsage, 0, "rebuild=true with %s: what a set is made of says everything but its path and leaf", a.Name)
		}
	}
	ref, err := r.place("path", r.Args.Text(argPath.Name))
	if err != nil {
		return nil, err
	}
	format, err := r.Library.formatFor(ref.Name, "")
	if err != nil {
		return nil, err
	}
	if format == nil || format.CreateSet == nil {
		return nil, Errorf(ErrUsage, 0, "path=%q: rebuild=true makes a set, a file in .vhds", ref.Name)
	}
	if err := (&target{lib: r.Library, ref: ref}).nameIsFree(); err != nil {
		return nil, err
	}
	var leaf *Ref
	if r.Args.Has(argLeaf.Name) {
		named, err := r.place("leaf", r.Args.Text(argLeaf.Name))
		if err != nil {
			return nil, err
		}
		leaf = &named
	}
	set, err := r.setOfDisks(ref, leaf)
	if err != nil {
		return nil, err
	}
	if r.Dry {
		return Plan{Makes: []string{ref.Path()}, Free: math.MaxInt64}.Fields(), nil
	}
	r.Begin(0)
	snapshots := []string{}
	for _, n := range set.Snapshots {
		snapshots = append(snapshots, beside(ref, n.Path).Path())
	}
	return Fields{{"Path", ref.Path()}, {"ActivePath", beside(ref, set.Leaf).Path()}, {"SnapshotPaths", snapshots}}, r.Library.makeSet(ref, *set)
}

// setOfDisks is the set that the disks beside its file, by their names, amount to.
// All of them have to have their parents, by the ids that they record. A disk of
// another set, and one that a merge left half done, is none to make a set of. leaf is
// the active disk; nil: the only one that no other is made from.
func (r *Request) setOfDisks(set Ref, leaf *Ref) (*Set, error) {
	disks, err := r.disksBeside(set)
	if err != nil {
		return nil, err
	}
	parents := map[FileID]bool{}
	res := &resolver{lib: r.Library}
	for _, d := range disks {
		if err := r.mayJoin(res, set, d); err != nil {
			return nil, err
		}
		if d.Info.Parent == nil {
			continue
		}
		got, _, err := res.resolve(child{found: d, below: []FileID{d.Stat.ID}})
		if err != nil {
			return nil, err
		}
		parents[got.found.Stat.ID] = true
	}
	var tips []string
	for name, d := range disks {
		if !parents[d.Stat.ID] {
			tips = append(tips, name)
		}
	}
	slices.Sort(tips)
	at, err := activeOf(set, tips, leaf)
	if err != nil {
		return nil, err
	}
	tips[0], tips[at] = tips[at], tips[0]
	return r.setWithTips(tips, disks)
}

// activeOf is the index of the active disk among those that no other is made from.
func activeOf(set Ref, tips []string, leaf *Ref) (int, error) {
	switch {
	case len(tips) == 0:
		return 0, Errorf(ErrParentMissing, StatusParentNotFound, "%s: no disk %sID.avhdx beside it", set.Path(), diskPrefix(set.Name))
	case leaf == nil && len(tips) > 1:
		return 0, Errorf(ErrUsage, StatusWrongState, "%s: each of %s may be its active disk: where the set file is gone, create rebuild=true leaf=FILE says which",
			set.Path(), quoteList(tips))
	case leaf == nil:
		return 0, nil
	}
	at := slices.IndexFunc(tips, func(name string) bool { return beside(set, name).Path() == leaf.Path() })
	if at < 0 {
		return 0, Errorf(ErrUsage, StatusWrongState, "leaf=%q: the active disk of %s has to be one that no other is made from: %s", leaf.Name, set.Path(), quoteList(tips))
	}
	return at, nil
}

// disksBeside are the disks with names of a set's, by these names.
func (r *Request) disksBeside(set Ref) (map[string]*Found, error) {
	folder := folderOf(set)
	list, err := r.Library.list(folder.Dir, folder.Name)
	if err != nil {
		return nil, err
	}
	disks := map[string]*Found{}
	for _, e := range list {
		id, named := strings.CutPrefix(e.Name, diskPrefix(set.Name))
		if _, err := ParseGUID(strings.TrimSuffix(id, path.Ext(id))); e.IsDir || !named || err != nil || extension(id) != ".avhdx" {
			continue
		}
		found, err := r.Library.inspect(Ref{Dir: folder.Dir, Name: path.Join(folder.Name, e.Name)}, Read|NoFollow, false)
		if err == nil {
			err = found.Err
		}
		if err != nil {
			return nil, err
		}
		disks[e.Name] = found
	}
	return disks, nil
}

// mayJoin says why a disk cannot be one of a set that is made anew.
func (r *Request) mayJoin(res *resolver, set Ref, d *Found) error {
	p, err := r.Library.mergeOf(d.Ref, d.Stat.ID, d.Info.LinkID)
	if err == nil && p != nil {
		err = p.refusal(d.Ref.Path())
	}
	if err != nil {
		return err
	}
	owner, err := res.owner(d.Stat.ID)
	if err == nil && owner != nil && owner.Ref.Path() != set.Path() {
		err = Errorf(errors.ErrUnsupported, StatusOwned, "%s belongs to the set %s", d.Ref.Path(), owner.Ref.Path())
	}
	return err
}

// setWithTips is the set of the disks that tips are made from. The first of tips is
// its active disk; the others are snapshots, as an apply keeps them.
func (r *Request) setWithTips(tips []string, disks map[string]*Found) (*Set, error) {
	s := &Set{Leaf: tips[0], Files: []SetFile{{Name: tips[0], DiskID: disks[tips[0]].Info.DiskID}}}
	for _, tip := range tips {
		links, err := r.Library.ChainOf(disks[tip].Ref)
		if err != nil {
			return nil, err
		}
		if err := links[len(links)-1].Err; err != nil {
			return nil, err
		}
		var below GUID // the snapshot that the next disk is made from
		for i, l := range slices.Backward(links) {
			name := path.Base(l.Ref.Name)
			d := disks[name]
			if name == s.Leaf || d == nil || d.Stat.ID != l.Found.Stat.ID {
				continue // what is not beside the set's file is not the set's
			}
			if id := s.above([]string{name}); !id.IsZero() {
				below = id
				continue
			}
			n := SetSnapshot{ID: NewGUID(), Type: SetSnapshotVM, Path: name, Parent: below, Created: d.Stat.Mtime.UTC().Truncate(time.Millisecond)}
			if i == 0 {
				n.Type = SetSnapshotWriteable
			}
			below = n.ID
			s.Snapshots = append(s.Snapshots, n)
			s.Files = append(s.Files, SetFile{Name: name, DiskID: d.Info.DiskID, LinkID: d.Info.LinkID})
		}
	}
	return s, nil
}
