package ops

import "errors"

// Cloner is a [File] of a host whose files can share space.
type Cloner interface {
	// Clone makes [off, off+n) what src holds at from, without copying: the host
	// parts them when one of them is written. What was there before is let go, and
	// nothing is durable before a sync. errors.ErrUnsupported where the host
	// cannot, or not for these files and numbers: then nothing has changed.
	Clone(off int64, src File, from, n int64) error
}

// clonePage is what places in files must be multiples of, in bytes; a host may want
// more, and says so.
const clonePage = 4096

// place is where the bytes of a run stand in a host file; the zero place is nowhere.
type place struct {
	file   File
	pos, n int64
}

// placed is what can say where its data stand.
type placed interface {
	// place is that of the run of data at off, at most max bytes.
	place(off, max int64) (place, error)
}

func (f rawFile) place(off, max int64) (place, error) { return place{f.File, off, max}, nil }

func (s rawSource) place(off, max int64) (place, error) {
	x, err := s.Raw.Extent(off, max)
	if err != nil || x.Kind != Data {
		return place{}, err
	}
	return place{s.f, x.Pos, x.Len}, nil
}

// place is nowhere where a log is not replayed: what it holds is not in its place.
func (h *Handle) place(off, max int64) (place, error) {
	x, err := h.Extent(off, max)
	if err != nil || x.Kind != Data || x.Pos < 0 {
		return place{}, err
	}
	layers, err := h.chain.rLock()
	if err != nil {
		return place{}, err
	}
	defer layers.rUnlock()
	e := layers[x.Depth]
	if log := e.mu.layer.Info().Log; log != LogNone && log != LogClean {
		return place{}, nil
	}
	return place{e.file, x.Pos, x.Len}, nil
}

// fixedSink is a new disk all of whose bytes have their place in its file: no part
// of it changes when they do.
type fixedSink struct {
	Writer
	file File
}

func (s fixedSink) place(off, max int64) (place, error) {
	x, err := s.Extent(off, max)
	if err != nil || x.Kind != Data || x.Pos < 0 {
		return place{}, err
	}
	return place{s.file, x.Pos, x.Len}, nil
}

// clone lets the new image share what the source has in [off, off+n), a run of
// data from a granule on, as far as the host can do that: 0 where it cannot.
func (c *copier) clone(off, n int64) (int64, error) {
	src, srcPlaced := c.src.(placed)
	dst, dstPlaced := c.dst.(placed)
	if c.base != nil || !srcPlaced || !dstPlaced || c.noClones {
		return 0, nil
	}
	from, err := src.place(off, min(n, c.src.Size()-off))
	if err != nil || from.file == nil {
		return 0, err
	}
	to, err := dst.place(off, from.n)
	if err != nil || to.file == nil {
		return 0, err
	}
	n = to.n / copyGranule * copyGranule
	host, ok := to.file.(Cloner)
	if n == 0 || !ok || from.pos%clonePage != 0 || to.pos%clonePage != 0 {
		return 0, nil
	}
	err = host.Clone(to.pos, from.file, from.pos, n)
	if errors.Is(err, errors.ErrUnsupported) {
		c.noClones = true
		return 0, nil
	}
	return n, err
}
