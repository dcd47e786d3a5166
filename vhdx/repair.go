package vhdx

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vhdfs/ops"
)

// Names of anomalies that a header written over the copy that does not count ends,
// that a log which is done with ends, and that both region tables written ends.
var (
	headerNames = []string{"vhdx.header.invalid", "vhdx.header.equal"}
	logNames    = []string{anomalyEmpty, anomalyDirty}
	regionNames = []string{"vhdx.region.invalid", "vhdx.region.mismatch"}
)

// maxMendReports is how many entries of the block table are reported one by one.
const maxMendReports = 1000

// Repair mends headers, log, region tables and entries of the block table, and
// gives back space that nobody uses; see [ops.Repairer]. The order:
//
//	header over the bad or older copy; sync    the same content, without a log that
//	                                           holds nothing
//	replay of a dirty log; sync; header        a crash repeats it
//	one log entry with both region tables      the bad copy, or both good
//	entries of the block table; flush          each as it was, or mended
//	free space punched; sync; the file cut     a crash may leave it: free space
//
// A log is emptied, a region table preferred, and an entry mended only if the block
// table is sound with that: no block past the end of the file, none where another
// one is. Entries with reserved bits are mended where nothing but these bits is
// wrong with them.
func (w *Writer) Repair(ctx context.Context, report func(ops.Anomaly) error) error {
	m := &mending{w: w, report: report}
	sound, err := m.survey(ctx)
	if err != nil {
		return err
	}
	if err := m.tell(append(m.found, m.listed...)); err != nil {
		return err
	}
	if err := m.headers(); err != nil || !sound {
		return err
	}
	if err := m.regions(); err != nil {
		return err
	}
	if err := m.entries(ctx); err != nil {
		return err
	}
	return m.space(ctx)
}

// mending is one run of Repair.
type mending struct {
	w      *Writer
	report func(ops.Anomaly) error
	found  []ops.Anomaly // of headers, log and region tables, that are to be mended
	listed []ops.Anomaly // of the block table, as far as they are reported one by one
	bad    []uint64      // a bit for each BAT index whose entry is to be mended; nil for none
	n      int64         // such entries
}

func (m *mending) tell(list []ops.Anomaly) error {
	for _, a := range list {
		if err := m.report(a); err != nil {
			return err
		}
	}
	return nil
}

func (m *mending) has(names []string) bool {
	return slices.ContainsFunc(m.found, func(a ops.Anomaly) bool { return slices.Contains(names, a.Name) })
}

// survey lists what can be mended; sound says that the block table is, or will be.
func (m *mending) survey(ctx context.Context) (sound bool, err error) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.poison != nil:
		return false, w.poison
	case w.readOnly != "" && w.logState != ops.LogEmpty, w.headers.current.seq == ^uint64(0):
		return false, nil // nothing in the file says how to end that
	}
	_, err = w.surveyLocked(lookout{unreserved: true, kept: m.noteKept})
	if err != nil && !errors.Is(err, ops.ErrCorrupt) {
		return false, err
	}
	sound = err == nil
	if !sound && w.logState == ops.LogEmpty {
		return false, nil // what is wrong may be what the log was to change
	}
	names := append(headerNames[:len(headerNames):len(headerNames)], logNames...)
	if sound {
		names = append(names, regionNames...)
	}
	for _, a := range w.found {
		if slices.Contains(names, a.Name) {
			m.found = append(m.found, a)
		}
	}
	if !sound {
		return false, nil
	}
	return true, m.noteReserved(ctx)
}

// noteKept notes a block without content that names space which it cannot have.
func (m *mending) noteKept(i int64, e entry, shared bool) {
	switch {
	case e.state() == stateNotPresent || e.state() == stateZero:
		m.note("vhdx.bat.offset", i, e)
	case shared:
		m.note("vhdx.bat.overlap", i, e)
	}
}

