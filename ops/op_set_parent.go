package ops

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

const nameSetParent = "set-parent"

// opSetParent makes a differencing image record another parent, or the same one
// where it is now.
var opSetParent = &Op{
	Name:   nameSetParent,
	Method: "SetParentVirtualHardDisk",
	Brief:  "record where the parent is, or another one",
	Writes: true,
	Plans:  true,
	Can:    isDifferencing,
	Args: []Arg{
		{Name: "ParentPath", Short: "parent", Kind: ArgPath, Bare: true, Help: "the image that is to be the parent"},
		{Name: "IgnoreIDMismatch", Kind: ArgBool, Default: "false", Help: "take a parent with another id: right only where its disk is that of the parent lost, byte for byte; dryrun shows the evidence"},
		{Name: "LeafPath", Short: "leaf", Kind: ArgPath, Help: "an image that reads through this one: its chain must not get too long"},
		{Name: "Undo", Kind: ArgBool, Default: "false", Help: "put back what was recorded before the last change, in place of a parent"},
	},
	OneOf: true,
	Run:   runSetParent,
}

func isDifferencing(f *Found) bool { return f.Info.Parent != nil }

// newParent is a file that is to be recorded as the parent of an image.
type newParent struct {
	typed string // as the request says it
	child *Found
	links []Link // from the parent on, as far as they can be found
}

func (p *newParent) found() *Found { return p.links[0].Found }

// runSetParent writes nothing before everything that a request can have wrong has
// been looked at.
func runSetParent(ctx context.Context, r *Request) (Fields, error) {
	child, err := r.differencing()
	if err != nil {
		return nil, err
	}
	if r.Args.Bool("Undo") {
		return r.undoParent(child)
	}
	if !r.Args.Has("ParentPath") {
		return nil, Errorf(ErrUsage, 0, "set-parent: parent is required; it is the image that is to be the parent")
	}
	p, err := r.newParent(child, r.Args.Text("ParentPath"))
	if err == nil {
		err = r.fitsBelowLeaf(p)
	}
	if err != nil {
		return nil, err
	}
	return r.setParent(ctx, p, r.Args.Bool("IgnoreIDMismatch"))
}

// differencing is the image of the request, of a set its active disk.
func (r *Request) differencing() (*Found, error) {
	found, err := r.Library.Inspect(r.Image)
	switch {
	case err != nil:
		return nil, err
	case found.Err != nil:
		return nil, found.Err
	case found.Info.Parent == nil:
		return nil, Errorf(errors.ErrUnsupported, StatusWrongType, "%s: a %s image has no parent", r.Image.Path(), found.Info.Type)
	}
	return found.itself(), nil
}

// newParent looks at what a request names, without locks.
func (r *Request) newParent(child *Found, typed string) (*newParent, error) {
	lib := r.Library
	ref, err := r.place("parent", typed, slices.Concat(lib.opts.Search, lib.opts.Allow)...)
	if err != nil {
		return nil, err
	}
	// Nor will it be found later through a symbolic link.
	found, err := lib.inspect(ref, Read|NoFollow, false)
	if err == nil {
		err = found.Err
	}
	if err != nil {
		return nil, fmt.Errorf("parent=%q: %w", typed, err)
	}
	p := &newParent{typed: typed, child: child}
	if p.links, err = lib.ChainOf(ref); err != nil {
		return nil, err
	}
	return p, p.judge()
}

// judge says why a file cannot be the parent whatever its id is.
func (p *newParent) judge() error {
	own, found := p.child, p.found()
	loop := slices.IndexFunc(p.links, func(l Link) bool { return l.Found.itself().Stat.ID == own.Stat.ID })
	switch {
	case found.Format.Number != own.Format.Number:
		return Errorf(ErrUsage, StatusWrongType, "parent=%q: a %s image cannot be the parent of a %s image", p.typed, found.Format.Name, own.Format.Name)
	case loop == 0:
		return Errorf(ErrCycle, StatusCycle, "parent=%q: %s cannot be its own parent", p.typed, own.Ref.Path())
	case loop > 0:
		return Errorf(ErrCycle, StatusCycle, "parent=%q: %s reads through %s", p.typed, found.Ref.Path(), own.Ref.Path())
	case len(p.links)+1 > MaxChain:
		return tooDeep(own.Ref)
	case found.Info.LinkID.IsZero():
		return Errorf(ErrUsage, StatusIDMismatch, "parent=%q: %s has no id that could be recorded", p.typed, found.Ref.Path())
	case found.Info.LogicalSector != own.Info.LogicalSector:
		return Errorf(ErrUsage, StatusSectorSize, "parent=%q: %s has logical sectors of %d bytes, %s of %d",
			p.typed, found.Ref.Path(), found.Info.LogicalSector, own.Ref.Path(), own.Info.LogicalSector)
	case found.Size != own.Size && own.Format.Number == FormatVHD:
		return Errorf(ErrUsage, StatusSizeMismatch, "parent=%q: the disk of %s has %d bytes, that of %s %d; those of VHDs are alike",
			p.typed, found.Ref.Path(), found.Size, own.Ref.Path(), own.Size)
	}
	return nil
}

