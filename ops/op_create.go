package ops

import (
	"context"
	"errors"
)

// opCreate makes a disk: empty, a child, or a copy.
var opCreate = &Op{
	Name:    "create",
	Method:  "CreateVirtualHardDisk",
	Brief:   "make a disk: fixed, dynamic, or the child of another",
	JobType: 1,
	Service: true,
	Writes:  true,
	Plans:   true,
	Args:    createArgs,
	Run:     runCreate,
}

var createArgs = []Arg{
	argPath,
	argSize.with("bytes of the disk, rounded up to whole sectors; default that of the parent or the source"),
	argType.with("default dynamic, and differencing with a parent"),
	argFormat.with("default by the extension, which it has to match"),
	argParent,
	argBlock,
	{Name: "LogicalSectorSize", Short: "sector", Kind: ArgSize, Help: "512 or, of a VHDX, 4096; default 0: 512, and that of the parent"},
	argPhys,
	argID,
	{Name: "Source", Kind: ArgPath, Help: "an image or a raw file to be copied"},
	argRebuild,
	argLeaf,
}

// argRebuild asks for a set whose file is lost.
var argRebuild = Arg{Name: "Rebuild", Kind: ArgBool, Help: "set to true makes the file of a VHD set that is lost, from its disks beside it; with path, and leaf, alone"}

// argLeaf chooses among the disks of a set whose file is lost.
var argLeaf = Arg{Name: "ActivePath", Short: "leaf", Kind: ArgPath, Help: "with rebuild, where several disks may be the set's active one: that disk; the others become snapshots"}

var argFormat = Arg{Name: "Format", Kind: ArgWord, Words: []Word{{"vhd", FormatVHD}, {"vhdx", FormatVHDX}, {"vhds", FormatSet}}}

func runCreate(ctx context.Context, r *Request) (_ Fields, err error) {
	if r.Args.Bool(argRebuild.Name) {
		return r.remakeSet()
	}
	if r.Args.Has(argLeaf.Name) {
		return nil, Errorf(ErrUsage, 0, "leaf=%q: only with rebuild=true", r.Args.Text(argLeaf.Name))
	}
	t, err := r.newTarget()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	switch {
	case t.format == nil || t.format.Number != FormatVHD && t.format.Number != FormatVHDX:
		return nil, Errorf(ErrUsage, 0, "path=%q: want a disk in .vhd, .vhdx, .avhdx or .avhd", t.ref.Name)
	case t.spec.Type == 0:
		t.spec.Type = Dynamic
	}
	var src source
	if r.Args.Has("Source") {
		if src, err = r.openSource(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, src.Close()) }()
		if err := t.sizeFrom(src); err != nil {
			return nil, err
		}
	} else if t.spec.Size == 0 && t.spec.Type != Differencing {
		return nil, Errorf(ErrUsage, StatusSizeInvalid, "size is required for a %s image", t.spec.Type)
	}
	if err := t.settle(r, 512); err != nil {
		return nil, err
	}
	return t.produce(ctx, r, src)
}

// openSource opens the image, or the raw file, that a new image is a copy of.
func (r *Request) openSource() (source, error) {
	ref, err := r.place("source", r.Args.Text("Source"))
	if err != nil {
		return nil, err
	}
	if r.Library.IsImageName(ref.Name) {
		return r.Library.openStill(ref)
	}
	f, err := ref.Dir.Open(ref.Name, Read)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		err = f.Lock(false)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return rawSource{NewRaw(f, st.Size)}, nil
}

// sizeFrom takes the size of what is copied. More is asked for or nothing: the
// copy of a part is none.
func (t *target) sizeFrom(src source) error {
	switch size := src.Size(); {
	case t.spec.Size == 0:
		t.spec.Size = size
	case t.spec.Size < size:
		return Errorf(ErrUsage, StatusSizeMismatch, "size=%d: the source has %d bytes", t.spec.Size, size)
	}
	return nil
}
