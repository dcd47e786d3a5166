package sim

import (
	"errors"
	"io"
	"io/fs"
	"syscall"

	"vhdfs/ops"
)

// maxOffset is the largest file size of a host, in bytes.
const maxOffset = 1 << 62

// file is one open handle: an [ops.File] of a [Host].
type file struct {
	host   *Host
	node   *node
	path   string
	write  bool
	closed bool // guarded by host.mu
}

var _ ops.File = (*file)(nil)

// begin asks the hook and locks the host; the caller unlocks unless it fails.
func (f *file) begin(c Call) error {
	f.host.mu.Lock()
	if f.host.hook != nil {
		f.host.mu.Unlock()
		c.Path = f.path
		if err := f.host.ask(c); err != nil {
			return f.error(c.Op, err)
		}
		f.host.mu.Lock()
	}
	err := error(nil)
	switch {
	case f.closed:
		err = fs.ErrClosed
	case c.Off < 0 || c.Len < 0 || c.Off > maxOffset-c.Len:
		err = syscall.EINVAL
	}
	if err != nil {
		f.host.mu.Unlock()
		return f.error(c.Op, err)
	}
	return nil
}

// beginChange is begin for what changes the file.
func (f *file) beginChange(c Call) error {
	if err := f.begin(c); err != nil {
		return err
	}
	err := error(syscall.EBADF)
	if f.write {
		err = f.host.mayChangeLocked()
	}
	if err != nil {
		f.host.mu.Unlock()
		return f.error(c.Op, err)
	}
	return nil
}

func (f *file) error(op Op, err error) error {
	return &fs.PathError{Op: op.String(), Path: f.path, Err: err}
}

// changedLocked records a change and moves the file's times.
func (f *file) changedLocked(e Event) {
	f.node.mtime = f.host.ticks
	e.File, e.Path = f.node.ino, f.path
	f.host.eventLocked(e)
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	c := Call{Op: OpRead, Off: off, Len: int64(len(p))}
	if err := f.begin(c); err != nil {
		return 0, err
	}
	n := max(0, min(int64(len(p)), f.node.size-off))
	f.node.read(p[:n], off)
	after := f.host.after
	f.host.mu.Unlock()
	if after != nil {
		c.Path = f.path
		after(c)
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	err := f.beginChange(Call{Op: OpWrite, Off: off, Len: int64(len(p))})
	var short *ShortWrite
	if errors.As(err, &short) && short.Stored < len(p) {
		n, werr := f.writeShort(p[:short.Stored], off)
		return n, errors.Join(err, werr)
	}
	if err != nil {
		return 0, err
	}
	defer f.host.mu.Unlock()
	return f.writeLocked(p, off)
}

// writeShort stores what a short write lets through, past the hook.
func (f *file) writeShort(p []byte, off int64) (int, error) {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	return f.writeLocked(p, off)
}

func (f *file) writeLocked(p []byte, off int64) (int, error) {
	n := f.roomLocked(int64(len(p)), off)
	if n > 0 {
		f.node.write(p[:n], off)
		e := Event{Op: OpWrite, Off: off, Len: n}
		if f.host.recording {
			e.Data = append([]byte(nil), p[:n]...)
		}
		f.changedLocked(e)
	}
	if n < int64(len(p)) {
		return int(n), f.error(OpWrite, syscall.ENOSPC)
	}
	return int(n), nil
}

// roomLocked is how much of a write of n bytes the capacity leaves room for.
func (f *file) roomLocked(n, off int64) int64 {
	if f.host.capacity == 0 {
		return n
	}
	free := (f.host.capacity - f.host.usedLocked()) / pageSize
	for n > 0 && f.node.missing(off, n) > free {
		n = max(0, (off+n-1)/pageSize*pageSize-off)
	}
	return n
}

func (f *file) Close() error {
	h := f.host
	err := h.ask(Call{Op: OpClose, Path: f.path})
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.closed {
		return f.error(OpClose, fs.ErrClosed)
	}
	f.closed = true
	delete(f.node.handles, f)
	if err != nil {
		return f.error(OpClose, err)
	}
	return nil
}

func (f *file) Stat() (ops.FileStat, error) {
	if err := f.begin(Call{Op: OpStat}); err != nil {
		return ops.FileStat{}, err
	}
	defer f.host.mu.Unlock()
	return f.node.stat(), nil
}

func (f *file) Truncate(size int64, label string) error {
	if err := f.beginChange(Call{Op: OpTruncate, Off: size, Label: label}); err != nil {
		return err
	}
	defer f.host.mu.Unlock()
	f.node.truncate(size)
	f.changedLocked(Event{Op: OpTruncate, Off: size, Label: label})
	return nil
}

func (f *file) Sync(label string) error {
	if err := f.begin(Call{Op: OpSync, Label: label}); err != nil {
		return err
	}
	defer f.host.mu.Unlock()
	h := f.host
	h.labels[label]++
	if !h.dropped[label] {
		h.eventLocked(Event{Op: OpSync, File: f.node.ino, Path: f.path, Label: label})
	}
	return nil
}

func (f *file) Punch(off, n int64) error {
	if err := f.beginChange(Call{Op: OpPunch, Off: off, Len: n}); err != nil {
		return err
	}
	defer f.host.mu.Unlock()
	if n = min(n, f.node.size-off); n <= 0 {
		return nil
	}
	f.node.punch(off, n)
	f.changedLocked(Event{Op: OpPunch, Off: off, Len: n})
	return nil
}

func (f *file) Allocate(off, n int64) error {
	if err := f.beginChange(Call{Op: OpAllocate, Off: off, Len: n}); err != nil {
		return err
	}
	defer f.host.mu.Unlock()
	if f.roomLocked(n, off) < n {
		return f.error(OpAllocate, syscall.ENOSPC)
	}
	f.node.allocate(off, n)
	f.changedLocked(Event{Op: OpAllocate, Off: off, Len: n})
	return nil
}

func (f *file) NextData(off int64) (data, hole int64, err error) {
	if err := f.begin(Call{Op: OpNextData, Off: off}); err != nil {
		return 0, 0, err
	}
	defer f.host.mu.Unlock()
	data, hole, ok := f.node.nextData(off)
	if !ok {
		return 0, 0, io.EOF
	}
	return data, hole, nil
}

func (f *file) Lock(write bool) error {
	if err := f.begin(Call{Op: OpLock}); err != nil {
		return err
	}
	defer f.host.mu.Unlock()
	for other, writes := range f.node.handles {
		if other != f && (write || writes) {
			return ops.Errorf(ops.ErrBusy, 0, "%s is locked through another handle", f.path)
		}
	}
	if f.node.handles == nil {
		f.node.handles = map[*file]bool{}
	}
	f.node.handles[f] = f.node.handles[f] || write
	return nil
}
