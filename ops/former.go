package ops

import (
	"errors"
	"path"
	"slices"
)

// formerName is the name of an image that became another one while it was open:
// its handles go on there, and until the last of them is closed whoever opens the
// name gets the same.
type formerName struct {
	engine *Engine
	ref    Ref
	stat   FileStat // of the file that had the name
	file   File     // which stays open: no other file may get its identity while it counts
}

// errMovedOn is what an engine answers whose handles went over to another one
// after it was found.
var errMovedOn = errors.New("has become another image")

// moveOn makes the handles of from, an operation's aside, handles of to, with the
// chain that they share. Whoever does I/O through the chain does it on to already.
// It tells how many there were. file is that of from; moveOn owns it. Without one
// the name of from is not kept: its handles are those of a set, which has another
// disk now.
func (l *Library) moveOn(from, to *Engine, file File, stat FileStat) (int, error) {
	moved, old := l.moveHandles(from, to, file, stat)
	var err error
	if old != nil { // of handles that were closed long ago, while other images read through it
		err = l.releaseParents(old.layers()[1:])
	}
	if moved == 0 && file != nil {
		return 0, errors.Join(err, file.Close())
	}
	return moved, err
}

func (l *Library) moveHandles(from, to *Engine, file File, stat FileStat) (moved int, old *Chain) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range from.use.handles {
		if h.terms != nil {
			continue
		}
		h.countLocked(-1)
		h.at.Store(to)
		h.former = file != nil
		h.countLocked(1)
		moved++
	}
	from.use.refs -= moved
	to.use.refs += moved
	from.use.movedOn = true
	old, to.use.chain, from.use.chain = to.use.chain, from.use.chain, nil
	to.use.left = false
	if moved > 0 && file != nil {
		l.mu.former[from.ref.Path()] = &formerName{engine: to, ref: from.ref, stat: stat, file: file}
	}
	l.freedLocked()
	return moved, old
}

// countFormerLocked counts a handle by a former name; the last one ends the name.
func (l *Library) countFormerLocked(e *Engine, by int) {
	if e.use.former += by; e.use.former > 0 {
		return
	}
	for name, f := range l.mu.former {
		if f.engine == e {
			delete(l.mu.former, name)
			l.mu.ended = append(l.mu.ended, f.file)
		}
	}
}

// closeFormer closes the files of former names that have ended.
func (l *Library) closeFormer() error {
	l.mu.Lock()
	files := l.mu.ended
	l.mu.ended = nil
	l.mu.Unlock()
	var err error
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// formerOf is what an image of this name became, nil for a name that is only
// itself.
func (l *Library) formerOf(r Ref) *formerName {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.mu.former) == 0 {
		return nil
	}
	return l.mu.former[r.Path()]
}

// acquireFormer takes a part in the engine that a former name leads to; nil for
// other names.
func (l *Library) acquireFormer(r Ref) *Engine {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.mu.former[r.Path()]
	if f == nil {
		return nil
	}
	f.engine.use.refs++
	return f.engine
}

// MergedInto is the image that another one of this name was merged into while it
// was open, which it still is; false for other names.
func (l *Library) MergedInto(r Ref) (Ref, bool) {
	f := l.formerOf(r)
	if f == nil {
		return Ref{}, false
	}
	return f.engine.ref, true
}

// Stat is of the file of a name; of a former name as its file was.
func (l *Library) Stat(r Ref) (FileStat, error) {
	if f := l.formerOf(r); f != nil {
		return f.stat, nil
	}
	return r.Dir.Stat(r.Name)
}

// withFormer adds the former names in a folder to a list of it.
func (l *Library) withFormer(d Dir, name string, list []DirEntry) []DirEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.mu.former {
		base := path.Base(f.ref.Name)
		if folderOf(f.ref).Path() != d.Path(name) || slices.ContainsFunc(list, func(e DirEntry) bool { return e.Name == base }) {
			continue
		}
		list = append(list, DirEntry{Name: base, IsRegular: true})
	}
	return list
}

// inspectFormer is what a former name shows: the image that it became, as the file
// that it was.
func (l *Library) inspectFormer(r Ref) *Found {
	f := l.formerOf(r)
	if f == nil {
		return nil
	}
	found := &Found{Ref: r, Stat: f.stat, Format: f.engine.format, Leaf: r}
	found.Info, found.Size, found.Err = f.engine.describe()
	return found
}
