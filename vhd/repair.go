package vhd

import (
	"context"
	"fmt"
	"slices"

	"vhdfs/ops"
)

var (
	_ ops.Repairer = (*writer)(nil)
	_ ops.Repairer = (*fixedWriter)(nil)
)

// footerNames are the anomalies that a footer in its places ends.
var footerNames = []string{"vhd.footer.copy", "vhd.footer.end", "vhd.footer.differ", "vhd.footer.checksum", "vhd.footer.short"}

// named are the anomalies of a list with these names.
func named(list []ops.Anomaly, names []string) []ops.Anomaly {
	var out []ops.Anomaly
	for _, a := range list {
		if slices.Contains(names, a.Name) {
			out = append(out, a)
		}
	}
	return out
}

// reportAll tells of each anomaly, without a lock.
func reportAll(list []ops.Anomaly, report func(ops.Anomaly) error) error {
	for _, a := range list {
		if err := report(a); err != nil {
			return err
		}
	}
	return nil
}

// mending is what stands between an image and being written, and whether the file
// itself says how to end it.
type mending struct {
	readOnly string // why it must not be written; "" when it may
	mendable bool   // not for ever
	rewrite  bool   // the end footer has to be written where it is
}

func (m *mending) refuse() error {
	if m.readOnly == "" {
		return nil
	}
	return ops.Errorf(ops.ErrReadOnly, ops.StatusWrongState, "vhd: not written: %s", m.readOnly)
}

// Repair puts footers right where one of them, or the header, says which is, and
// gives back what is behind the last block; see [ops.Repairer]. What the first write
// would mend is mended in the same way, as the first write of the session. The order:
//
//	copy at 0; sync          the end footer, as it is, or this one serves
//	end footer; sync
//	a footer behind the last block; sync; cut; sync
//
// Tables in which blocks overlap stay as they are, and so do footers that both fit.
func (w *writer) Repair(ctx context.Context, report func(ops.Anomaly) error) error {
	w.flushes.Lock()
	defer w.flushes.Unlock()
	list, sound, err := w.mendable(ctx)
	if err != nil {
		return err
	}
	if err := reportAll(list, report); err != nil {
		return err
	}
	if len(list) > 0 {
		if err := w.mend(); err != nil {
			return err
		}
	}
	if !sound {
		return nil
	}
	leak, err := w.leakBehind()
	if err != nil || leak == 0 {
		return err
	}
	err = report(ops.Anomaly{Name: "vhd.leak", Severity: ops.Note, Where: "file", Text: fmt.Sprintf("vhd: %d bytes behind the last block belong to none", leak)})
	if err != nil {
		return err
	}
	return w.cutBehind()
}

// mendable lists what can be mended about the footers; sound says that the table
// is, and so that it is known where blocks end.
func (w *writer) mendable(ctx context.Context) (list []ops.Anomaly, sound bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.session
	if s.poisoned {
		return nil, false, errPoisoned
	}
	if s.readOnly != "" && !s.mendable {
		return nil, false, nil
	}
	_, err = w.scanLocked(ctx, scanVisit{bad: failOn})
	if err != nil && !isCorrupt(err) {
		return nil, false, err
	}
	sound = err == nil
	if !sound && s.tail < 0 && !s.rewrite {
		return nil, false, nil // nowhere to put a footer
	}
	return named(w.mu.info.Anomalies, footerNames), sound, nil
}

// mend writes the footers as the first write would, were it allowed.
func (w *writer) mend() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.session
	had := s.readOnly
	s.readOnly = ""
	if err := w.beginLocked(); err != nil {
		s.readOnly = had
		return err
	}
	w.mu.info.ReadOnly = ""
	return nil
}

// leakBehind is the number of bytes between the last block and the footer, if they
// are more than alignment leaves.
func (w *writer) leakBehind() (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.beginLocked(); err != nil {
		return 0, err
	}
	if err := w.scanOnceLocked(); err != nil {
		return 0, err
	}
	leak := w.session.tail - w.footerAt(w.session.next)
	if leak <= 2*blockAlignment {
		return 0, nil
	}
	return leak, nil
}

// cutBehind is the end of a compaction alone.
func (w *writer) cutBehind() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session.floor = 0
	if cut, err := w.cutLocked(); err != nil || !cut {
		return err
	}
	return w.syncLocked("vhd.cut")
}

// Repair puts the footer right and gives back room behind the disk that holds
// nothing; see [ops.Repairer]. The order:
//
//	the file cut behind the footer; the footer with 512 bytes and a good checksum; sync
//	the footer right behind the disk; sync; cut; sync
func (w *fixedWriter) Repair(_ context.Context, report func(ops.Anomaly) error) error {
	if w.poisoned.Load() {
		return errPoisoned
	}
	if w.readOnly != "" && !w.mendable {
		return nil
	}
	list := named(w.Info().Anomalies, footerNames)
	if err := reportAll(list, report); err != nil {
		return err
	}
	if len(list) > 0 {
		if err := w.mend(); err != nil {
			return err
		}
	}
	empty, err := w.emptyBehind()
	if err != nil || !empty {
		return err
	}
	if err := reportAll(named(w.Info().Anomalies, []string{"vhd.length"}), report); err != nil {
		return err
	}
	return w.cutBehind()
}

func (w *fixedWriter) mend() error {
	had := w.readOnly
	w.readOnly = ""
	if err := w.begin(); err != nil {
		w.readOnly = had
		return err
	}
	if w.rewrite {
		if _, err := w.file.WriteAt(w.foot.raw[:], w.tail); err != nil {
			w.readOnly = had
			return err
		}
	}
	if err := w.sync("vhd.fixed.repair"); err != nil {
		return err
	}
	w.rewrite = false
	w.describe(&w.foot)
	return nil
}

// emptyBehind tells whether there is room behind the disk that holds nothing but
// zeros, and perhaps the footer that stood there before a growth that was cut off.
func (w *fixedWriter) emptyBehind() (bool, error) {
	from, n := w.Size(), w.tail-w.Size()
	if n <= 0 {
		return false, nil
	}
	b := make([]byte, footerSize)
	if err := readFull(w.file, b, from, "bytes behind the disk"); err != nil {
		return false, err
	}
	if string(b) == string(w.foot.raw[:]) {
		from, n = from+footerSize, n-footerSize
	}
	return allZeros(w.file, from, n)
}

// cutBehind brings the footer right behind the disk.
func (w *fixedWriter) cutBehind() error {
	if err := w.begin(); err != nil {
		return err
	}
	to := w.Size()
	if _, err := w.file.WriteAt(w.foot.raw[:], to); err != nil {
		return err
	}
	if err := w.sync("vhd.trim"); err != nil {
		return err
	}
	if err := w.file.Truncate(to+footerSize, "vhd.trim"); err != nil {
		return err
	}
	if err := w.sync("vhd.cut"); err != nil {
		return err
	}
	w.tail = to
	w.describe(&w.foot)
	return nil
}
