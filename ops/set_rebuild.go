package ops

import (
	"errors"
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
// no other is made from is the active one, and what it was made from is snapshots,
// of new ids and without labels. Ids, labels and references are lost. After a crash
// there is
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
	set, err := r.setOfDisks()
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

// setOfDisks is the set that the disks beside its file, by their names, amount to.
func (r *Request) setOfDisks() (*Set, error) {
	folder := folderOf(r.Image)
	prefix := strings.TrimSuffix(path.Base(r.Image.Name), path.Ext(r.Image.Name)) + "_"
	list, err := r.Library.list(folder.Dir, folder.Name)
	if err != nil {
		return nil, err
	}
	disks, parents := map[string]*Found{}, map[FileID]bool{}
	res := &resolver{lib: r.Library}
	for _, e := range list {
		if e.IsDir || !strings.HasPrefix(e.Name, prefix) || extension(e.Name) != ".avhdx" {
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
		if found.Info.Parent == nil {
			continue
		}
		got, _, err := res.resolve(child{found: found, below: []FileID{found.Stat.ID}})
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
	switch len(tips) {
	case 0:
		return nil, Errorf(ErrParentMissing, StatusParentNotFound, "%s: no disk %s….avhdx beside it", r.Image.Path(), prefix)
	case 1:
		return r.setWithLeaf(tips[0], disks)
	}
	return nil, Errorf(ErrUsage, StatusWrongState, "%s: each of %s may be its active disk: move all but one to another folder first",
		r.Image.Path(), quoteList(tips))
}

func (r *Request) setWithLeaf(leaf string, disks map[string]*Found) (*Set, error) {
	links, err := r.Library.ChainOf(disks[leaf].Ref)
	if err != nil {
		return nil, err
	}
	if err := links[len(links)-1].Err; err != nil {
		return nil, err
	}
	s := &Set{Leaf: leaf, Files: []SetFile{{Name: leaf, DiskID: disks[leaf].Info.DiskID}}}
	for _, l := range links[1:] {
		name := path.Base(l.Ref.Name)
		d := disks[name]
		if d == nil || d.Stat.ID != l.Found.Stat.ID {
			break // from here on it is not the set's
		}
		n := SetSnapshot{ID: NewGUID(), Type: SetSnapshotVM, Path: name, Created: d.Stat.Mtime.UTC().Truncate(time.Millisecond)}
		if k := len(s.Snapshots); k > 0 {
			s.Snapshots[k-1].Parent = n.ID
		}
		s.Snapshots = append(s.Snapshots, n)
		s.Files = append(s.Files, SetFile{Name: name, DiskID: d.Info.DiskID, LinkID: d.Info.LinkID})
	}
	slices.Reverse(s.Snapshots)
	return s, nil
}
