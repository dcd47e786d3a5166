package ops

import (
	"path"
	"sync"
	"sync/atomic"
)

// FolderStater is a [Dir] that looks at many names of one directory at a time, for
// less than a Stat of each.
type FolderStater interface {
	// StatIn is Stat of plain names in directory name, in their order, each with its
	// own error.
	StatIn(name string, plain []string) ([]FileStat, []error)
}

// sighting is an image that a scan came by.
type sighting struct {
	ref   Ref
	stat  FileStat
	found *Found
	err   error // why there is no stat, or no found
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
