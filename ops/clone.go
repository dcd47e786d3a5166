package ops

import (
	"errors"
	"path"
)

// Cloner is a [File] of a host whose files can share space.
type Cloner interface {
	// Clone makes [off, off+n) what src holds at from, without copying: the host
	// parts them when one of them is written. What was there before is let go, and
	// nothing is durable before a sync. errors.ErrUnsupported where the host
	// cannot, or not for these files and numbers: then nothing has changed.
	Clone(off int64, src File, from, n int64) error
}

// SpaceSharer is a [Dir] that can tell, without a try, whether its files can share
// space.
type SpaceSharer interface {
	// SharesSpace tells whether [Cloner] works between files of the file system of
	// directory name; false where that is not known.
	SharesSpace(name string) bool
}

// clonePage is what places in files must be multiples of, in bytes; a host may want
// more, and says so.
const clonePage = 4096

// clone lets a raw file share what the image has in [off, off+n), a run of data, as far as
// the host can do that: 0 where it cannot. Fixed disks have space of their own, so that
// a write to them never lacks it.
func (c *copier) clone(off, n int64) (int64, error) {
	src, isImage := c.src.(*Handle)
	dst, isRaw := c.dst.(Cloner)
	if !isImage || !isRaw || c.noClones || off%clonePage != 0 {
		return 0, nil
	}
	f, pos, n, err := src.place(off, min(n, src.Size()-off))
	n = n / copyGranule * copyGranule
	if err != nil || n == 0 || pos%clonePage != 0 {
		return 0, err
	}
	err = dst.Clone(off, f, pos, n)
	if errors.Is(err, errors.ErrUnsupported) {
		c.noClones = true
		return 0, c.mustShare
	}
	return n, err
}

// Clone implements [Cloner] where the host's file does.
func (f rawFile) Clone(off int64, src File, from, n int64) error {
	if host, ok := f.File.(Cloner); ok {
		return host.Clone(off, src, from, n)
	}
	return errors.ErrUnsupported
}

// sharer is a [counter] of a copy that shares what it can: that takes a piece of the
// host's own books.
type sharer struct {
	*counter
	shared, shares int64 // bytes, and pieces of them
}

// Clone counts; the walk of a copy calls it, one piece after the other.
func (s *sharer) Clone(_ int64, _ File, _, n int64) error {
	s.shared, s.shares = s.shared+n, s.shares+1
	return nil
}

// sharesSpace tells whether a raw file that is made here can share space with src.
func (t *target) sharesSpace(src source) bool {
	image, isImage := src.(*Handle)
	folder := path.Dir(t.ref.Name)
	d, canTell := t.ref.Dir.(SpaceSharer)
	if t.format != nil || !isImage || !canTell || !d.SharesSpace(folder) {
		return false
	}
	here, err := t.ref.Dir.Stat(folder)
	if err != nil {
		return false
	}
	there, err := image.Stat()
	return err == nil && here.ID.Dev == there.ID.Dev
}

// place is where the file of the image itself stores the run of data at off, of an
// image that is kept from writers: nothing moves it. n is 0 for what a parent holds,
// which a compaction may move meanwhile, and where a log is not replayed: what that
// holds is not in its place.
func (h *Handle) place(off, max int64) (f File, pos, n int64, err error) {
	x, err := h.Extent(off, max)
	if err != nil || !h.still || x.Kind != Data || x.Pos < 0 || x.Depth > 0 {
		return nil, 0, 0, err
	}
	e := h.engine()
	e.mu.RLock()
	log := e.mu.layer.Info().Log
	e.mu.RUnlock()
	if log != LogNone && log != LogClean {
		return nil, 0, 0, nil
	}
	return e.file, x.Pos, x.Len, nil
}
