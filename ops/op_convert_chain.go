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

// typeChain is the word for a copy of every disk of a chain.
const typeChain = "chain"

// chainCopy is a copy of an image and all of its parents, each as a disk of its own,
// in a folder that has no name before all of them are whole. The disks are the same
// one's states as before: who reads any of them reads what the original reads.
type chainCopy struct {
	r      *Request
	folder Ref           // to be made
	format *Format       // of every disk
	disks  []chainTarget // the image itself first
	plan   Plan
}

// chainTarget is one disk of the copy.
type chainTarget struct {
	target
	name string // in the folder
	src  *Handle
}

// runConvertChain never changes the source, and answers [ErrBusy] where something
// writes any disk of it.
func runConvertChain(ctx context.Context, r *Request) (_ Fields, err error) {
	c := &chainCopy{r: r}
	if err := c.read(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	set, err := c.open()
	if err != nil {
		return nil, err
	}
	c.names()
	for i := range c.disks {
		if err := c.describe(i); err != nil {
			return nil, err
		}
	}
	if err = c.measure(ctx); err == nil {
		err = c.plan.Enough(c.folder.Path())
	}
	if r.Dry {
		return c.plan.Fields(), err
	}
	if err != nil {
		return nil, err
	}
	r.Begin(c.total(len(c.disks)))
	if err := c.make(ctx); err != nil {
		return nil, err
	}
	return c.answer(set), nil
}

// read takes what the request says.
func (c *chainCopy) read() (err error) {
	a := c.r.Args
	for _, name := range []string{"ParentPath", "MaxInternalSize"} {
		if a.Has(name) {
			return Errorf(ErrUsage, 0, "%s with type=%s: each disk keeps its size, and its parent is the copy of the one before", name, typeChain)
		}
	}
	if c.folder, err = c.r.place("path", a.Text("Path")); err != nil {
		return err
	}
	if c.r.Library.IsImageName(c.folder.Name) {
		return Errorf(ErrUsage, 0, "path=%q: with type=%s it is the folder that is made for the disks, not an image", c.folder.Name, typeChain)
	}
	name := a.Text("Format")
	if name == "" {
		return (&target{lib: c.r.Library, ref: c.folder}).nameIsFree()
	}
	i := slices.IndexFunc(c.r.Library.opts.Formats, func(f *Format) bool { return f.Name == name })
	if i < 0 || !c.r.Library.opts.Formats[i].links() {
		return Errorf(ErrUsage, 0, "format=%s with type=%s: want vhd or vhdx", name, typeChain)
	}
	c.format = c.r.Library.opts.Formats[i]
	return (&target{lib: c.r.Library, ref: c.folder}).nameIsFree()
}

// links tells whether disks of the format can be made from one another.
func (f *Format) links() bool {
	return f.Create != nil && (f.Number == FormatVHD || f.Number == FormatVHDX)
}

// open opens every disk of the chain and keeps writers from it. It answers the set
// that the image is, nil where it is none.
func (c *chainCopy) open() (*Set, error) {
	lib := c.r.Library
	top, err := lib.openStill(c.r.Image)
	if err != nil {
		return nil, err
	}
	c.disks = append(c.disks, chainTarget{src: top})
	if c.format == nil {
		c.format = top.engine().format
	}
	if !c.format.links() || !top.engine().format.links() {
		return nil, Errorf(errors.ErrUnsupported, StatusWrongType, "%s: a %s has no chain", c.r.Image.Path(), top.engine().format.Name)
	}
	for _, e := range top.chain.layers()[1:] {
		h, err := lib.openStill(e.ref)
		if err != nil {
			return nil, err
		}
		c.disks = append(c.disks, chainTarget{src: h})
		if h.engine() != e {
			return nil, Errorf(ErrChanged, 0, "%s: another file by now", e.ref.Path())
		}
	}
	for i := range c.disks {
		if err := c.disks[i].src.Flush(); err != nil { // of a writer that has gone
			return nil, err
		}
	}
	if top.set == nil {
		return nil, nil
	}
	return top.set.Set, nil
}

func (c *chainCopy) close() (err error) {
	for _, d := range c.disks {
		err = errors.Join(err, d.src.Close())
	}
	return err
}

// describe decides what the copy of a disk is. The ids of its parent stand for those
// that this gets when it is made.
func (c *chainCopy) describe(i int) error {
	d := &c.disks[i]
	info, size := d.src.Info(), d.src.Size()
	d.target = target{lib: c.r.Library, format: c.format, ref: Ref{Dir: c.folder.Dir, Name: path.Join(c.folder.Name, d.name)}}
	s := &d.spec
	*s = CreateSpec{Type: info.Type, Size: size, LogicalSector: info.LogicalSector, Now: time.Now()}
	block, err := c.r.bytes("block", "BlockSize", 1<<32-1)
	if err != nil {
		return err
	}
	physical, err := c.r.bytes("physical", "PhysicalSectorSize", 1<<32-1)
	if err != nil {
		return err
	}
	same := d.src.engine().format == c.format
	s.BlockSize, s.PhysicalSector = uint32(block), uint32(physical)
	if physical == 0 && same {
		s.PhysicalSector = info.PhysicalSector
	}
	// A VHD of another system may have blocks that no new one can.
	if block == 0 && same && (c.format.Number == FormatVHDX || info.BlockSize == 512<<10) {
		s.BlockSize = info.BlockSize
	}
	if s.Type == Fixed {
		s.BlockSize = 0
	}
	if i == len(c.disks)-1 {
		s.DiskID = c.r.Args.ID("VirtualDiskId")
		return nil
	}
	below := &c.disks[i+1]
	d.parent = below.src
	if c.format.Number == FormatVHD && size != below.src.Size() {
		return Errorf(ErrUsage, StatusSizeMismatch, "format=vhd: %s has %d bytes and its parent %d: disks of a VHD chain are all as large",
			d.src.engine().ref.Path(), size, below.src.Size())
	}
	s.Type = Differencing
	s.Parent = &CreateParent{LinkID: NewGUID(), DiskID: NewGUID(), Relative: "./" + below.name, Absolute: c.folder.Dir.Path(path.Join(c.folder.Name, below.name))}
	return nil
}

// names gives each copy the name of its original, or of the set whose active disk
// that is, with the extension of the format and, where two would be alike, a number.
func (c *chainCopy) names() {
	taken := map[string]bool{}
	for i := range c.disks {
		ref := c.disks[i].src.engine().ref
		if i == 0 {
			ref = c.r.Image
		}
		stem, ext := path.Base(ref.Name), "."+c.format.Name
		if strings.HasPrefix(extension(stem), ".a") {
			ext = ".a" + c.format.Name
		}
		stem = strings.TrimSuffix(stem, path.Ext(stem))
		name := stem + ext
		for n := 1; taken[strings.ToLower(name)]; n++ {
			name = fmt.Sprintf("%s-%d%s", stem, n, ext)
		}
		taken[strings.ToLower(name)] = true
		c.disks[i].name = name
	}
}

// measure is what all disks take together.
func (c *chainCopy) measure(ctx context.Context) error {
	c.plan.Size = c.disks[0].spec.Size
	for i := range c.disks {
		d := &c.disks[i]
		space := d.target
		space.ref = Ref{Dir: c.folder.Dir, Name: c.folder.Name} // which is not there: its parent's file system
		p, err := space.plan(ctx, d.src)
		if err != nil {
			return err
		}
		c.plan.Makes = append(c.plan.Makes, d.ref.Path())
		c.plan.Move, c.plan.Need, c.plan.Free = c.plan.Move+p.Move, c.plan.Need+p.Need, p.Free
	}
	return nil
}

// total is the number of bytes of the disks from the root up to, without it, the
// n-th from there.
func (c *chainCopy) total(n int) (all int64) {
	for i := range n {
		all += c.disks[len(c.disks)-1-i].spec.Size
	}
	return all
}

// make makes the folder. After a crash there is
//
//	make a locked temporary and a folder of its name in the state folder
//	make each disk in it, from the root up
//	sync that folder       what nothing looks at, and the next one that makes a file removes
//	rename; sync           that, or the folder with all disks
func (c *chainCopy) make(ctx context.Context) error {
	dir, above := c.folder.Dir, path.Dir(c.folder.Name)
	temp, lock, err := newTemporary(dir, above)
	if err != nil {
		return err
	}
	state, folder := path.Dir(temp), folderOfTemporary(temp)
	err = dir.Mkdir(folder, stateDirPerm)
	if err == nil {
		err = c.fill(ctx, folder)
	}
	if err == nil {
		err = dir.Sync(folder, "chain.disks")
	}
	if err == nil {
		err = dir.Rename(folder, c.folder.Name)
	}
	if err != nil {
		err = errors.Join(err, removeTree(dir, folder))
	}
	if e := errors.Join(dir.Remove(temp), lock.Close()); err == nil {
		err = e
	}
	if err != nil {
		return errors.Join(err, removeIfEmpty(dir, state))
	}
	if err := dir.Sync(above, "chain.name"); err != nil {
		return err
	}
	return removeIfEmpty(dir, state)
}

// fill makes the disks in a folder, each with what the one below it says of itself.
func (c *chainCopy) fill(ctx context.Context, folder string) error {
	var below *chainTarget
	for k := range c.disks {
		d := &c.disks[len(c.disks)-1-k]
		ref := Ref{Dir: c.folder.Dir, Name: path.Join(folder, d.name)}
		if below != nil {
			if err := d.recordParent(Ref{Dir: ref.Dir, Name: path.Join(folder, below.name)}); err != nil {
				return err
			}
		}
		f, err := ref.Dir.Create(ref.Name, newFilePerm)
		if err != nil {
			return err
		}
		before, all := c.total(k), c.total(len(c.disks))
		err = d.write(ctx, f, d.src, func(done, _ int64) {
			if c.r.Progress != nil {
				c.r.Progress(before+done, all)
			}
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		below = d
	}
	return nil
}

// recordParent takes the ids of the disk that was made for its parent.
func (d *chainTarget) recordParent(made Ref) error {
	f, err := made.Dir.Open(made.Name, Read|NoFollow)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	layer, err := d.format.Open(f, OpenOptions{Ext: extension(made.Name), Cache: NewCache(layerCache)})
	if err != nil {
		return err
	}
	info := layer.Info()
	d.spec.Parent.LinkID, d.spec.Parent.DiskID, d.spec.Parent.Timestamp = info.LinkID, info.DiskID, st.Mtime
	return layer.Close()
}

// chainDisk is a disk of a copied chain as the answer shows it.
type chainDisk struct {
	Path, Source string
	Snapshots    []string `json:",omitempty"`
}

// answer names the disks, and the snapshots of a set that are not states of its
// chain.
func (c *chainCopy) answer(set *Set) Fields {
	list := make([]chainDisk, len(c.disks))
	for i := range c.disks {
		d := &c.disks[i]
		list[i] = chainDisk{Path: d.ref.Path(), Source: d.src.engine().ref.Path()}
	}
	f := Fields{{"Path", list[0].Path}, {"Disks", list}}
	if set == nil {
		return f
	}
	left := []string{}
	for i := range set.Snapshots {
		n := &set.Snapshots[i]
		at := slices.IndexFunc(list, func(d chainDisk) bool { return n.Path != "" && path.Base(d.Source) == n.Path })
		if at < 0 {
			left = append(left, n.Name())
			continue
		}
		list[at].Snapshots = append(list[at].Snapshots, n.Name())
	}
	return append(f, Field{"NotCopied", left})
}
