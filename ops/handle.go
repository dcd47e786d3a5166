package ops

import (
	"errors"
	iofs "io/fs"
	"slices"
	"sync/atomic"
)

// Handle is one user of an engine. Its methods may be called concurrently.
type Handle struct {
	lib      *Library
	ref      Ref                    // the name that opened it; the leaf's for a set
	access   Access                 // NoFollow for a set's leaf
	at       atomic.Pointer[Engine] // see engine
	chain    *Chain
	set      *Found // the set through which it was opened, nil without one
	write    bool
	admitted bool   // counted in Engine.use.admitted
	still    bool   // counted in Engine.use.still
	former   bool   // opened by the name of an image that is this one now; see formerName
	terms    *Terms // of an operation, nil for a guest's handle
	pin      *pin   // of an attachment, nil for all others
	device   bool   // a block device's over raw; see ForDevice
	closed   atomic.Bool
}

// Open opens an image with all of its parents for guest I/O. One engine serves
// all handles of a host file. ErrParentMissing, ErrParentMismatch or ErrCycle
// for a broken chain: never zeros in place of a parent. For writing: ErrReadOnly
// where the image has children, belongs to a set or says so itself; ErrBusy
// where it is a parent that is in use, or locked by somebody else. Opening writes
// nothing.
func (l *Library) Open(r Ref, a Access) (*Handle, error) {
	h := &Handle{lib: l, ref: r, access: a & NoFollow, write: a&Write != 0, device: a&ForDevice != 0}
	a &^= ForDevice
	if err := h.open(r, a); err != nil {
		return nil, err
	}
	return h, nil
}

// engine is the one that the handle is counted in; it may be another one at the
// next call.
func (h *Handle) engine() *Engine { return h.at.Load() }

func (h *Handle) open(r Ref, a Access) error {
	l := h.lib
	e, err := h.acquire(r, a)
	if err != nil {
		return err
	}
	h.at.Store(e)
	err = h.askMerge()
	if err == nil {
		err = h.enter()
	}
	if err != nil {
		err = errors.Join(err, l.release(e))
		if errors.Is(err, errMovedOn) {
			return h.open(r, a)
		}
		return err
	}
	if h.terms == nil || !h.terms.Alone {
		h.chain, err = l.join(h)
	} else {
		h.chain = newChain(layers{e})
	}
	if err == nil && h.write {
		err = h.beginWriting()
	}
	if err != nil {
		return errors.Join(err, h.Close())
	}
	return nil
}

// acquire is the engine of a name: of a set its leaf's, and that of the image
// which another one of this name became.
func (h *Handle) acquire(r Ref, a Access) (*Engine, error) {
	if e := h.lib.acquireFormer(r); e != nil {
		h.former, h.ref = true, e.ref
		return e, nil
	}
	e, err := h.lib.acquire(r, a)
	if errors.Is(err, errIsSet) {
		return h.acquireLeaf(r)
	}
	return e, err
}

// enter waits a moment for what is in the way of a guest's handle or of the terms
// of an operation, but not for another operation.
func (h *Handle) enter() error {
	l := h.lib
	if h.terms != nil {
		l.mu.Lock()
		other := h.engine().use.operation
		l.mu.Unlock()
		if other != "" {
			return h.engine().operated(other)
		}
	}
	return l.whenFree(h.enterLocked)
}

// enterLocked counts the handle, or says whose presence excludes it.
func (h *Handle) enterLocked() error {
	e := h.engine()
	use := &e.use
	switch {
	case use.movedOn, use.left && h.set != nil:
		return errMovedOn
	case h.former && h.terms != nil:
		return Errorf(ErrBusy, StatusOwned, "another image was merged into %s, and is still open by its own name", e.ref.Path())
	case !h.former && use.former > 0:
		return Errorf(ErrBusy, StatusOwned, "%s is open by the name of an image that was merged into it", e.ref.Path())
	case h.set == nil && use.setWriters > 0:
		return Errorf(ErrBusy, StatusOwned, "%s: its set is open for writing", e.ref.Path())
	case h.set != nil && h.write && use.named > 0:
		return Errorf(ErrBusy, StatusOwned, "%s is open by its own name", e.ref.Path())
	case use.alone, use.merge.shuts():
		return e.operated(use.operation)
	case h.write && use.still > 0:
		return Errorf(ErrBusy, StatusParentOpen, "%s is read by an operation", e.ref.Path())
	}
	if err := h.askPinLocked(); err != nil {
		return err
	}
	if h.terms != nil {
		if err := h.termsLocked(); err != nil {
			return err
		}
	} else if h.write && use.children > 0 {
		return Errorf(ErrReadOnly, StatusParentOpen, "%s is the parent of an image that is open", e.ref.Path())
	}
	h.countLocked(1)
	return nil
}

