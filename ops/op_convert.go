package ops

import (
	"context"
	"errors"
)

// opConvert copies an image into a new one of any format and type.
var opConvert = &Op{
	Name:    "convert",
	Method:  "ConvertVirtualHardDisk",
	Brief:   "copy the disk, parents included, into a new image, or its chain into a new folder",
	JobType: 6,
	Writes:  true,
	Plans:   true,
	Args: []Arg{
		Arg{Name: "Path", Kind: ArgNewPath, Required: true, Bare: true, Help: "the file to be made, with type=chain the folder"},
		argFormat.with("default by the extension, which it has to match; with type=chain that of the image", Word{"raw", 0}, Word{"vfd", FormatVFD}),
		argType.with("default that of the image, dynamic where that has a parent or none; differencing with a parent; chain: each disk of the chain, or of a set's, as a plain disk in a folder", Word{typeChain, 0}),
		argParent.with("the image that the copy is to be a child of: it holds what differs"),
		argBlock,
		{Name: "LogicalSectorSize", Short: "sector", Kind: ArgSize, Help: "accepted, as by the service, and not used: sectors stay as they are"},
		argPhys,
		argSize.with("bytes of the copy, if more than the image has"),
		argID,
	},
	Run: runConvert,
}

// runConvert never changes the source, and answers [ErrBusy] where something
// writes it.
func runConvert(ctx context.Context, r *Request) (_ Fields, err error) {
	if r.Args.Text("Type") == typeChain {
		return runConvertChain(ctx, r)
	}
	t, err := r.newTarget()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	src, err := r.Library.openStill(r.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if err := src.Flush(); err != nil { // of a writer that has gone
		return nil, err
	}
	if err := t.convertFrom(r, src); err != nil {
		return nil, err
	}
	return t.produce(ctx, r, src)
}

// convertFrom decides what the copy of a source is.
func (t *target) convertFrom(r *Request, src *Handle) error {
	if err := t.sizeFrom(src); err != nil {
		return err
	}
	s, info := &t.spec, src.Info()
	if t.format == nil || t.format.Number == FormatVFD {
		if s.Type > Fixed || s.BlockSize != 0 || s.PhysicalSector != 0 || !s.DiskID.IsZero() {
			return Errorf(ErrUsage, 0, "path=%q: the file is the disk, without type, blocks, sectors, parent and id", t.ref.Name)
		}
		s.Type, s.LogicalSector = 0, 0
		return t.settle(r, 512)
	}
	if s.Type == 0 {
		s.Type = info.Type
		if s.Type != Fixed {
			s.Type = Dynamic
		}
	}
	s.LogicalSector = 512
	if info.Type != 0 { // not of an ISO image or a floppy
		s.LogicalSector = info.LogicalSector
	}
	if s.PhysicalSector == 0 && info.Type != 0 && s.Type != Differencing && src.engine().format == t.format {
		s.PhysicalSector = info.PhysicalSector
	}
	return t.settle(r, s.LogicalSector)
}
