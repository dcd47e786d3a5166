package fs

import (
	"sync/atomic"
	"syscall"
	"time"
)

// losses are the writes of a view that failed after write(2) had returned, as
// the writeback cache lets them. mount.mu guards all but writes.
type losses struct {
	err      error // what fsync answers until it was told
	off, end int64 // where pages may show bytes that were never stored
	dropping bool  // these pages are being dropped
	writes   atomic.Int32
}

func (c *content) lost(v *pages) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	return v.lost.err
}

// told ends the memory of a loss unless more was lost meanwhile.
func (c *content) told(v *pages, lost error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if v.lost.err == lost {
		v.lost.err = nil
	}
}

// lose remembers a write that failed, under the cache mode in which nobody may
// have been told. Where there was no room for it the pages are dropped that show
// bytes that were never stored. Any other failure poisons the image: its pages
// stay until all have closed it, as they do for a plain file on a failing disk.
// The host is failing then, WRITE after WRITE, and a notification among them
// would be in the way of a kill (see dropLost).
func (c *content) lose(v *pages, off, n int64, err error) {
	if c.m.opts.Cache != Writeback {
		return
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	l := &v.lost
	if l.err == nil || errno(l.err) == syscall.ENOSPC {
		l.err = err
	}
	switch errno(err) {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
	default:
		return
	}
	if l.off == l.end {
		l.off, l.end = off, off+n
	}
	l.off, l.end = min(l.off, off), max(l.end, off+n)
	if !l.dropping {
		l.dropping = true
		go c.dropLost(v)
	}
}

// dropLost drops lost pages, one range at a time and never from WRITE itself.
// NotifyContent waits in the kernel for the WRITEs under way, where nothing ends
// it: a daemon that is killed while many wait there hangs with all of its users
// until somebody aborts the connection. So it is called when they have been
// answered.
func (c *content) dropLost(v *pages) {
	for {
		for v.lost.writes.Load() > 0 {
			time.Sleep(waitStep)
		}
		c.m.mu.Lock()
		off, n := v.lost.off, v.lost.end-v.lost.off
		v.lost.off, v.lost.end = 0, 0
		v.lost.dropping = n > 0
		c.m.mu.Unlock()
		if n == 0 {
			return
		}
		if no := c.NotifyContent(off, n); no != 0 && no != syscall.ENOENT {
			c.log().WithError(no).Warn("dropping pages that were not stored")
		}
	}
}