func (h *Handle) countLocked(by int) {
	use := &h.engine().use
	if by > 0 {
		if use.handles == nil {
			use.handles = map[*Handle]bool{}
		}
		use.handles[h] = true
	} else {
		delete(use.handles, h)
	}
	switch {
	case h.former:
		h.lib.countFormerLocked(h.engine(), by)
	case h.set == nil:
		use.named += by
	}
	if h.write && !h.quiet() {
		use.writers += by
	}
	if h.write && h.set != nil {
		use.setWriters += by
	}
	if h.admitted {
		use.admitted += by
	}
	if h.still {
		use.still += by
	}
	h.countPinLocked(by)
	if h.terms != nil {
		h.countOperationLocked(by > 0)
	} else if h.write && by > 0 {
		h.engine().visits.Add(1)
	}
}

// beginWriting asks everything that may forbid a write, unless a writer that was
// asked is there already, and upgrades the engine. This handle is counted as a
// writer meanwhile, so that no child comes between.
func (h *Handle) beginWriting() error {
	h.lib.mu.Lock()
	asked := h.engine().use.admitted > 0
	h.lib.mu.Unlock()
	if !asked || h.terms != nil {
		if err := h.mayWrite(); err != nil {
			return err
		}
	}
	if err := h.engine().upgrade(h.name(), h.access, h.openOptions()); err != nil {
		return err
	}
	h.lib.mu.Lock()
	use := &h.engine().use
	if !h.quiet() {
		h.admitted = true
		use.admitted++
	}
	use.upgraded = true
	h.lib.mu.Unlock()
	return nil
}

func (h *Handle) mayWrite() error {
	e := h.engine()
	info, size, err := e.describe()
	if err != nil {
		return err
	}
	if h.set != nil && h.set.Set.ReadOnly != "" {
		return Errorf(ErrReadOnly, 0, "%s: %s", h.set.Ref.Path(), h.set.Set.ReadOnly)
	}
	if info.ReadOnly != "" && (h.terms == nil || !h.terms.Repair) {
		return Errorf(ErrReadOnly, 0, "%s: %s", h.name().Path(), info.ReadOnly)
	}
	ref := h.name()
	if err := h.askLinks(&Found{Ref: ref, Stat: e.since(), Format: e.format, Size: size, Info: info, Leaf: ref}); err != nil {
		return err
	}
	if ask := h.lib.opts.BeforeWrite; ask != nil && (h.pin == nil || !h.pin.adopted) {
		return ask(e.id)
	}
	return nil
}

// askLinks refuses to write what other images were made from, and what a set
// manages.
func (h *Handle) askLinks(self *Found) error {
	res := &resolver{lib: h.lib}
	var children []Ref
	var err error
	if !h.quiet() {
		children, err = res.children(self)
	}
	if err != nil {
		return err
	}
	if h.set != nil {
		children = slices.DeleteFunc(children, h.set.unused)
	}
	if len(children) > 0 {
		return Errorf(ErrReadOnly, 0, "%s is the parent of %s: a write would break it", self.Ref.Path(), children[0].Path())
	}
	if h.set != nil || h.terms != nil && h.terms.set {
		return nil
	}
	owner, err := res.owner(self.Stat.ID)
	if err == nil && owner != nil && h.terms != nil {
		err = Errorf(errors.ErrUnsupported, StatusWrongState, "%s: not on %s, which belongs to the set %s", h.terms.Name, self.Ref.Path(), owner.Ref.Path())
	} else if err == nil && owner != nil {
		err = Errorf(ErrReadOnly, StatusOwned, "%s belongs to the set %s: write through that", self.Ref.Path(), owner.Ref.Path())
	}
	return err
}

