package ops

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"math"
	"path"
	"slices"
	"time"
)

// minDisk is the smallest VHD and VHDX that Windows makes.
const minDisk = 3 << 20

// Arguments that making an image has, whatever it is made of.
var (
	argPath   = Arg{Name: "Path", Kind: ArgNewPath, Required: true, Bare: true, Help: "the file to be made"}
	argType   = Arg{Name: "Type", Kind: ArgWord, Words: []Word{{"fixed", 2}, {"dynamic", 3}, {"differencing", 4}}}
	argParent = Arg{Name: "ParentPath", Short: "parent", Kind: ArgPath, Help: "the image that a differencing one is a child of"}
	argSize   = Arg{Name: "MaxInternalSize", Short: "size", Kind: ArgSize}
	argBlock  = Arg{Name: "BlockSize", Short: "block", Kind: ArgSize, Help: "512K or 2M of a VHD, a power of two from 1M to 256M of a VHDX, default 0: 2M, and 32M of a dynamic VHDX"}
	argPhys   = Arg{Name: "PhysicalSectorSize", Short: "physical", Kind: ArgSize, Help: "512 or 4096, default 0: 4096 for a VHDX, and that of the parent"}
	argID     = Arg{Name: "VirtualDiskId", Short: "id", Kind: ArgID, Help: "id of the disk, default a random one, and that of a VHDX's parent"}
)

// with is a copy of an argument with what an operation says of it.
func (a Arg) with(help string, words ...Word) Arg {
	a.Help, a.Words = help, append(slices.Clip(a.Words), words...)
	return a
}

// target is an image that is to be made.
type target struct {
	lib    *Library
	ref    Ref
	format *Format // nil: the file is the disk
	spec   CreateSpec
	parent *Handle // of a differencing one, nil of others; kept from being written
	set    *Ref    // the set that the image is to be the disk of; nil without one

	mustShare error // why there is too little space for a copy that shares none; nil where there is enough
}

// newTarget reads what a request says of the image to be made, and that its
// name is free. The caller closes it.
func (r *Request) newTarget() (*target, error) {
	t := &target{lib: r.Library, spec: CreateSpec{DiskID: r.Args.ID("VirtualDiskId"), Now: time.Now()}}
	var err error
	if t.ref, err = r.place("path", r.Args.Text("Path")); err != nil {
		return nil, err
	}
	if t.format, err = r.Library.formatFor(t.ref.Name, r.Args.Text("Format")); err != nil {
		return nil, err
	}
	if err := t.behindSet(); err != nil {
		return nil, err
	}
	t.spec.Type = typeNamed(r.Args.Text("Type"))
	if t.spec.Size, err = r.bytes("size", "MaxInternalSize", math.MaxInt64); err != nil {
		return nil, err
	}
	for _, n := range []struct {
		key, name string
		to        *uint32
	}{{"block", "BlockSize", &t.spec.BlockSize}, {"sector", "LogicalSectorSize", &t.spec.LogicalSector}, {"physical", "PhysicalSectorSize", &t.spec.PhysicalSector}} {
		v, err := r.bytes(n.key, n.name, math.MaxUint32)
		if err != nil {
			return nil, err
		}
		*n.to = uint32(v)
	}
	if r.Args.Has("ParentPath") && t.spec.Type == 0 {
		t.spec.Type = Differencing
	}
	if r.Args.Has("ParentPath") != (t.spec.Type == Differencing) {
		return nil, Errorf(ErrUsage, 0, "parent=%q with type %s: a differencing image has a parent, no other has", r.Args.Text("ParentPath"), t.spec.Type)
	}
	return t, t.nameIsFree()
}

// bytes is an argument that is an absolute number of bytes, 0 when absent.
func (r *Request) bytes(key, name string, most int64) (int64, error) {
	a := r.Args.Amount(name)
	if a.Relative || a.Bytes > most {
		return 0, Errorf(ErrUsage, 0, "%s: %d bytes (relative: %t), want an absolute size up to %d", key, a.Bytes, a.Relative, most)
	}
	return a.Bytes, nil
}

func typeNamed(name string) Type {
	for _, w := range argType.Words {
		if w.Text == name {
			return Type(w.Number)
		}
	}
	return 0
}

