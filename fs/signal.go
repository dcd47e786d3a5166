package fs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// fatal are the signals that end the operation their receiver waits for.
const fatal = 1<<(syscall.SIGHUP-1) | 1<<(syscall.SIGINT-1) | 1<<(syscall.SIGQUIT-1) |
	1<<(syscall.SIGKILL-1) | 1<<(syscall.SIGTERM-1)

// signalPoll is how often a writer that was interrupted once is looked at: the
// kernel tells of the first signal only.
const signalPoll = 100 * time.Millisecond

// underWriter is the context of an operation for the writer of a control file.
// It ends with the mount, and when a fatal signal waits for the writer. Any
// other signal interrupts the request as well (a window that changes its size,
// a Go program that preempts itself) and must not end a merge.
func (m *mount) underWriter(req context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(m.ctx)
	var pid uint32
	if c, ok := fuse.FromContext(req); ok {
		pid = c.Pid
	}
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-req.Done():
		}
		tick := time.NewTicker(signalPoll)
		defer tick.Stop()
		for !dying(pid) {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		cancel()
	}()
	return ctx, cancel
}

// callerDying is for a request that was interrupted: by a fatal signal?
func callerDying(req context.Context) bool {
	c, ok := fuse.FromContext(req)
	return ok && dying(c.Pid)
}

// dying tells whether a fatal signal is pending for the thread or its process,
// or whether it is gone. A writer of another PID namespace (0) is never dying.
func dying(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return errors.Is(err, iofs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	}
	return pending(string(status))&fatal != 0
}

// callerOf names the process of a request: the kernel tells the thread.
func callerOf(c fuse.Caller) ops.Caller {
	who := ops.Caller{User: c.Uid, Process: c.Pid}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Pid))
	if err != nil {
		return who // of another namespace, or gone
	}
	for line := range strings.Lines(string(status)) {
		if id, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(id), 10, 32); err == nil {
				who.Process = uint32(n)
			}
		}
	}
	return who
}

// pending is the set of signals in the SigPnd and ShdPnd lines of a
// /proc/PID/status: bit n-1 is signal n.
func pending(status string) uint64 {
	var set uint64
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil {
			set |= bits
		}
	}
	return set
}
