package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// grow is truncate to more than the disk has: the operation resize, as if its
// control file had been written, with its answer there. It gives the size that
// the disk has then.
//
// The kernel keeps its lock of the file, and every WRITE back, until the SETATTR
// is answered, and takes the size from the answer. So nothing is asked of the
// kernel before that; what else has to know of the size is told after it.
func (c *content) grow(ctx context.Context, size uint64) (int64, error) {
	image := c.names().image
	found, err := c.m.lib.Inspect(image)
	if err != nil {
		return 0, err
	}
	op := c.m.operation(found, "resize")
	if op == nil || c.window.part > 0 {
		return 0, ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "%s: the size of this file cannot be changed", c.Path(nil))
	}
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return 0, syscall.EPERM
	}
	v, err := c.beginGrowing()
	if err != nil {
		return 0, err
	}
	run, cancel := c.m.underWriter(ctx)
	defer cancel()
	resize := &call{m: c.m, key: controlKey{image: image.Name, op: op.Name}, op: op, ref: image}
	_, err = resize.run(run, *caller, fmt.Appendf(nil, "size=%d", size))
	c.endGrowing(v, err == nil)
	if err != nil {
		return 0, err
	}
	if found, err = c.m.lib.Inspect(image); err != nil {
		return 0, err
	}
	return found.Size, nil
}

// operation is one that the image has; nil without.
func (m *mount) operation(found *ops.Found, name string) *ops.Op {
	for _, op := range m.opts.Ops {
		if op.Name == name && (op.Can == nil || op.Can(found)) {
			return op
		}
	}
	return nil
}

func (c *content) beginGrowing() (*pages, error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	v := c.viewLocked()
	switch {
	case v == nil:
		return nil, errLookAgain
	case v.growing:
		return nil, ops.Errorf(ops.ErrBusy, 0, "its size is being changed")
	}
	v.growing = true
	return v, nil
}

// endGrowing lets devices over the file take its size when the SETATTR is
// answered: setting the size of our own file once more waits for that.
func (c *content) endGrowing(v *pages, grown bool) {
	c.m.mu.Lock()
	v.growing = false
	var h *contentHandle
	if grown && len(v.handles) > 0 {
		h = v.handles[0]
		v.following++
		if v.followed == nil {
			v.followed = make(chan struct{})
		}
	}
	c.m.mu.Unlock()
	if h == nil {
		return
	}
	go func() {
		if err := c.takeSize(h.opened); err != nil {
			c.log().WithError(err).Warn("telling of the size of raw")
		}
		c.m.mu.Lock()
		defer c.m.mu.Unlock()
		if v.following--; v.following == 0 {
			close(v.followed)
			v.followed = nil
		}
	}()
}

// awaitSize waits a moment for what follows a truncation, so that who has closed
// the file finds the size everywhere.
func (c *content) awaitSize(v *pages) {
	c.m.mu.Lock()
	followed := v.followed
	c.m.mu.Unlock()
	if followed == nil {
		return
	}
	late := time.NewTimer(waitTries * waitStep)
	defer late.Stop()
	select {
	case <-followed:
	case <-late.C:
	}
}

func (m *mount) isGrowing(v *pages) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return v.growing
}
