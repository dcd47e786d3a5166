package vhdx

import (
	"errors"

	"vhdfs/ops"
)

// Straight is the offset in the file of a fixed disk whose payload blocks are all
// there, one behind the other; see [ops.Straight]. It reads the BAT once, streaming.
func (d *Disk) Straight() (int64, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	g := d.geometry
	switch {
	case d.diskType() != ops.Fixed:
		return 0, ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhdx: a %s disk does not stand in the file in one piece", d.diskType())
	case d.overlay != nil:
		return 0, ops.Errorf(errors.ErrUnsupported, ops.StatusWrongState, "vhdx: the log has to be replayed first")
	}
	first, b := int64(0), int64(0)
	var bad error
	// Every entry is looked at: one of zeros is a block without content.
	err := d.scanBAT(0, g.beyond(), nil, func(i int64, e entry) bool {
		if g.isBitmap(i) {
			return true
		}
		if bad = g.checkPayload(i, e, d.reserved); bad != nil {
			return false
		}
		if b == 0 {
			first = e.offset()
		}
		if e.state() != stateFull || e.offset() != first+b*g.block {
			bad = ops.Errorf(errors.ErrUnsupported, ops.StatusWrongState, "vhdx: bat entry %d: state %d at %#x, not stored at %#x behind the one before", i, e.state(), e.offset(), first+b*g.block)
			return false
		}
		b++
		return true
	})
	if err == nil {
		err = bad
	}
	if err == nil && (b != g.blocks || first+g.size > d.fileSize) {
		err = ops.Errorf(errors.ErrUnsupported, ops.StatusWrongState, "vhdx: %d of %d blocks from %#x on in a file of %#x bytes", b, g.blocks, first, d.fileSize)
	}
	return first, err
}
