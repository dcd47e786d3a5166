package ops

import (
	"path"
	"sync"
	"sync/atomic"
	"time"
)

// FolderStater is a [Dir] that looks at many names of one directory at a time, for
// less than a Stat of each.
type FolderStater interface {
	// StatIn is Stat of plain names in directory name, in their order, each with its
	// own error.
	StatIn(name string, plain []string) ([]FileStat, []error)
}

// sighting is an image that a scan came by, or a folder.
type sighting struct {
	ref   Ref
	stat  FileStat
	found *Found // of an image
	err   error  // why there is no stat, or no found
}

// survey is what a scan came by.
type survey struct {
	images  []sighting
	folders []sighting // without those that could not be read
}

// sight looks at the files among the names of a folder, in their order.
func sight(d Dir, folder string, list []DirEntry) []sighting {
	var files []sighting
	var plain []string
	for _, e := range list {
		if !e.IsDir {
			files = append(files, sighting{ref: Ref{Dir: d, Name: path.Join(folder, e.Name)}})
			plain = append(plain, e.Name)
		}
	}
	if many, ok := d.(FolderStater); ok && len(files) > 1 {
		stats, errs := many.StatIn(folder, plain)
		for i := range files {
			files[i].stat, files[i].err = stats[i], errs[i]
		}
		return files
	}
	for i := range files {
		files[i].stat, files[i].err = d.Stat(files[i].ref.Name)
	}
	return files
}

// Images that were not looked at before are opened one after the other while they are
// few, else by several goroutines: a host that has to fetch the headers takes its time
// for each. What each may hold of hostile images is bounded; see [Format].
const (
	fewImages = 32
	scanners  = 4
)

// inspectAll looks at every image that there is a stat of.
func (l *Library) inspectAll(all []sighting) {
	var fresh []*sighting
	for i := range all {
		s := &all[i]
		if s.err != nil {
			continue
		}
		if s.found = l.known(s.ref, s.stat); s.found == nil {
			fresh = append(fresh, s)
		}
	}
	n := 1
	if len(fresh) > fewImages {
		n = scanners
	}
	var next atomic.Int64
	var ended sync.WaitGroup
	for range n {
		ended.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(fresh)); i = next.Add(1) - 1 {
				fresh[i].found, fresh[i].err = l.inspectFile(fresh[i].ref, Read, true)
			}
		})
	}
	ended.Wait()
}

// recently is how long a scan may answer further questions of people: who lists all
// images of a folder asks for the children of each.
const recently = 500 * time.Millisecond

// recentScan is a scan that was made a moment ago. It is not changed any more.
type recentScan struct {
	at      time.Time
	changes int64 // Library.changes before it
	resolver
}

// ChildrenShown is [Library.Children] for people: it may rest on a scan of half a second
// ago, if no folder was changed since, nor an image by an operation of this library. What
// another program changed in place meanwhile may be missed.
func (l *Library) ChildrenShown(r Ref) ([]Ref, error) {
	if s := l.recent.Load(); s != nil && s.stands(l) {
		res := &resolver{lib: l, scanned: true, index: s.index, byLink: s.byLink, indexed: s.indexed}
		return res.childrenOf(r)
	}
	s := &recentScan{at: time.Now(), changes: l.changes.Load(), resolver: resolver{lib: l}}
	list, err := s.childrenOf(r)
	if err == nil && s.scanned {
		l.recent.Store(s)
	}
	return list, err
}

// stands tells whether a scan may still be relied on. A folder that was changed just
// before it was read may have been changed once more within the same tick of its clock.
func (s *recentScan) stands(l *Library) bool {
	if time.Since(s.at) > recently || s.changes != l.changes.Load() {
		return false
	}
	for i := range s.folders {
		f := &s.folders[i]
		now, err := f.ref.Dir.Stat(f.ref.Name)
		if err != nil || now.ID != f.stat.ID || !now.Mtime.Equal(f.stat.Mtime) || !now.Ctime.Equal(f.stat.Ctime) || s.at.Sub(now.Ctime) < racyTime {
			return false
		}
	}
	return true
}
