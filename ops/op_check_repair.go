package ops

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// repair mends the image of a report and reports anew.
//
// Each change is in the image's undo log and in the log of the folder, durably,
// before it is made, so that they tell of everything that may have been changed, wherever a crash was.
func (r *Request) repair(ctx context.Context, reports []Report) (Fields, error) {
	mended := []Anomaly{}
	found, err := r.Library.Inspect(r.Image)
	switch {
	case err != nil:
	case r.damagedSet(found):
		var a *Anomaly
		if a, err = r.rebuildSet(); a != nil {
			mended = append(mended, *a)
		}
	default:
		err = r.mend(ctx, len(reports[0].Anomalies) == 0, &mended)
	}
	fields := Fields{{"Mended", mended}}
	left, lerr := r.checkChain(ctx)
	if lerr == nil {
		fields = append(fields, Field{"Left", left})
	}
	if err != nil || lerr != nil {
		return fields, errors.Join(err, lerr)
	}
	return fields, judge(left, errLeft)
}

// mend lets the format mend what it can, with the image for itself alone and
// without its parents, which may be what is missing. A sound one is left alone.
func (r *Request) mend(ctx context.Context, sound bool, mended *[]Anomaly) (err error) {
	o, err := r.Library.Operate(r.Image, Terms{Name: nameCheck, Quiet: true, Alone: true, Repair: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	undo := &undoLog{image: o.Image()}
	return o.Do(func(w Writer) error {
		repairer, ok := w.(Repairer)
		switch {
		case sound:
			return nil
		case !ok:
			return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: an image of this kind cannot be mended", r.Image.Path())
		}
		if err := o.engine().dropTracking(); err != nil { // nobody says what is read differently then
			return err
		}
		return repairer.Repair(ctx, func(a Anomaly) error {
			rec := undoRecord{Time: time.Now().UTC(), Operation: nameCheck, Mends: &a}
			if err := undo.add(rec); err != nil {
				return fmt.Errorf("record of %s in %s: %w", a.Name, undo.Path(), err)
			}
			if err := r.note("mends %s at %s: %s", a.Name, a.Where, a.Text); err != nil {
				return fmt.Errorf("log: %w", err)
			}
			*mended = append(*mended, a)
			return nil
		})
	})
}
