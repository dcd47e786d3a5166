package vhd

import (
	"errors"
	"slices"

	"vhdfs/ops"
)

// SetParent records another parent, in the first place at which paths are looked
// for: other codes than W2ru and W2ku go, since they lead to the old one; see
// [ops.Relinker]. The order:
//
//	paths, in room that nothing uses      synced with the first header below
//	the header as it is, behind them; then in effect from there
//	the new header where the old one was; then in effect
//
// Only the last step changes what a reader finds; before it a crash leaves the old
// record, at worst with its header in the second place, where it may stay.
func (w *writer) SetParent(p ops.CreateParent) error {
	if w.typ != ops.Differencing {
		return ops.Errorf(errors.ErrUnsupported, ops.StatusWrongType, "vhd: a %s disk has no parent", w.typ)
	}
	if p.LinkID.IsZero() {
		return ops.Errorf(ops.ErrUsage, ops.StatusIDMismatch, "vhd: the parent has no id")
	}
	paths, err := encodePaths(&p)
	if err != nil {
		return err
	}
	w.flushes.Lock()
	defer w.flushes.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.beginLocked(); err != nil {
		return err
	}
	n := pathsBytes(paths, sectorSize)
	at, err := w.placeLocked(n+headerSize, 0)
	if err != nil {
		return err
	}
	h, err := w.relinkedLocked(&p, paths, at)
	if err != nil {
		return err
	}
	parent, odd, err := readParent(w.file, &h, w.lay)
	if err != nil {
		return err
	}
	if err := w.replaceHeaderLocked(h, w.foot, at+n); err != nil {
		return err
	}
	w.session.next = max(w.session.next, at+n)
	w.mu.info.Parent = parent
	w.mu.info.Anomalies = append(without(w.mu.info.Anomalies, anomalyLocator, anomalyNoID), odd...)
	return nil
}

// UnreadParent is the dynamic header, where a path of the parent cannot be read or its
// id is missing: it holds the locators, and leads to what stands in place of the path.
func (w *writer) UnreadParent() ([]byte, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if len(without(w.mu.info.Anomalies, anomalyLocator, anomalyNoID)) == len(w.mu.info.Anomalies) {
		return nil, nil
	}
	return slices.Clone(w.head.raw[:]), nil
}

// relinkedLocked writes paths to at and gives the header that leads there.
func (w *writer) relinkedLocked(p *ops.CreateParent, paths []locatorPath, at int64) (header, error) {
	raw := w.head.raw
	clear(raw[40:60])  // id and time stamp
	clear(raw[64:768]) // name and locators
	if err := writeParent(w.file, raw[:], p, paths, at, sectorSize); err != nil {
		return header{}, err
	}
	return headerOf(raw[:])
}

// without drops the anomalies with these names.
func without(list []ops.Anomaly, names ...string) []ops.Anomaly {
	var left []ops.Anomaly
	for _, a := range list {
		if !slices.Contains(names, a.Name) {
			left = append(left, a)
		}
	}
	return left
}
