package sim

import "syscall"

// Failing is what a host answers from some call on.
type Failing struct {
	Err   syscall.Errno
	Short bool // a write stores half of it
	Stays bool // and so do all calls after it
}

// Failings are the ways in which hosts fail.
var Failings = []Failing{
	{syscall.EIO, false, false}, {syscall.ENOSPC, false, false}, {syscall.ENOSPC, true, false},
	{syscall.EIO, false, true}, {syscall.ENOSPC, false, true},
}

// Fits tells whether a call can fail so.
func (f Failing) Fits(c Call) bool {
	switch c.Op {
	case OpClose:
		return false // the kernel closes whatever it answers
	case OpWrite:
		return true
	case OpCreate, OpMkdir, OpRename, OpTruncate, OpAllocate, OpPunch, OpSync, OpSyncDir:
		return !f.Short
	}
	return f.Err == syscall.EIO && !f.Short
}

// From makes the k-th call of a host fail, and those after it where it stays, until
// [Host.SetFault] is called again. hit, unless nil, is told of the first one.
func (f Failing) From(h *Host, k int, hit func(Call)) {
	h.SetFault(func(c Call) error {
		if c.N != k && !(f.Stays && c.N > k) || !f.Fits(c) {
			return nil
		}
		if hit != nil {
			hit(c)
		}
		if f.Short {
			return &ShortWrite{Stored: int(c.Len / 2 / 512 * 512), Err: f.Err}
		}
		return f.Err
	})
}