// fitsBelowLeaf looks at the leaf that a request names: its chain, which has to
// lead through the image, gets the new parent's.
func (r *Request) fitsBelowLeaf(p *newParent) error {
	if !r.Args.Has("LeafPath") {
		return nil
	}
	typed := r.Args.Text("LeafPath")
	ref, err := r.place("leaf", typed, slices.Concat(r.Library.opts.Search, r.Library.opts.Allow)...)
	if err != nil {
		return err
	}
	links, err := r.Library.ChainOf(ref)
	if err != nil {
		return fmt.Errorf("leaf=%q: %w", typed, err)
	}
	at := slices.IndexFunc(links, func(l Link) bool { return l.Found.itself().Stat.ID == p.child.Stat.ID })
	switch {
	case at < 0:
		return Errorf(ErrUsage, 0, "leaf=%q: %s does not read through %s", typed, ref.Path(), p.child.Ref.Path())
	case at+1+len(p.links) > MaxChain:
		return tooDeep(ref)
	}
	return nil
}

// setParent records p, unless its id is not the recorded one and that is not to
// be ignored. The evidence is in the answer where it is needed to decide.
func (r *Request) setParent(ctx context.Context, p *newParent, ignore bool) (Fields, error) {
	child, found := p.child, p.found()
	matches := records(child, found.Info.LinkID)
	var fields Fields
	if !matches || r.Dry {
		e := weighHeaders(child, found)
		present := r.present(child)
		if present != nil && present.Found.itself().Stat.ID == found.Stat.ID {
			present = nil
		}
		if err := r.Library.weighContent(ctx, e, child.Ref, found.Ref, present); err != nil {
			return nil, err
		}
		fields = Fields{{"Evidence", e}}
	}
	if !matches && !ignore {
		return fields, p.mismatch()
	}
	change, err := p.change(nameSetParent)
	if err != nil {
		return fields, err
	}
	if r.Dry {
		return append(change.plan(), fields...), nil
	}
	r.Begin(0)
	err = r.relink(change, p)
	return append(change.fields(r.Library, err), fields...), err
}

// mismatch says that the id of p is not, or cannot be told to be, the recorded one.
func (p *newParent) mismatch() error {
	recorded := "recorded in " + p.child.Ref.Path() + " is " + idList(p.child.Info.Parent.IDs)
	if err := p.child.Info.Parent.Err; err != nil {
		recorded = "whether " + p.child.Ref.Path() + " was made on it cannot be told: " + err.Error()
	}
	return Errorf(ErrParentMismatch, StatusIDMismatch, "parent=%q: %s has id %s, %s; ignoreidmismatch=true goes on, if Evidence bears it out",
		p.typed, p.found().Ref.Path(), p.found().Info.LinkID, recorded)
}

// present is the parent that the image is read through now, nil without one.
func (r *Request) present(child *Found) *Link {
	links, err := r.Library.ChainOf(child.Ref)
	if err != nil || len(links) < 2 {
		return nil
	}
	return &links[1]
}

// relinking is one change of what an image records of its parent.
type relinking struct {
	child  Ref
	to     CreateParent
	record undoRecord
	undo   *undoLog
}

// change is what recording p writes.
func (p *newParent) change(operation string) (*relinking, error) {
	child, found := p.child.Ref, p.found()
	relative, err := relativePath(child.Path(), found.Ref.Path())
	if err != nil {
		return nil, err
	}
	c := &relinking{child: child, undo: &undoLog{image: child}, to: CreateParent{
		LinkID: found.Info.LinkID, DiskID: found.Info.DiskID, Timestamp: found.Stat.Mtime,
		Relative: relative, Absolute: found.Ref.Path(),
	}}
	c.record = undoRecord{Time: time.Now().UTC(), Operation: operation, Before: newParentRecord(p.child.Info.Parent), After: c.to.record(p.child)}
	return c, nil
}

// record is what an image says of its parent once p is written to it.
func (p *CreateParent) record(child *Found) *parentRecord {
	r := &Parent{IDs: []GUID{p.LinkID}}
	if !p.NextID.IsZero() {
		r.IDs = append(r.IDs, p.NextID)
	}
	if !child.Info.Parent.Timestamp.IsZero() { // a format that stores it
		r.Timestamp = p.Timestamp
	}
	if p.Relative != "" {
		r.Paths = append(r.Paths, ParentPath{PathRelative, p.Relative})
	}
	if p.Absolute != "" {
		r.Paths = append(r.Paths, ParentPath{PathAbsolute, p.Absolute})
	}
	if p.Volume != "" && child.Format.Number == FormatVHDX {
		r.Paths = append(r.Paths, ParentPath{PathVolume, p.Volume})
	}
	return newParentRecord(r)
}