// formatFor is the format that a name's extension stands for, which is also the
// one asked for where one is. nil is a raw file, with an extension that is no
// image's.
func (l *Library) formatFor(name, asked string) (*Format, error) {
	ext := extension(name)
	i := slices.IndexFunc(l.opts.Formats, func(f *Format) bool { return slices.Contains(f.Extensions, ext) })
	raw := i < 0 && (asked == "raw" || asked == "" && (ext == ".raw" || ext == ".img"))
	switch {
	case raw:
		return nil, nil
	case i < 0 && asked == "":
		return nil, Errorf(ErrUsage, 0, "path=%q: no format has the extension %q; name one with format=", name, ext)
	case i < 0 || asked != "" && asked != l.opts.Formats[i].Name:
		return nil, Errorf(ErrUsage, 0, "format=%s: not with the extension %q of path=%q", asked, ext, name)
	case l.opts.Formats[i].Create == nil && l.opts.Formats[i].CreateSet == nil:
		return nil, Errorf(errors.ErrUnsupported, 0, "path=%q: vhdfs makes no %s images", name, l.opts.Formats[i].Name)
	}
	return l.opts.Formats[i], nil
}

func (t *target) nameIsFree() error {
	err := NameIsFree(t.ref)
	if errors.Is(err, iofs.ErrExist) {
		err = fmt.Errorf("path=%q: %w", t.ref.Name, err)
	}
	return err
}

// settle decides what the request left open and opens the parent. sector is of
// the disk if nothing says otherwise.
func (t *target) settle(r *Request, sector uint32) error {
	if t.spec.Type == Differencing {
		if err := t.openParent(r); err != nil {
			return err
		}
	}
	if t.spec.LogicalSector == 0 {
		t.spec.LogicalSector = sector
	}
	unit := max(int64(t.spec.LogicalSector), 512)
	if t.spec.Size > math.MaxInt64-unit {
		return Errorf(ErrUsage, StatusSizeInvalid, "size: %d bytes are more than any image holds", t.spec.Size)
	}
	t.spec.Size = (t.spec.Size + unit - 1) / unit * unit
	switch {
	case t.spec.Type != 0 && t.spec.Size < minDisk:
		return Errorf(ErrUsage, StatusSizeInvalid, "size: %d bytes, want at least %d", t.spec.Size, minDisk)
	case t.spec.Type == Fixed && t.spec.BlockSize != 0:
		return Errorf(ErrUsage, StatusBlockSize, "block=%d: a fixed image has no blocks", t.spec.BlockSize)
	}
	return nil
}

// openParent takes from the parent what a child inherits.
func (t *target) openParent(r *Request) error {
	typed := r.Args.Text("ParentPath")
	ref, err := r.place("parent", typed, slices.Concat(t.lib.opts.Search, t.lib.opts.Allow)...)
	if err != nil {
		return err
	}
	return t.openParentAt(ref, typed)
}

// openParentAt is openParent with the file found.
func (t *target) openParentAt(ref Ref, typed string) error {
	links, err := t.lib.ChainOf(ref)
	if err != nil {
		return err
	}
	if err := links[len(links)-1].Err; err != nil {
		return fmt.Errorf("parent=%q: %w", typed, err)
	}
	found := links[0].Found
	switch {
	case found.Format != t.format:
		return Errorf(ErrUsage, StatusWrongType, "parent=%q: a %s cannot be the parent of a %s", typed, found.Format.Name, t.format.Name)
	case len(links) >= MaxChain:
		return tooDeep(ref)
	}
	if t.parent, err = t.lib.openStill(ref); err != nil {
		return err
	}
	if err := t.parent.Flush(); err != nil { // of a writer that has gone
		return err
	}
	return t.inherit(typed)
}

func (t *target) inherit(typed string) error {
	info, size := t.parent.Info(), t.parent.Size()
	s := &t.spec
	switch {
	case s.LogicalSector != 0 && s.LogicalSector != info.LogicalSector:
		return Errorf(ErrUsage, StatusSectorSize, "sector=%d: parent %q has sectors of %d bytes", s.LogicalSector, typed, info.LogicalSector)
	case s.Size != 0 && s.Size < size || s.Size > size && t.format.Number == FormatVHD:
		return Errorf(ErrUsage, StatusSizeMismatch, "size=%d: parent %q has %d bytes; a child is not smaller, and of a VHD as large", s.Size, typed, size)
	case s.Size == 0:
		s.Size = size
	}
	s.LogicalSector = info.LogicalSector
	if s.PhysicalSector == 0 {
		s.PhysicalSector = info.PhysicalSector
	}
	const small = 512 << 10 // of a VHD; else it has the default, as the parent may have what no new image can
	if s.BlockSize == 0 && t.format.Number == FormatVHD && info.BlockSize == small {
		s.BlockSize = small
	}
	st, err := t.parent.Stat()
	if err != nil {
		return err
	}
	absolute := t.parent.ref.Path()
	relative, err := relativePath(t.ref.Path(), absolute)
	s.Parent = &CreateParent{LinkID: info.LinkID, DiskID: info.DiskID, Timestamp: st.Mtime, Relative: relative, Absolute: absolute}
	return err
}

