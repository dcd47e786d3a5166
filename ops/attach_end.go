package ops

import "errors"

// DetachAll detaches every image, and attaches none any more if all went well. The
// error, ErrBusy for a device in use, names each that could not be detached.
func (a *Attacher) DetachAll(force bool) error {
	a.mu.Lock()
	a.mu.closed = true
	a.mu.Unlock()
	var all error
	for _, x := range a.Attached() {
		all = errors.Join(all, a.detach(x.Number, force))
	}
	if all != nil && !force {
		a.Reopen()
	}
	return all
}

// Reopen takes a DetachAll back, as far as new images go.
func (a *Attacher) Reopen() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.closed = false
}

// CloseEmpty attaches none any more if nothing is attached; it tells whether that is
// so. [Attacher.Reopen] takes it back.
func (a *Attacher) CloseEmpty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.closed = a.mu.closed || len(a.mu.list) == 0
	return len(a.mu.list) == 0
}

// Emptied has a value after the last image that was attached is not any more. Several
// such ends may be one value.
func (a *Attacher) Emptied() <-chan struct{} { return a.emptied }
