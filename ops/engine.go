package ops

import (
	"errors"
	iofs "io/fs"
	"sync"
	"sync/atomic"
	"time"
)

// Engine is one open host file: the one instance of it in a daemon, whatever
// names and chains lead to it. It opens for reading and is upgraded in place by
// its first writer; it stays writable until the last user is gone.
type Engine struct {
	lib    *Library
	id     FileID
	ref    Ref // the name that opened it
	format *Format
	file   File     // holds the locks until the engine is closed
	stat   FileStat // when it was opened for reading; guarded by mu
	sector int64    // logical sector size in bytes

	opened chan struct{} // closed when err is decided
	err    error         // why opening failed
	gone   chan struct{} // closed when the locks are given back

	use struct { // guarded by Library.mu
		refs       int    // chains and handles; 0: closing
		named      int    // handles by a name of the file itself
		writers    int    // handles for writing, or about to be
		admitted   int    // of these that were found to be allowed
		upgraded   bool   // there was a writer: the file may lag behind
		setWriters int    // of these through a set
		children   int    // chains that read through it
		still      int    // operations that keep writers out
		operation  string // the one that works on it, "" without
		alone      bool   // that operation keeps everybody out
		handles    map[*Handle]bool
		former     int       // of these by the name of an image that is this one now
		movedOn    bool      // its handles went over to another engine
		left       bool      // it was the active disk of a set, and is not any more
		merge      *mergeUse // what it is in a merge under way, nil in none
		pin        *pin      // of the attachment, nil without
		devices    int       // handles of block devices over raw
		chain      *Chain    // of the handles, nil before the first
	}
	mu struct {
		sync.RWMutex
		layer  Layer
		writer Writer      // layer as a Writer once there was a writer
		first  *firstWrite // its file
		closed bool
	}
	visits  atomic.Int64 // how often somebody came to write, or to read through it
	flushes flushes
	tracked atomic.Pointer[tracked]  // while it is open for writing; nil: changes are not tracked
	written atomic.Pointer[writeLog] // who copies the image wants to know of writes; nil: nobody
	poison  atomic.Pointer[error]    // why writes and flushes are refused
	dead    atomic.Pointer[error]    // why everything is refused: it panicked
}

// heldFile is the file that an engine keeps: a layer that closes must not give
// the locks back.
type heldFile struct{ File }

func (heldFile) Close() error { return nil }

// errIsSet is what an engine answers to a file that only names another.
var errIsSet = errors.New("is a set")

// acquire opens a file, or takes one more part in its engine. The caller gives
// it back with release.
func (l *Library) acquire(r Ref, a Access) (*Engine, error) {
	f, err := r.Dir.Open(r.Name, a&NoFollow)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	e, isNew, err := l.enter(r, st.ID)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if isNew {
		e.err = e.open(f)
		if e.err != nil {
			l.mu.Lock()
			delete(l.mu.engines, e.id)
			l.mu.Unlock()
			close(e.gone)
		}
		close(e.opened)
		return e, e.err
	}
	<-e.opened
	st, err = f.Stat() // again: the engine may have seen what others wrote since
	if err := errors.Join(e.err, f.Close()); err != nil {
		return nil, err
	}
	if err == nil {
		err = e.unchanged(st)
	}
	if err != nil {
		return nil, errors.Join(err, l.release(e))
	}
	return e, nil
}

// enter finds the engine of a file or puts a new one there for the caller to
// open. One that is closing is waited for: its locks would be in the way.
func (l *Library) enter(r Ref, id FileID) (e *Engine, isNew bool, err error) {
	for {
		l.mu.Lock()
		if l.mu.closed {
			l.mu.Unlock()
			return nil, false, iofs.ErrClosed
		}
		e := l.mu.engines[id]
		switch {
		case e == nil:
			e = &Engine{lib: l, id: id, ref: r, opened: make(chan struct{}), gone: make(chan struct{})}
			e.use.refs = 1
			l.mu.engines[id] = e
			l.mu.Unlock()
			return e, true, nil
		case e.use.refs > 0:
			e.use.refs++
			l.mu.Unlock()
			return e, false, nil
		}
		l.mu.Unlock()
		<-e.gone
	}
}

