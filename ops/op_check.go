package ops

import (
	"context"
	"errors"
)

// MaxFindings bounds the anomalies that a check lists for one image: enough for
// a person, few enough for a report on a table of which every entry is bad. All
// of them are counted.
const MaxFindings = 1000

// opCheck looks for every anomaly, not only for those that stop a reader.
var opCheck = &Op{
	Name:  "check",
	Brief: "report every anomaly of the image and of every parent",
	Run:   runCheck,
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

// runCheck answers [ErrCorrupt] when an image has warnings or errors; notes
// alone are success. It goes on past what it finds, and writes nothing.
func runCheck(ctx context.Context, r *Request) (Fields, error) {
	links, err := r.Library.ChainOf(r.Image)
	if err != nil {
		return nil, err
	}
	r.Begin(0)
	reports := make([]Report, len(links))
	bad := 0
	for i := range links {
		reports[i], err = checkImage(ctx, r.Library, &links[i])
		if err != nil {
			return Fields{{"Images", reports[:i+1]}}, err
		}
		bad += reports[i].Errors + reports[i].Warnings
	}
	if bad > 0 {
		err = Corruptf(0, "check: %d findings in %d images", bad, len(links))
	}
	return Fields{{"Images", reports}}, err
}

func checkImage(ctx context.Context, lib *Library, l *Link) (Report, error) {
	rep := Report{Path: l.Ref.Path(), Anomalies: []Anomaly{}}
	if l.Found.Format != nil {
		rep.Format = l.Found.Format.Name
	}
	for _, a := range l.Found.Info.Anomalies {
		rep.add(a)
	}
	for _, w := range l.Warnings {
		rep.add(Anomaly{Name: "chain.parent.warning", Severity: Warning, Where: "parent", Text: w})
	}
	if l.Found.Err != nil {
		rep.add(Anomaly{Name: "image.open", Severity: Broken, Where: "image", Text: l.Found.Err.Error()})
		return rep, nil
	}
	if l.Err != nil {
		rep.add(Anomaly{Name: linkAnomaly(l.Err), Severity: Broken, Where: "parent", Text: l.Err.Error()})
	}
	layer, err := lib.OpenLayer(l.Ref)
	if err != nil {
		return rep, err
	}
	if c, ok := layer.(Checker); ok {
		err = c.Check(ctx, rep.add)
	}
	return rep, errors.Join(err, layer.Close())
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
