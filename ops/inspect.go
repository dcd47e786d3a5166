package ops

import (
	"container/list"
	"errors"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// inspectBudget bounds what is remembered of images that are not open, in
	// bytes as weighed by weigh: some 40,000 ordinary ones.
	inspectBudget = 32 << 20
	// racyTime is how old a change must be before what was read after it is
	// remembered: times of files move in steps of the kernel's clock, so a
	// change within one step of the last does not show in them.
	racyTime = 20 * time.Millisecond
)

// Inspect looks at one image, without locks, without its parents, writing
// nothing. Answers are cached by identity, size and times of the file.
// A file that cannot be opened is a Found with Err; the error result is only
// for a name that is not there or not a regular file.
func (l *Library) Inspect(r Ref) (*Found, error) {
	if found := l.inspectFormer(r); found != nil {
		return found, nil
	}
	return l.inspect(r, Read, true)
}

// inspect takes NoFollow for names that were read out of an image, and sets
// false where only a disk will do: a set that leads to a set ends there.
func (l *Library) inspect(r Ref, a Access, sets bool) (*Found, error) {
	if a&NoFollow == 0 {
		st, err := r.Dir.Stat(r.Name)
		if err != nil {
			return nil, err
		}
		if found := l.known(r, st); found != nil {
			return found, nil
		}
	}
	return l.inspectFile(r, a, sets)
}

// inspectFile is inspect of a file of which nothing is known.
func (l *Library) inspectFile(r Ref, a Access, sets bool) (*Found, error) {
	f, err := r.Dir.Open(r.Name, a)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if found := l.known(r, st); found != nil {
		return found, f.Close()
	}
	found := &Found{Ref: r, Stat: st, Leaf: r}
	l.guard("inspect "+r.Path(), &found.Err, func() { l.look(f, found, sets) })
	if time.Since(st.Ctime) > racyTime && lasting(found) {
		l.inspected.put(cacheKey(st, r.Name), found)
	}
	return found, nil
}

// lasting tells whether an answer follows from the bytes of this file alone: a
// set's does not, nor does a failure of the host.
func lasting(f *Found) bool {
	var errno syscall.Errno
	isSet := f.Format != nil && f.Format.Set != nil
	return !isSet && (f.Err == nil || errors.Is(f.Err, ErrCorrupt) && !errors.As(f.Err, &errno))
}

// known answers for a file that is open for writing here, whose file is not to
// be read beside its writer, and for one that was looked at before.
func (l *Library) known(r Ref, st FileStat) *Found {
	if e := l.writing(st.ID); e != nil {
		found := &Found{Ref: r, Stat: st, Leaf: r, Format: e.format}
		if found.Info, found.Size, found.Err = e.describe(); found.Err == nil {
			return found
		}
	}
	return l.inspected.get(cacheKey(st, r.Name), r)
}

// look reads f into found and closes it.
func (l *Library) look(f File, found *Found, sets bool) {
	name := found.Ref.Name
	format, err := l.probe(f, name)
	if err != nil {
		found.Err = errors.Join(err, f.Close())
		return
	}
	found.Format = format
	if format.Set != nil && !sets {
		found.Err = errors.Join(Corruptf(StatusWrongType, "%s: a set where a disk is needed", found.Ref.Path()), f.Close())
		return
	}
	if format.Set != nil {
		set, err := format.Set(f)
		found.Err = errors.Join(err, f.Close())
		if found.Err == nil {
			l.lookLeaf(found, &set)
		}
		return
	}
	layer, err := format.Open(f, OpenOptions{Ext: extension(name), Cache: NewCache(layerCache)})
	if err != nil {
		found.Err = err
		return
	}
	found.Info, found.Size = layer.Info(), layer.Size()
	found.Info.Anomalies = withOddName(found.Info.Anomalies, format, name)
	found.Err = layer.Close()
}

// lookLeaf fills in what a set is: its leaf, seen through it.
func (l *Library) lookLeaf(found *Found, set *Set) {
	found.Set = set
	leaf, err := l.leafOf(found.Ref, set)
	if err != nil {
		found.Err = err
		return
	}
	found.Leaf = leaf
	in, err := l.inspect(leaf, Read|NoFollow, false)
	if err != nil {
		found.Err = Wrapf(err, ErrParentMissing, StatusParentNotFound, "active disk %q of set %s", set.Leaf, found.Ref.Path())
		return
	}
	found.disk = in
	found.Info, found.Size, found.Err = in.Info, in.Size, in.Err
	found.Info.Anomalies = slices.Concat(set.Anomalies, in.Info.Anomalies)
	switch {
	case in.Err != nil:
	case in.Format.Number != FormatVHDX:
		found.Err = Corruptf(StatusWrongType, "active disk %q of set %s is a %s", set.Leaf, found.Ref.Path(), in.Format.Name)
	default:
		found.Err = set.judge(leaf, set.Leaf, in.Info)
	}
	if found.Info.ReadOnly == "" {
		found.Info.ReadOnly = set.ReadOnly
	}
}

