package ops

import (
	"context"
	"errors"
	"fmt"
)

// MaxFindings bounds the anomalies that a check lists for one image: enough for
// a person, few enough for a report on a table of which every entry is bad. All
// of them are counted.
const MaxFindings = 1000

const nameCheck = "check"

// opCheck looks for every anomaly, not only for those that stop a reader.
var opCheck = &Op{
	Name:     nameCheck,
	Brief:    "report every anomaly of the image and of every parent, and mend the image",
	WritesIf: func(a Args) bool { return a.Bool("Repair") },
	Plans:    true,
	Args: []Arg{
		{Name: "Repair", Kind: ArgBool, Default: "false", Help: "mend what can be mended without guessing, of this image and not of its parents; each change is written to .vhdfs-state first"},
		{Name: "Profile", Kind: ArgWord, Words: []Word{{"azure", 1}, {"windows", 2}}, Help: "report, too, what would be refused there"},
	},
	Run: runCheck,
}

// Report is what a check found in one image of a chain.
type Report struct {
	Path      string
	Format    string
	Errors    int
	Warnings  int
	Notes     int
	Anomalies []Anomaly // the first [MaxFindings]
}

func (r *Report) add(a Anomaly) {
	switch a.Severity {
	case Broken:
		r.Errors++
	case Warning:
		r.Warnings++
	default:
		r.Notes++
	}
	if len(r.Anomalies) < MaxFindings {
		r.Anomalies = append(r.Anomalies, a)
	}
}

func (r *Report) bad() int { return r.Errors + r.Warnings }

// runCheck answers [ErrCorrupt] when an image has, or is left with, warnings or
// errors; notes alone are success. It goes on past what it finds. Without repair
// it writes nothing.
func runCheck(ctx context.Context, r *Request) (Fields, error) {
	if _, err := r.Library.Inspect(r.Image); err != nil {
		return nil, err
	}
	r.Begin(0)
	reports, err := r.checkChain(ctx)
	fields := Fields{{"Images", reports}}
	if err != nil {
		return fields, err
	}
	if r.Args.Bool("Repair") && !r.Dry {
		more, err := r.repair(ctx, reports)
		return append(fields, more...), err
	}
	return fields, judge(reports, errFindings)
}

// Outcomes of a check, as kinds of [ErrCorrupt] with advice of their own.
var (
	errFindings = errors.New("has findings")
	errLeft     = errors.New("has findings that are left")
)

// judge is the outcome of a check; why is one of its kinds.
func judge(reports []Report, why error) error {
	bad := 0
	for i := range reports {
		bad += reports[i].bad()
	}
	if bad == 0 {
		return nil
	}
	return &findings{bad, len(reports), why}
}

// findings is the failure of a check.
type findings struct {
	bad, images int
	why         error
}

func (f *findings) Error() string {
	return fmt.Sprintf("check: %d findings in %d images: %v", f.bad, f.images, ErrCorrupt)
}

func (f *findings) Unwrap() []error { return []error{ErrCorrupt, f.why} }

// checkChain reports on the image and every parent as far as they are found.
func (r *Request) checkChain(ctx context.Context) ([]Report, error) {
	links, err := r.Library.ChainOf(r.Image)
	if err != nil {
		return nil, err
	}
	reports := []Report{}
	for i := range links {
		rep, err := checkImage(ctx, r.Library, &links[i])
		for _, a := range r.profile(links, i) {
			rep.add(a)
		}
		if links[i].Found.Set != nil {
			r.Library.checkSet(links[i].Found, rep.add)
		}
		reports = append(reports, rep)
		if err != nil {
			return reports, err
		}
	}
	return reports, nil
}

// checkTries is how often a check begins anew because the file was written
// meanwhile: what it sees of two states at once is no finding.
const checkTries = 3

func checkImage(ctx context.Context, lib *Library, l *Link) (Report, error) {
	found := l.Found
	for try := 1; ; try++ {
		rep := Report{Path: l.Ref.Path(), Anomalies: []Anomaly{}}
		if found.Format != nil {
			rep.Format = found.Format.Name
		}
		for _, a := range found.Info.Anomalies {
			rep.add(a)
		}
		for _, w := range l.Warnings {
			rep.add(Anomaly{Name: "chain.parent.warning", Severity: Warning, Where: "parent", Text: w})
		}
		if found.Err != nil {
			rep.add(Anomaly{Name: "image.open", Severity: Broken, Where: "image", Text: found.Err.Error()})
			return rep, nil
		}
		if l.Err != nil && !errors.Is(l.Err, errUnrecorded) { // opening named that
			rep.add(Anomaly{Name: linkAnomaly(l.Err), Severity: Broken, Where: "parent", Text: l.Err.Error()})
		}
		moved, err := lib.checkLayer(ctx, l.Ref, func(layer Layer) error {
			if c, ok := layer.(Checker); ok {
				return c.Check(ctx, rep.add)
			}
			return nil
		})
		if !moved || try == checkTries || ctx.Err() != nil {
			return rep, err
		}
		if found, err = lib.Inspect(l.Ref); err != nil {
			return rep, err
		}
	}
}

// checkLayer runs look on one image; moved says that the file was changed
// meanwhile by a writer that look did not see.
func (l *Library) checkLayer(ctx context.Context, r Ref, look func(Layer) error) (moved bool, err error) {
	before, err := l.Inspect(r)
	if err != nil {
		return false, err
	}
	layer, err := l.OpenLayer(r)
	if err != nil {
		return false, err
	}
	l.guard("check "+r.Path(), &err, func() { err = errors.Join(look(layer), layer.Close()) })
	if _, ours := layer.(*borrowed); ours || ctx.Err() != nil {
		return false, err
	}
	st, serr := before.Leaf.Dir.Stat(before.Leaf.Name)
	if serr != nil {
		return false, errors.Join(err, serr)
	}
	was := before.itself().Stat
	return l.writing(was.ID) != nil || st.ID != was.ID || st.Size != was.Size || !st.Mtime.Equal(was.Mtime), err
}

// linkAnomaly names the trouble with a parent.
func linkAnomaly(err error) string {
	switch {
	case errors.Is(err, ErrParentMissing):
		return "chain.parent.missing"
	case errors.Is(err, ErrParentMismatch):
		return "chain.parent.mismatch"
	case errors.Is(err, ErrCycle):
		return "chain.cycle"
	}
	return "chain.parent.refused"
}
