package ops

import "errors"

// Terms are what an operation needs of the image that it changes. Guests may
// have the image open, for writing too, unless the terms say otherwise.
type Terms struct {
	Name string // of the operation, as others are told that it runs
	// Quiet operations change nothing that a guest or a child can see: that other
	// images were made from this one does not forbid them, and its LinkID stays.
	Quiet bool
	// Still keeps writers out: ErrBusy where a guest has the image open for writing.
	Still bool
	// Alone keeps everybody out, images that read through this one included, and
	// opens no parents: for what must work with a chain that is broken.
	Alone bool
	// Repair opens what says that it must not be written.
	Repair bool

	merge GUID // the merge that it belongs to
	set   bool // it works on behalf of the set that owns the file
}

// Operation is an image in the hands of one operation: a handle that is open for
// writing, with the capabilities of the image's own layer. There is one for an
// image at a time.
type Operation struct{ *Handle }

// Operate opens an image for an operation. ErrBusy, at once, while another one
// works on it, and after a moment's waiting while guests do what the terms do not
// allow; else as [Library.Open]. Opening writes nothing. A set is operated on by
// way of its active disk.
func (l *Library) Operate(r Ref, t Terms) (*Operation, error) {
	h := &Handle{lib: l, ref: r, write: true, terms: &t}
	if err := h.open(r, Write); err != nil {
		return nil, err
	}
	return &Operation{h}, nil
}

// Do runs f with the layer, on which it may ask for capabilities. Guests go on
// meanwhile. A panic in f poisons the image.
func (o *Operation) Do(f func(w Writer) error) error {
	return o.call(o.terms.Name, func() error {
		w, err := o.writer()
		if err != nil {
			return err
		}
		return o.judge(f(w))
	})
}

// DoAlone is Do with every guest request of this image held up until f returns:
// for what takes a moment.
func (o *Operation) DoAlone(f func(w Writer) error) error {
	return o.call(o.terms.Name, func() error {
		l, err := o.chain.lock()
		if err != nil {
			return err
		}
		defer l.unlock()
		if err := o.engine().refuseWriteLocked(); err != nil {
			return err
		}
		return o.judge(f(o.engine().mu.writer))
	})
}

// writer is the layer of the image. The handle keeps it open; that a library
// closes under an operation is for its owner to avoid.
func (o *Operation) writer() (Writer, error) {
	e := o.engine()
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.refusalLocked(); err != nil {
		return nil, err
	}
	return e.mu.writer, e.refuseWriteLocked()
}

// judge lets a layer that poisoned itself refuse writes for the engine too.
func (o *Operation) judge(err error) error {
	if errors.Is(err, ErrPoisoned) {
		o.engine().refuseWrites(Errorf(ErrPoisoned, 0, "%s: %s failed: %v", o.engine().ref.Path(), o.terms.Name, err))
	}
	return err
}

// Image is what was opened: for a set its active disk.
func (o *Operation) Image() Ref { return o.ref }

// termsLocked says what the terms of an operation do not allow.
func (h *Handle) termsLocked() error {
	use, t := &h.engine().use, h.terms
	path := h.engine().ref.Path()
	switch {
	case use.operation != "":
		return h.engine().operated(use.operation)
	case t.Alone && use.children > 0:
		return Errorf(ErrBusy, StatusParentOpen, "%s is the parent of an image that is open", path)
	case t.Alone && use.refs > 1:
		return Errorf(ErrBusy, StatusOwned, "%s is open", path)
	case t.Still && use.writers > 0:
		return Errorf(ErrBusy, StatusParentOpen, "%s is open for writing", path)
	case !t.Quiet && use.children > 0:
		return Errorf(ErrReadOnly, StatusParentOpen, "%s is the parent of an image that is open", path)
	}
	return nil
}

// countOperationLocked notes that an operation begins, or that it has ended.
func (h *Handle) countOperationLocked(begins bool) {
	use := &h.engine().use
	use.operation, use.alone = "", false
	if begins {
		use.operation, use.alone = h.terms.Name, h.terms.Alone
	}
	if h.terms.Still && begins {
		use.still++
	}
	if h.terms.Still && !begins {
		use.still--
	}
}

func (h *Handle) quiet() bool { return h.terms != nil && h.terms.Quiet }

func (h *Handle) openOptions() OpenOptions {
	if h.terms == nil {
		return OpenOptions{}
	}
	return OpenOptions{Quiet: h.terms.Quiet, Repair: h.terms.Repair}
}

func (e *Engine) operated(name string) error {
	return Errorf(errOperates, StatusOwned, "%s: %s runs on it", e.ref.Path(), name)
}

// Caches is who keeps copies of the bytes of open images above the library: a
// mount, with the kernel behind it. Ids are those of [Handle.CacheID]. It is called without any lock held, and never
// from a request of the same image.
type Caches interface {
	// Launder returns when everything that programs wrote before has reached the
	// image's engine.
	Launder(id FileID) error
	// Replaced drops clean copies: the content changed underneath.
	Replaced(id FileID) error
	// Resized makes programs see the size that the disk has now.
	Resized(id FileID) error
}

// noCaches is a library that nobody caches.
type noCaches struct{}

func (noCaches) Launder(FileID) error  { return nil }
func (noCaches) Replaced(FileID) error { return nil }
func (noCaches) Resized(FileID) error  { return nil }

// SetCaches tells the library who keeps copies of bytes, once, before anybody
// uses it through them.
func (l *Library) SetCaches(c Caches) { l.caches.Store(&c) }

func (l *Library) cached() Caches {
	if c := l.caches.Load(); c != nil {
		return *c
	}
	return noCaches{}
}

// Launder makes what programs wrote through a cache above part of the image.
func (o *Operation) Launder() error { return o.lib.cached().Launder(o.CacheID()) }

// Replaced makes programs forget what they were shown of the image.
func (o *Operation) Replaced() error { return o.lib.cached().Replaced(o.CacheID()) }

// Resized makes programs see the image's size.
func (o *Operation) Resized() error { return o.lib.cached().Resized(o.CacheID()) }
