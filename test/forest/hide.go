package forest

import (
	"errors"

	"vhdfs/vhdx"
)

// discard lets a guest give up whole blocks of a child, over what its parents hold,
// and merges it at times: they are zeros in the parent, too.
func (f *Forest) discard() error {
	d := f.any(func(d *disk) bool { return d.parent != nil && len(f.kids(d)) == 0 })
	if d == nil {
		return nil
	}
	if err := f.enter(d); err != nil {
		return err
	}
	size := int64(len(d.data))
	off := f.rng.Int64N((size+mib-1)/mib) * mib
	n := min(size-off, mib*(1+f.rng.Int64N(3)))
	err := f.ask(1+f.rng.IntN(2), off, n)
	if err == nil && f.rng.IntN(2) == 0 {
		err = f.write()
	}
	if err == nil && f.rng.IntN(2) == 0 {
		err = f.release()
	}
	if err = errors.Join(err, f.look()); err != nil || f.rng.IntN(3) == 0 {
		return err
	}
	return f.fold(d)
}

// regrow cuts a disk off and makes it larger again, over what its parent or its own
// file may still have there: that does not come back.
func (f *Forest) regrow() error {
	d := f.any(func(d *disk) bool { return d.format == vhdx.Format && len(f.kids(d)) == 0 })
	if d == nil {
		return nil
	}
	size := f.size(small)
	err := f.resizeTo(d, size)
	for range 1 + f.rng.IntN(2) {
		if err == nil {
			size = f.size(size)
			err = f.resizeTo(d, size)
		}
	}
	return err
}