// leafOf names a set's leaf: a plain name in the set's own directory, in
// another case where it is not there as written.
func (l *Library) leafOf(r Ref, set *Set) (Ref, error) {
	p, err := parseRecorded(set.Leaf)
	if err != nil {
		return Ref{}, err
	}
	if p.abs || p.up > 0 || len(p.parts) != 1 {
		return Ref{}, Corruptf(StatusNotVirtualDisk, "set %s: active disk %q is not a name in its own folder", r.Path(), set.Leaf)
	}
	dir := path.Dir(r.Name)
	written := Ref{Dir: r.Dir, Name: path.Join(dir, p.base())}
	if _, err := r.Dir.Stat(written.Name); err == nil {
		return written, nil
	}
	if names := new(folder).find(r.Dir, dir, p.parts); len(names) == 1 {
		return Ref{Dir: r.Dir, Name: names[0]}, nil
	}
	return written, nil
}

// probe finds the format of a file by its content.
func (l *Library) probe(f File, name string) (*Format, error) {
	ext := extension(name)
	for _, format := range l.opts.Formats {
		is, err := format.Probe(f, ext)
		if err != nil {
			return nil, err
		}
		if is {
			return format, nil
		}
	}
	return nil, Corruptf(StatusFormatUnknown, "%s: no format knows this file", path.Base(name))
}

// withOddName notes an extension that belongs to another format.
func withOddName(list []Anomaly, f *Format, name string) []Anomaly {
	ext := extension(name)
	for _, e := range f.Extensions {
		if e == ext {
			return list
		}
	}
	return append(list[:len(list):len(list)], Anomaly{
		Name: "image.extension", Severity: Note, Where: "file name",
		Text: "a " + f.Name + " image with the extension " + quoteShort(ext),
	})
}

// inspectCache remembers what images are by what the host says of their files.
type inspectCache struct {
	mu struct {
		sync.Mutex
		budget, used int64
		lru          list.List // of *inspectEntry, most recent first
		entries      map[inspectKey]*list.Element
	}
}

// inspectKey changes with every change of a file that the host can see. The
// extension is in it because it breaks ties between formats.
type inspectKey struct {
	id           FileID
	size         int64
	mtime, ctime int64
	ext          string
}

type inspectEntry struct {
	key    inspectKey
	found  *Found
	weight int64
}

func cacheKey(st FileStat, name string) inspectKey {
	return inspectKey{st.ID, st.Size, st.Mtime.UnixNano(), st.Ctime.UnixNano(), extension(name)}
}

func newInspectCache(budget int64) *inspectCache {
	c := &inspectCache{}
	c.mu.budget = budget
	c.mu.entries = map[inspectKey]*list.Element{}
	return c
}

// get answers for a file by whatever name it has now.
func (c *inspectCache) get(k inspectKey, r Ref) *Found {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.mu.entries[k]
	if e == nil {
		return nil
	}
	c.mu.lru.MoveToFront(e)
	found := e.Value.(*inspectEntry).found
	if found.Ref.Name == r.Name && found.Ref.Path() == r.Path() {
		return found
	}
	other := *found
	other.Ref, other.Leaf = r, r
	return &other
}

// put drops the least recently used beyond the budget. What one image says may
// take up a hundredth of it.
func (c *inspectCache) put(k inspectKey, f *Found) {
	weight := weigh(f)
	c.mu.Lock()
	defer c.mu.Unlock()
	if weight > c.mu.budget/100 || c.mu.entries[k] != nil {
		return
	}
	c.mu.entries[k] = c.mu.lru.PushFront(&inspectEntry{k, f, weight})
	for c.mu.used += weight; c.mu.used > c.mu.budget; {
		e := c.mu.lru.Back()
		old := c.mu.lru.Remove(e).(*inspectEntry)
		delete(c.mu.entries, old.key)
		c.mu.used -= old.weight
	}
}

// weigh is about what a Found costs in memory, in bytes.
func weigh(f *Found) int64 {
	n := 800 + len(f.Ref.Name) + len(f.Info.Creator) + len(f.Info.Label)
	if f.Info.Parent != nil {
		n += 100 + 16*len(f.Info.Parent.IDs)
		for _, p := range f.Info.Parent.Paths {
			n += 32 + len(p.Path)
		}
	}
	for _, a := range f.Info.Anomalies {
		n += 64 + len(a.Where) + len(a.Text)
	}
	if f.Err != nil {
		n += 100 + len(f.Err.Error())
	}
	return int64(n)
}

func quoteShort(s string) string {
	if len(s) > 16 {
		s = s[:16] + "…"
	}
	return `"` + strings.ToValidUTF8(s, "?") + `"`
}
