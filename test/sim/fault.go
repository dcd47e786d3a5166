package sim

import (
	"fmt"
	"runtime"
	"strings"
)

// Call is one call on the host, as the fault hook sees it before it happens.
type Call struct {
	N     int // number of the call since the hook was set, from 1
	Op    Op
	Path  string // host path
	Label string // of a sync or truncate
	Off   int64
	Len   int64
	Site  string // "vhdx/log.go:123", where TraceSites is on
}

// ShortWrite is what a fault hook returns to let a write store its first Stored
// bytes before it fails with Err.
type ShortWrite struct {
	Stored int
	Err    error
}

func (s *ShortWrite) Error() string {
	return fmt.Sprintf("short write of %d bytes: %v", s.Stored, s.Err)
}

// Unwrap is the error of the host.
func (s *ShortWrite) Unwrap() error { return s.Err }

// SetFault sets the hook that is asked before every call; what it returns is
// the call's result, nil lets the call happen. It may block, and is called
// without locks held, concurrently when calls are concurrent. nil: no hook.
func (h *Host) SetFault(hook func(Call) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook, h.calls = hook, 0
}

// AfterReads sets what is called when a read has taken its bytes, before the reader
// has them: what changes the file meanwhile he does not see. It is called as a
// fault hook is. nil: nothing.
func (h *Host) AfterReads(f func(Call)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.after = f
}

// TraceSites fills in Call.Site, which costs about a microsecond a call.
func (h *Host) TraceSites(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trace = on
}

// ask runs the fault hook.
func (h *Host) ask(c Call) error {
	h.mu.Lock()
	hook, trace := h.hook, h.trace
	if hook == nil {
		h.mu.Unlock()
		return nil
	}
	h.calls++
	c.N = h.calls
	h.mu.Unlock()
	if trace {
		c.Site = callSite()
	}
	return hook(c)
}

// callSite is the first caller outside this package.
func callSite() string {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.Contains(f.Function, "/test/sim.(*") && !strings.HasPrefix(f.Function, "io.") {
			file := f.File
			if i := strings.LastIndexByte(file, '/'); i > 0 {
				file = file[strings.LastIndexByte(file[:i], '/')+1:]
			}
			return fmt.Sprintf("%s:%d", file, f.Line)
		}
		if !more {
			return ""
		}
	}
}