// open locks f and reads what it is. It owns f.
func (e *Engine) open(f File) error {
	if err := e.openLayer(f); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

func (e *Engine) openLayer(f File) error {
	if !e.lib.unlocked {
		if err := f.Lock(false); err != nil {
			if format, _ := e.lib.probe(f, e.ref.Name); errors.Is(err, ErrBusy) && format != nil && format.Set != nil {
				return errIsSet // an operation has it: that concerns the disk as far as it says so itself
			}
			return err
		}
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var format *Format
	e.lib.guard("probe "+e.ref.Path(), &err, func() { format, err = e.lib.probe(f, e.ref.Name) })
	if err != nil {
		return err
	}
	if format.Set != nil {
		return errIsSet
	}
	e.file, e.stat, e.format = f, st, format
	layer, err := e.newLayer(heldFile{f}, OpenOptions{})
	if err != nil {
		return err
	}
	e.mu.layer = layer
	e.sector = max(int64(layer.Info().LogicalSector), 1)
	return nil
}

// newLayer owns f.
func (e *Engine) newLayer(f File, o OpenOptions) (layer Layer, err error) {
	o.Ext, o.Cache = extension(e.ref.Name), e.lib.opts.Cache
	e.lib.guard("open "+e.ref.Path(), &err, func() { layer, err = e.format.Open(f, o) })
	return layer, err
}

// release gives one part in the engine back; the last one closes it and what it
// reads through. The error is that of a write session that could not end.
func (l *Library) release(e *Engine) error {
	l.mu.Lock()
	e.use.refs--
	last, chain := e.use.refs == 0, e.use.chain
	l.freedLocked() // who waits to be alone looks at the count
	l.mu.Unlock()
	if !last {
		return nil
	}
	err := e.close()
	l.mu.Lock()
	delete(l.mu.engines, e.id)
	l.mu.Unlock()
	close(e.gone)
	if chain != nil {
		err = errors.Join(err, l.releaseParents(chain.layers()[1:]))
	}
	return err
}

func (l *Library) releaseParents(parents []*Engine) error {
	var err error
	for _, p := range parents {
		l.mu.Lock()
		p.use.children--
		l.freedLocked()
		l.mu.Unlock()
		err = errors.Join(err, l.release(p))
	}
	return err
}

// close waits for calls under way, ends a write session and gives the locks
// back. A layer that panicked is left alone: its own locks may be held for ever.
func (e *Engine) close() (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.closed {
		return nil
	}
	e.mu.closed = true
	if e.dead.Load() == nil {
		e.lib.guard("close "+e.ref.Path(), &err, func() { err = e.closeLayerLocked() })
	}
	return errors.Join(err, e.file.Close())
}

// Close closes every engine. Handles that are still open answer fs.ErrClosed.
func (l *Library) Close() error {
	l.mu.Lock()
	l.mu.closed = true
	for _, f := range l.mu.former {
		l.mu.ended = append(l.mu.ended, f.file)
	}
	clear(l.mu.former)
	var open []*Engine
	for _, e := range l.mu.engines {
		open = append(open, e)
	}
	l.mu.Unlock()
	errs := []error{l.closeFormer()}
	for _, e := range open {
		if <-e.opened; e.err == nil {
			errs = append(errs, e.close())
		}
	}
	return errors.Join(errs...)
}

// unchanged compares the file with what was opened. A new change time alone is
// a rename, a link or a chmod. What is written through the engine changes by it.
func (e *Engine) unchanged(now FileStat) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.unchangedLocked(now)
}

func (e *Engine) unchangedLocked(now FileStat) error {
	if e.mu.writer != nil || now.Size == e.stat.Size && now.Mtime.Equal(e.stat.Mtime) {
		return nil
	}
	return Errorf(ErrChanged, StatusIDMismatch, "%s: was %d bytes written at %s, is %d bytes written at %s; it can be opened again when it is closed everywhere",
		e.ref.Path(), e.stat.Size, e.stat.Mtime.UTC().Format(time.RFC3339Nano), now.Size, now.Mtime.UTC().Format(time.RFC3339Nano))
}

// since is what the file looked like when it was opened, or last written here.
func (e *Engine) since() FileStat {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.stat
}

// describe is the present state of the open image.
func (e *Engine) describe() (info Info, size int64, err error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.refusalLocked(); err != nil {
		return Info{}, 0, err
	}
	return e.mu.layer.Info(), e.mu.layer.Size(), nil
}

// refusalLocked says why nothing can be done with the engine.
func (e *Engine) refusalLocked() error {
	if e.mu.closed {
		return iofs.ErrClosed
	}
	if dead := e.dead.Load(); dead != nil {
		return *dead
	}
	return nil
}

// releaseWait is how long a request waits for users that keep it from an image:
// a mount hears of a closed handle late.
const releaseWait = time.Second

// whenFree calls ask with Library.mu held until it answers something else than
// ErrBusy, for releaseWait at most.
func (l *Library) whenFree(ask func() error) error {
	late := time.NewTimer(releaseWait)
	defer late.Stop()
	for {
		l.mu.Lock()
		err, freed := ask(), l.mu.freed
		l.mu.Unlock()
		if !errors.Is(err, ErrBusy) {
			return err
		}
		select {
		case <-freed:
		case <-late.C:
			return err
		}
	}
}

// freedLocked wakes those that wait in whenFree.
func (l *Library) freedLocked() {
	close(l.mu.freed)
	l.mu.freed = make(chan struct{})
}

// writing is the engine of a file that is open for writing here, or was while
// readers remain; nil without.
func (l *Library) writing(id FileID) *Engine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writingLocked(id)
}

func (l *Library) writingLocked(id FileID) *Engine {
	if e := l.mu.engines[id]; e != nil && e.use.refs > 0 && (e.use.writers > 0 || e.use.upgraded) {
		return e
	}
	return nil
}
