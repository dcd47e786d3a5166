package backup

import (
	"context"
	"errors"
	"fmt"

	"vhdfs/ops"
)

// part is one backup of those that a restore is made from.
type part struct {
	ref  ops.Ref
	list *listReader
	data ops.File
	text ops.File // the map
}

// openPart opens a backup and reads what it is of.
func openPart(r ops.Ref) (_ *part, err error) {
	p := &part{ref: r}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.data, err = r.Dir.Open(r.Name, ops.Read); err != nil {
		return nil, err
	}
	list := listOf(r)
	if p.text, err = r.Dir.Open(list.Name, ops.Read); err != nil {
		return nil, fmt.Errorf("map of backup %s: %w", r.Path(), err)
	}
	if p.list, err = newListReader(r.Path(), p.text); err != nil {
		return nil, err
	}
	st, err := p.data.Stat()
	if err == nil && st.Size != p.list.head.Size {
		err = ops.Errorf(ops.ErrBackup, 0, "backup %s: it has %d bytes, and is of a disk of %d", r.Path(), st.Size, p.list.head.Size)
	}
	return p, err
}

// Close closes what was opened.
func (p *part) Close() error {
	var errs []error
	for _, f := range []ops.File{p.data, p.text} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Look reads what a backup is of.
func Look(r ops.Ref) (Head, error) {
	p, err := openPart(r)
	if err != nil {
		return Head{}, err
	}
	return p.list.head, p.Close()
}

// follows judges whether p goes on where before ends; before is nil for the first.
func (p *part) follows(before *part) error {
	h := p.list.head
	switch {
	case before == nil && h.Since != "":
		return ops.Errorf(ops.ErrUsage, 0, "backup %s is an increment since %s: a restore begins with a full one", p.ref.Path(), h.Since)
	case before == nil:
		return nil
	case h.Since == "":
		return ops.Errorf(ops.ErrUsage, 0, "backup %s is a full one: only the first of a restore is", p.ref.Path())
	case h.DiskID != before.list.head.DiskID:
		return ops.Errorf(ops.ErrUsage, 0, "backup %s is of disk %s, %s of %s", p.ref.Path(), h.DiskID, before.ref.Path(), before.list.head.DiskID)
	case h.Since != before.list.head.ID:
		return ops.Errorf(ops.ErrUsage, 0, "backup %s has what changed since %s, but %s ends with %s", p.ref.Path(), h.Since, before.ref.Path(), before.list.head.ID)
	}
	return nil
}

// Restore makes a new raw file with the content that the last of the backups ends
// with: a full one, then increments in their order. What is damaged, of another
// disk or out of order is refused, and nothing is left of the file then. The file
// has its name when it is whole and durable; fs.ErrExist where that is taken.
func Restore(ctx context.Context, to ops.Ref, from []ops.Ref) (_ Head, err error) {
	var parts []*part
	defer func() {
		for _, p := range parts {
			err = errors.Join(err, p.Close())
		}
	}()
	var last *part
	for _, r := range from {
		p, err := openPart(r)
		if err != nil {
			return Head{}, err
		}
		parts = append(parts, p)
		if err := p.follows(last); err != nil {
			return Head{}, err
		}
		last = p
	}
	if last == nil {
		return Head{}, ops.Errorf(ops.ErrUsage, 0, "no backup to restore from")
	}
	if err := ops.NameIsFree(to); err != nil {
		return Head{}, err
	}
	buf := make([]byte, chunk)
	err = ops.MakeFile(to, func(f ops.File) error {
		for i, p := range parts {
			if err := p.lay(ctx, f, buf, i == 0); err != nil {
				return err
			}
		}
		return f.Sync("restore.data")
	})
	return last.list.head, err
}

// lay puts the backup into a file; the first one finds that empty.
func (p *part) lay(ctx context.Context, f ops.File, buf []byte, first bool) error {
	if err := f.Truncate(p.list.head.Size, "restore.size"); err != nil {
		return err
	}
	zero := func(off, n int64) error { return clearRange(f, off, n) }
	if first {
		zero = nil
	}
	for {
		r, more, err := p.list.next()
		if err != nil || !more {
			return err
		}
		err = eachChunk(ctx, r, buf, p.data, func(b []byte, off int64) error {
			p.list.digest.Write(b)
			return store(f, b, off, zero)
		})
		if err != nil {
			return fmt.Errorf("backup %s: %w", p.ref.Path(), err)
		}
	}
}

// clearRange makes a range zeros, as a hole where the host can.
func clearRange(f ops.File, off, n int64) error {
	err := f.Punch(off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		err = ops.WriteZeros(f, off, n)
	}
	return err
}
