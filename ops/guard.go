package ops

import (
	"runtime/debug"
	"syscall"
)

// guard runs f. A panic in it becomes an error when the library's owner wants to
// be told of panics: one image must not end the service of all others.
func (l *Library) guard(where string, err *error, f func()) {
	if l.opts.Panicked == nil {
		f()
		return
	}
	defer func() {
		if v := recover(); v != nil {
			l.opts.Panicked(where, v, debug.Stack())
			*err = Wrapf(syscall.EIO, ErrPoisoned, 0, "%s: internal error: %v", where, v)
		}
	}()
	f()
}
