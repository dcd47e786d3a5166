package ops

import (
	"context"
	"errors"
)

// opCreateFloppy makes a floppy disk of zeros; the service knows 1440K only.
var opCreateFloppy = &Op{
	Name:    "create-floppy",
	Method:  "CreateVirtualFloppyDisk",
	Brief:   "make an empty, unformatted floppy disk",
	JobType: 2,
	Service: true,
	Writes:  true,
	Plans:   true,
	Args: []Arg{
		argPath,
		{Name: "Size", Kind: ArgSize, Default: "1440K", Help: "720K, 1200K, 1440K or 2880K"},
	},
	Run: runCreateFloppy,
}

func runCreateFloppy(ctx context.Context, r *Request) (_ Fields, err error) {
	t, err := r.newTarget()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if t.format == nil || t.format.Number != FormatVFD {
		return nil, Errorf(ErrUsage, 0, "path=%q: a floppy has the extension .vfd", t.ref.Name)
	}
	size, err := r.bytes("size", "Size", 2880<<10)
	if err != nil {
		return nil, err
	}
	t.spec = CreateSpec{Size: size}
	return t.produce(ctx, r, nil)
}