// noteReserved notes the entries with which nothing but reserved bits is wrong, in a
// table that is sound without these.
func (m *mending) noteReserved(ctx context.Context) error {
	g := m.w.geometry
	skip := func(int64, int64) bool { return ctx.Err() == nil }
	err := m.w.scanBAT(0, g.entries, skip, func(i int64, e entry) bool {
		if g.unreserved(i, e) != e {
			name := "vhdx.bat.invalid"
			if g.isBitmap(i) {
				name = "vhdx.bat.bitmap"
			}
			m.note(name, i, e)
		}
		return i%checkEvery != 0 || ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if more := m.n - maxMendReports; err == nil && more > 0 {
		m.listed = append(m.listed, ops.Anomaly{
			Name: "vhdx.bat.invalid", Severity: ops.Warning, Where: "bat", Text: fmt.Sprintf("%d more entries like these", more),
		})
	}
	return err
}

func (m *mending) note(name string, i int64, e entry) {
	if m.bad == nil {
		m.bad = make([]uint64, ceilDiv(m.w.geometry.entries, 64))
	}
	m.bad[i/64] |= 1 << (i % 64)
	if m.n++; m.n > maxMendReports {
		return
	}
	m.listed = append(m.listed, ops.Anomaly{
		Name: name, Severity: ops.Warning, Where: fmt.Sprintf("bat entry %d", i),
		Text: fmt.Sprintf("%#x becomes %#x", uint64(e), uint64(mended(e))),
	})
}

// mended is what an entry that can be mended becomes: a block that has content
// keeps state and place, any other its state.
func mended(e entry) entry {
	if e.present() {
		return e &^ entry(reservedMask)
	}
	return newEntry(e.state(), 0)
}

// unreserved is the entry at BAT index i without reserved bits, where nobody can
// have meant anything by them: it has content, or names no space.
func (g geometry) unreserved(i int64, e entry) entry {
	if uint64(e)&reservedMask == 0 || !e.present() && e.offset() != 0 || g.isBitmap(i) && !g.hasParent {
		return e
	}
	return e &^ entry(reservedMask)
}

// headers makes both headers good ones, and the log one that has nothing to
// replay.
func (m *mending) headers() error {
	if !m.has(headerNames) && !m.has(logNames) {
		return nil
	}
	w := m.w
	w.flushing.Lock()
	defer w.flushing.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poison != nil || w.session != nil {
		return w.poison
	}
	if w.logState == ops.LogEmpty {
		return w.emptyLogLocked()
	}
	h := w.headers.current
	h.fileWrite = ops.NewGUID()
	if err := w.putHeaderLocked(h, "vhdx.header.file"); err != nil {
		return err
	}
	w.newFile = true
	return w.replayLocked()
}

// emptyLogLocked ends a log that is said to be in use and has no valid entry:
// nothing that it holds was, or will be, carried out.
func (w *Writer) emptyLogLocked() error {
	h := w.headers.current
	h.log, h.fileWrite = ops.GUID{}, ops.NewGUID()
	if err := w.putHeaderLocked(h, "vhdx.header.emptied"); err != nil {
		return err
	}
	w.newFile, w.logState, w.readOnly = true, ops.LogClean, ""
	w.mendedLocked(anomalyEmpty)
	return nil
}

// begin begins a session over a table whose entries are still to be mended.
func (m *mending) begin() error {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poison != nil || w.session != nil {
		return w.poison
	}
	s, err := w.surveyLocked(lookout{unreserved: true})
	if err != nil {
		return err
	}
	return w.beginOnLocked(s, ops.GUID{})
}

// regions makes both region tables the one that is believed.
func (m *mending) regions() error {
	if !m.has(regionNames) {
		return nil
	}
	if err := m.begin(); err != nil {
		return err
	}
	w := m.w
	w.flushing.Lock()
	defer w.flushing.Unlock()
	err := w.amend(func(a *amendment) error { return w.putRegions(a, w.regions.bat) })
	if err != nil {
		return fmt.Errorf("vhdx: region tables: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mendedLocked(regionNames...)
	return nil
}

// entries mends what survey noted in the block table, and looks anew at what is
// free then.
func (m *mending) entries(ctx context.Context) error {
	if m.n == 0 {
		return nil
	}
	if err := m.begin(); err != nil {
		return err
	}
	w := m.w
	for word := range m.bad {
		if m.bad[word] == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(err, w.Flush())
		}
		if err := w.roomForChange(); err != nil {
			return err
		}
		if err := m.mendWord(word); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return w.surveyAgain()
}

// mendWord mends the entries of one word of the map of bad ones.
func (m *mending) mendWord(word int) error {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := int64(word) * 64; i < min(int64(word+1)*64, w.geometry.entries); i++ {
		if m.bad[word]&(1<<(i%64)) == 0 {
			continue
		}
		e, err := w.entryAt(i)
		if err != nil {
			return err
		}
		if to := mended(e); to != e {
			if err := w.setEntryLocked(i, to); err != nil {
				return err
			}
		}
	}
	return nil
}

var _ ops.Repairer = (*Writer)(nil)