// Close gives the handle back; the last one closes the engine, and answers how
// the end of its write session went. Closing again answers fs.ErrClosed.
func (h *Handle) Close() error {
	if h.closed.Swap(true) {
		return iofs.ErrClosed
	}
	h.lib.mu.Lock()
	e := h.engine()
	h.countLocked(-1)
	var chain *Chain
	if len(e.use.handles) == 0 { // the engine may stay, as somebody's parent
		chain, e.use.chain = e.use.chain, nil
	}
	h.lib.freedLocked()
	h.lib.mu.Unlock()
	err := h.lib.release(e)
	if chain != nil {
		err = errors.Join(err, h.lib.releaseParents(chain.layers()[1:]))
	}
	return errors.Join(err, h.lib.closeFormer())
}

// call runs one request: refused on a closed handle, and a panic in it ends the
// use of every image of the chain.
func (h *Handle) call(what string, f func() error) error {
	if h.closed.Load() {
		return iofs.ErrClosed
	}
	var err, panicked error
	h.lib.guard(what+" "+h.engine().ref.Path(), &panicked, func() { err = f() })
	if panicked != nil {
		for _, e := range h.chain.layers() {
			e.dead.CompareAndSwap(nil, &panicked)
		}
		return panicked
	}
	return err
}

// Size is the virtual size in bytes.
func (h *Handle) Size() int64 {
	_, size, err := h.engine().describe()
	if err != nil {
		return 0
	}
	return size
}

// Info is what the image says of itself now.
func (h *Handle) Info() Info {
	info, _, err := h.engine().describe()
	if err != nil {
		return Info{}
	}
	return info
}

// Writable tells whether the handle was opened for writing.
func (h *Handle) Writable() bool { return h.write }

// ReadAt reads guest bytes through the chain; io.EOF at the end of the disk.
func (h *Handle) ReadAt(p []byte, off int64) (n int, err error) {
	err = h.call("read", func() error {
		n, err = h.chain.ReadAt(p, off)
		return err
	})
	return n, err
}

// Extent is the longest run of one kind and one layer at off, at most max bytes.
// Absent does not occur: what no layer holds is Zero.
func (h *Handle) Extent(off, max int64) (x ChainExtent, err error) {
	err = h.call("map", func() error {
		x, err = h.chain.Extent(off, max)
		return err
	})
	return x, err
}

// WriteAt stores all of p at off. Any alignment: less than a logical sector is
// read, changed and written. ErrReadOnly unless opened with Write, ErrPastEnd
// when p ends past Size (nothing is written then).
func (h *Handle) WriteAt(p []byte, off int64) (n int, err error) {
	if !h.write {
		return 0, h.notForWriting()
	}
	err = h.call("write", func() error {
		n, err = h.chain.WriteAt(p, off)
		return err
	})
	return n, err
}

// Zero makes a range of any alignment read as zeros, never as a parent's bytes;
// see [Writer] for unmap.
func (h *Handle) Zero(off, n int64, unmap bool) error {
	if !h.write {
		return h.notForWriting()
	}
	return h.call("zero", func() error { return h.chain.Zero(off, n, unmap) })
}

// Flush returns when every write that completed before survives power loss,
// writes through other handles included. Concurrent calls share one. See
// [Writer] for what an error means.
func (h *Handle) Flush() error {
	return h.call("flush", h.chain.Flush)
}

func (h *Handle) notForWriting() error {
	return Errorf(ErrReadOnly, 0, "%s is open for reading", h.engine().ref.Path())
}

// Layers are the refs of the chain, the image itself first.
func (h *Handle) Layers() []Ref {
	all := h.chain.layers()
	list := make([]Ref, len(all))
	for i, e := range all {
		list[i] = e.ref
	}
	return list
}

// Stat is of the image's own host file.
func (h *Handle) Stat() (FileStat, error) {
	var st FileStat
	err := h.call("stat", func() (err error) {
		st, err = h.engine().file.Stat()
		return err
	})
	return st, err
}
