package ops

import (
	"context"
	"errors"
	"math"
)

const opMergeName = "merge"

// opMerge folds a differencing disk into one that it was made from.
var opMerge = &Op{
	Name:    opMergeName,
	Method:  "MergeVirtualHardDisk",
	Brief:   "fold the disk, and all between, into its parent or an older ancestor",
	JobType: 5,
	Writes:  true,
	Plans:   true,
	Args: []Arg{
		{Name: "DestinationPath", Short: "into", Kind: ArgPath, Bare: true, Help: "the ancestor that is to hold everything, default the direct parent"},
		{Name: "Keep", Kind: ArgBool, Help: "set to true leaves the merged files, cut off from their parent; otherwise they are removed when all is durable"},
		{Name: "Force", Kind: ArgBool, Help: "set to true goes on although it breaks other images that were made from a disk that changes"},
	},
	Can: func(f *Found) bool { return f.Set == nil && f.Info.Type == Differencing },
	Run: runMerge,
}

// runMerge begins a merge, or goes on with the one that the image is part of.
func runMerge(ctx context.Context, r *Request) (_ Fields, err error) {
	found, err := r.Library.Inspect(r.Image)
	if err != nil {
		return nil, err
	}
	pending, err := r.Library.mergeOf(r.Image, found.Stat.ID, found.Info.LinkID)
	if err != nil {
		return nil, err
	}
	source := r.Image
	switch {
	case pending != nil && pending.state == mergeEnded:
		return r.endMerge(pending)
	case pending != nil && pending.role == roleSource: // by whatever name it has now
	case pending != nil:
		var ok bool
		if source, ok = r.Library.refAt(pending.Source, r.Image.Dir); !ok {
			return nil, pending.refusal(r.Image.Path())
		}
	case found.Set != nil:
		return nil, Errorf(errors.ErrUnsupported, StatusWrongType, "%s is a set: its disks are merged by optimize", r.Image.Path())
	case found.Err != nil:
		return nil, found.Err
	case found.Info.Type != Differencing:
		return nil, Errorf(errors.ErrUnsupported, StatusWrongType, "%s is a %s disk: it has no parent that it could be merged into", r.Image.Path(), found.Info.Type)
	}
	m, err := r.openMerge(ctx, source, pending, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if m.warnings, err = m.tracksNoMore(); err != nil {
		return nil, err
	}
	if r.Dry {
		return m.planned(), m.plan.Enough(m.dest().ref.Path())
	}
	if err := m.plan.Enough(m.dest().ref.Path()); err != nil {
		return nil, err
	}
	if m.state == mergeVoid {
		for _, folder := range mergeFolders(m.files()) {
			if err := r.Library.sweepMerges(folder); err != nil {
				return nil, err
			}
		}
	}
	r.Begin(m.plan.Move)
	if r.Progress != nil {
		m.mover.progress = func(done int64) { r.Progress(done, max(done, m.plan.Move)) }
	}
	err = m.run(ctx)
	return m.fields(), err
}

// endMerge removes what a merge left that was broken off at its end.
func (r *Request) endMerge(p *PendingMerge) (_ Fields, err error) {
	files, err := r.Library.mergeFiles(p.record, r.Image.Dir)
	if err != nil {
		return nil, err
	}
	f := Fields{{"Path", files[len(files)-1].Path()}}
	if r.Dry {
		plan := Plan{Free: math.MaxInt64, Size: p.record.Size}
		for _, ref := range files[:len(files)-1] {
			if _, err := ref.Dir.Stat(ref.Name); err == nil && !p.record.Keep {
				plan.Removes = append(plan.Removes, ref.Path())
			}
		}
		return append(plan.Fields(), f...), nil
	}
	n, err := r.Library.resumeEnd(p.record, r.Image.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.journal.close()) }()
	err = n.run()
	return append(f, Field{"Removed", append([]string{}, n.removed...)}), err
}

// planned is the answer to a dry request.
func (m *merger) planned() Fields {
	kids := []string{}
	for _, k := range m.kids {
		kids = append(kids, k.ref.Path())
	}
	return m.warned(append(m.plan.Fields(), Field{"Path", m.dest().ref.Path()}, Field{"Reparents", kids}, Field{"Resumes", m.state != mergeVoid}))
}

func (m *merger) fields() Fields {
	return m.warned(Fields{
		{"Path", m.dest().ref.Path()},
		{"BytesMoved", m.mover.moved()},
		{"Reparented", append([]string{}, m.reparented...)},
		{"Removed", append([]string{}, m.removed...)},
	})
}

func (m *merger) warned(f Fields) Fields {
	if len(m.warnings) > 0 {
		f = append(f, Field{"Warnings", m.warnings})
	}
	return f
}