// produce makes the image, filled from src unless that is nil, or answers what
// that would take. Where the host has not the space it does not begin.
func (t *target) produce(ctx context.Context, r *Request, src source) (Fields, error) {
	plan, err := t.plan(ctx, src)
	if err == nil {
		err = plan.Enough(t.ref.Path())
	}
	if r.Dry {
		return append(t.describe(), plan.Fields()...), err
	}
	if err != nil {
		return nil, err
	}
	r.Begin(t.spec.Size)
	if err := t.make(ctx, src, r.Progress); err != nil {
		return nil, err
	}
	if t.parent != nil && src == nil { // it reads as its parent
		if err := t.parent.engine().inheritTrackingNew(t.ref); err != nil {
			return nil, errors.Join(err, t.ref.Dir.Remove(t.ref.Name))
		}
	}
	if t.set == nil {
		return Fields{{"Path", t.ref.Path()}}, nil
	}
	if err := t.lib.makeSet(*t.set, Set{Leaf: path.Base(t.ref.Name)}); err != nil {
		return nil, errors.Join(err, t.ref.Dir.Remove(t.ref.Name))
	}
	return Fields{{"Path", t.set.Path()}, {"ActivePath", t.ref.Path()}}, nil
}

// describe is the image to be made in the terms of a request.
func (t *target) describe() Fields {
	f := Fields{{"Path", t.ref.Path()}, {"Format", "raw"}}
	if t.set != nil {
		f[0].Value = t.set.Path()
	}
	if t.format == nil {
		return f
	}
	f[1].Value = t.format.Name
	if t.set != nil {
		f[1].Value = "vhds"
	}
	if t.spec.Type != 0 {
		f = append(f, Field{"Type", t.spec.Type.String()})
	}
	return f
}

// make makes the image, filled from src unless that is nil.
func (t *target) make(ctx context.Context, src source, progress func(done, all int64)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return MakeFile(t.ref, func(f File) error { return t.write(ctx, f, src, progress) })
}

// write makes the new, empty file f the image, filled from src unless that is nil,
// and syncs it. It leaves f open.
func (t *target) write(ctx context.Context, f File, src source, progress func(done, all int64)) error {
	if t.format == nil {
		if err := f.Truncate(t.spec.Size, "raw.create"); err != nil {
			return err
		}
		return t.fill(ctx, rawFile{f}, src, progress)
	}
	var err error
	t.lib.guard("create "+t.ref.Path(), &err, func() { err = t.format.Create(f, t.spec) })
	if err != nil || src == nil {
		return err
	}
	var layer Layer
	t.lib.guard("open "+t.ref.Path(), &err, func() {
		layer, err = t.format.Open(heldFile{f}, OpenOptions{Write: true, Ext: extension(t.ref.Name), Cache: NewCache(layerCache)})
	})
	if err != nil {
		return err
	}
	err = t.fill(ctx, layer.(Writer), src, progress)
	if err := errors.Join(err, layer.Close()); err != nil {
		return err
	}
	return f.Sync("create.filled") // what closing wrote
}

// copier copies src to what is to be the image's content.
func (t *target) copier(src source, to sink) *copier {
	c := &copier{lib: t.lib, name: t.ref.Path(), src: src, dst: to, size: t.spec.Size, mustShare: t.mustShare}
	if t.parent != nil {
		c.base = t.parent
	}
	return c
}

func (t *target) fill(ctx context.Context, to sink, src source, progress func(done, all int64)) error {
	c := t.copier(src, to)
	c.progress = progress
	if err := c.run(ctx); err != nil {
		return err
	}
	return to.Flush()
}

// close gives the parent back.
func (t *target) close() error {
	if t.parent == nil {
		return nil
	}
	return t.parent.Close()
}
