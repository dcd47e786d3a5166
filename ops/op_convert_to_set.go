package ops

import (
	"context"
	"errors"
	"math"
	"path"
	"strings"
)

// opConvertToSet makes a disk the active one of a new set.
var opConvertToSet = &Op{
	Name:    "convert-to-set",
	Method:  "ConvertVirtualHardDiskToVHDSet",
	Brief:   "make the disk a VHD set: its file becomes the set's .avhdx",
	JobType: 6,
	Writes:  true,
	Plans:   true,
	Can:     func(f *Found) bool { return f.Set == nil && f.Format != nil && f.Format.Number == FormatVHDX },
	Run:     runConvertToSet,
}

// runConvertToSet renames the disk and makes the set. After a crash there is
//
//	rename; sync      the disk, under its own name or that of a set's disk
//	make the set      the disk alone, or the set
//
// A disk that has the name of a set's disk already keeps it, so that doing it again
// ends what was broken off.
func runConvertToSet(_ context.Context, r *Request) (_ Fields, err error) {
	o, err := r.Library.Operate(r.Image, Terms{Name: "convert-to-set", Alone: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	if o.engine().format.Number != FormatVHDX || o.set != nil {
		return nil, Errorf(errors.ErrUnsupported, StatusWrongType, "%s: only a VHDX can become the disk of a set", r.Image.Path())
	}
	base, backing := setNames(r.Image.Name)
	set := Ref{Dir: r.Image.Dir, Name: base + ".vhds"}
	disk := Ref{Dir: r.Image.Dir, Name: backing}
	t := &target{lib: r.Library, ref: set}
	if err := t.nameIsFree(); err != nil {
		return nil, err
	}
	if r.Dry {
		p := Plan{Makes: []string{set.Path(), disk.Path()}, Removes: []string{r.Image.Path()}, Free: math.MaxInt64, Size: o.Size()}
		if disk.Name == r.Image.Name {
			p.Makes, p.Removes = p.Makes[:1], nil
		}
		return p.Fields(), nil
	}
	r.Begin(0)
	folder := path.Dir(r.Image.Name)
	if disk.Name != r.Image.Name {
		err := r.Library.retireForeign(r.Image)
		if err == nil {
			err = r.Image.Dir.Rename(r.Image.Name, disk.Name)
		}
		if err == nil {
			err = r.Image.Dir.Sync(folder, "set.rename")
		}
		if err == nil {
			err = r.Library.tracking().Move(r.Image, disk)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := r.Library.makeSet(set, Set{Leaf: path.Base(disk.Name)}); err != nil {
		if disk.Name != r.Image.Name {
			err = errors.Join(err, r.Image.Dir.Rename(disk.Name, r.Image.Name), r.Image.Dir.Sync(folder, "set.rename.back"), r.Library.tracking().Move(disk, r.Image))
		}
		return nil, err
	}
	return Fields{{"Path", set.Path()}, {"ActivePath", disk.Path()}}, nil
}

// setNames are the name of a set without its extension and that of its disk, for a
// disk of a name.
func setNames(name string) (base, backing string) {
	base = strings.TrimSuffix(name, path.Ext(name))
	const tail = 1 + 36
	if extension(name) == ".avhdx" && len(base) > tail && base[len(base)-tail] == '_' {
		if _, err := ParseGUID(base[len(base)-tail+1:]); err == nil {
			return base[:len(base)-tail], name
		}
	}
	return base, path.Join(path.Dir(name), newName(base+".vhds"))
}