// relink makes the image record another parent. In this order, each step durable
// before the next:
//
//	undo record    the old link, and a record of a change that never began
//	SetParent      the old link or the new one
//
// Nobody has the image open meanwhile, and nobody writes the parent.
func (r *Request) relink(c *relinking, p *newParent) (err error) {
	o, err := r.Library.Operate(r.Image, Terms{Name: c.record.Operation, Alone: true, Quiet: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	if now := o.Info().Parent; now == nil || !c.record.Before.same(newParentRecord(now)) {
		return Errorf(ErrChanged, 0, "%s was given another parent meanwhile", c.child.Path())
	}
	if p != nil {
		parent, err := r.Library.holdParent(p)
		if err != nil {
			return err
		}
		if parent != nil {
			defer func() { err = errors.Join(err, parent.Close()) }()
		}
	}
	return o.Do(func(w Writer) error {
		relinker, ok := w.(Relinker)
		if !ok {
			return Errorf(errors.ErrUnsupported, StatusWrongType, "%s: the parent of this image cannot be changed", c.child.Path())
		}
		if c.record.Unread, err = relinker.UnreadParent(); err != nil {
			return err
		}
		if err := c.undo.add(c.record); err != nil {
			return fmt.Errorf("undo record %s: %w", c.undo.Path(), err)
		}
		if err := o.trackParent(c.to.LinkID); err != nil {
			return err
		}
		return relinker.SetParent(c.to)
	})
}

// holdParent keeps writers out of a parent that is about to be recorded, and makes
// sure that it is what was looked at. One whose own chain is broken cannot be
// opened for writing by anybody: nil.
func (l *Library) holdParent(p *newParent) (*Handle, error) {
	if p.links[len(p.links)-1].Err != nil {
		return nil, nil
	}
	h, err := l.openStill(p.found().Ref)
	if err != nil {
		return nil, err
	}
	if err := h.Flush(); err != nil { // of a writer that has gone
		return nil, errors.Join(err, h.Close())
	}
	if h.engine().id != p.found().Stat.ID || h.Info().LinkID != p.found().Info.LinkID || h.Size() != p.found().Size {
		return nil, errors.Join(Errorf(ErrChanged, StatusIDMismatch, "parent=%q: %s changed meanwhile", p.typed, p.found().Ref.Path()), h.Close())
	}
	return h, nil
}

// plan is the answer to a dry request.
func (c *relinking) plan() Fields {
	return append(Fields{{"DryRun", true}, {"Changes", []string{c.child.Path(), c.undo.Path()}}}, c.recorded()...)
}

func (c *relinking) recorded() Fields {
	return Fields{{"Recorded", c.record.After}, {"RecordedBefore", c.record.Before}}
}

// fields are the answer after a change that ended in err.
func (c *relinking) fields(lib *Library, err error) Fields {
	if err != nil {
		return nil
	}
	f := append(c.recorded(), Field{"UndoRecord", c.undo.Path()})
	if w := c.warnings(lib); len(w) > 0 {
		f = append(f, Field{"Warnings", w})
	}
	return f
}

// warnings say what stands between the image and its new parent.
func (c *relinking) warnings(lib *Library) []string {
	links, err := lib.ChainOf(c.child)
	if err != nil {
		return []string{err.Error()}
	}
	switch first, last := &links[0], &links[len(links)-1]; {
	case len(links) == 1 && first.Err != nil:
		return []string{first.Err.Error() + "; name the parent's folder with --allow-parent or --search when the image is used"}
	case len(links) > 1 && links[1].Ref.Path() != c.to.Absolute && c.to.Absolute != "":
		return append(first.Warnings, "the parent that is found is "+links[1].Ref.Path())
	case last.Err != nil:
		return append(first.Warnings, "the parent's own chain is broken: "+last.Err.Error())
	default:
		return first.Warnings
	}
}

// same tells whether two records name the same parent by the same paths.
func (r *parentRecord) same(o *parentRecord) bool {
	for _, kind := range []PathKind{PathRelative, PathAbsolute, PathVolume} {
		if oneForm(r.first(kind)) != oneForm(o.first(kind)) {
			return false
		}
	}
	return r.Error == o.Error && slices.Equal(r.Identifiers, o.Identifiers)
}

// oneForm is a recorded path in one form, whoever wrote it.
func oneForm(p string) string { return path.Clean(strings.ReplaceAll(p, `\`, "/")) }
