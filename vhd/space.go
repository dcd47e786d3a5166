package vhd

import (
	"context"
	"errors"

	"vhdfs/ops"
)

// placeLocked finds room for n bytes of structures: the first gap that holds them
// at byte from or later, or behind everything, where the file grows for them. Space that waiting table
// entries will free is not taken: in the file it is in use.
func (w *writer) placeLocked(n, from int64) (at int64, err error) {
	if err := w.scanOnceLocked(); err != nil {
		return 0, err
	}
	if at, err = w.gapLocked(n, from); err != nil || at >= 0 {
		return at, err
	}
	at = roundUp(max(w.session.next, from), sectorSize)
	if at+n > w.session.tail {
		if err := w.moveFooterLocked(at + n); err != nil {
			return 0, err
		}
	}
	w.session.stale = max(w.session.stale, at+n) // should it be given up again
	return at, nil
}

// gapLocked is the first place at byte from or later in a gap of n bytes, -1 when
// there is none.
func (w *writer) gapLocked(n, from int64) (at int64, err error) {
	at = -1
	_, err = w.scanLocked(context.Background(), scanVisit{bad: failOn, gap: func(g gap) error {
		if off := max(g.off, from); g.end-off >= n {
			at = off
			return errEnough
		}
		return nil
	}})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return at, err
}

// freeLocked tells whether nothing uses [off, off+n).
func (w *writer) freeLocked(off, n int64) (free bool, err error) {
	res, err := w.scanLocked(context.Background(), scanVisit{bad: failOn, gap: func(g gap) error {
		free = free || g.off <= off && off+n <= g.end
		return nil
	}})
	return free || err == nil && off >= res.end, err
}

// relayLocked enters where footer and header say the structures are.
func (w *writer) relayLocked() {
	lay := newLayout(&w.foot, &w.head, w.lay.end)
	for _, s := range w.lay.spans {
		if s.what == batmapName {
			lay.spans = append(lay.spans, s)
		}
	}
	w.lay = lay
}

// moveHeaderLocked makes the footers lead to h at byte to, where nothing is, and
// foot, but for its DataOffset, what they say. There is no second copy of the
// header, so none is written where a footer leads. The order:
//
//	header; sync        nothing leads to it
//	copy at 0; sync     the footer at the end counts
//	end footer; sync    from now on all of it
//
// Until the last write a crash leaves header and footer as they were.
func (w *writer) moveHeaderLocked(to int64, h header, foot footer) error {
	if _, err := w.file.WriteAt(h.raw[:], to); err != nil {
		return err
	}
	if err := w.syncLocked("vhd.header"); err != nil {
		return err
	}
	foot.dataOffset = uint64(to)
	foot = decodeFooter(foot.encode())
	if err := w.switchFootersLocked(&foot); err != nil {
		return err
	}
	w.foot, w.head = foot, h
	w.relayLocked()
	return nil
}

// switchFootersLocked makes foot the footer. The one at the end counts, so until
// that is written a crash leaves the old one in effect; the sync between keeps
// them from being written at the same time.
func (w *writer) switchFootersLocked(foot *footer) error {
	if err := w.putFooterLocked(foot, 0); err != nil {
		return err
	}
	if err := w.syncLocked("vhd.switch.copy"); err != nil {
		return err
	}
	if err := w.putFooterLocked(foot, w.session.tail); err != nil {
		return err
	}
	return w.syncLocked("vhd.switch.end")
}

// putFooterLocked writes over a footer. When that fails nobody knows which one the
// next reader will find: writing ends.
func (w *writer) putFooterLocked(foot *footer, at int64) error {
	_, err := w.file.WriteAt(foot.raw[:], at)
	if err != nil {
		w.session.poisoned = true
	}
	return err
}

// replaceHeaderLocked makes h and foot, but for its DataOffset, the header and
// footer in one step. The header in effect goes to spare first, room for another
// one, so that the new one can stand where every reader looks: at 512, unless
// something else is there. A crash in between leaves the old one at spare.
func (w *writer) replaceHeaderLocked(h header, foot footer, spare int64) error {
	home := int64(newHeaderOffset)
	if int64(w.foot.dataOffset) != home {
		free, err := w.freeLocked(home, headerSize)
		if err != nil {
			return err
		}
		if free {
			return w.moveHeaderLocked(home, h, foot)
		}
		home = int64(w.foot.dataOffset)
	}
	if err := w.moveHeaderLocked(spare, w.head, w.foot); err != nil {
		return err
	}
	return w.moveHeaderLocked(home, h, foot)
}

// headerOf is what raw says, with its checksum made right.
func headerOf(raw []byte) (header, error) {
	putChecksum(raw, headerSumAt)
	return decodeHeader(raw)
}

var _ ops.Relinker = (*writer)(nil)
