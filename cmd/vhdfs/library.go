package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/ops/part"
	"vhdfs/ops/track"
)

// folders are the directories that a command may open images in.
type folders struct {
	lib *ops.Library
	all []*host.Dir
}

// parentFlags say where parents may lie besides the image's own folder.
func parentFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "allow-parent", Usage: "also open parents below `DIR`, by the path that an image records"},
		&cli.StringSliceFlag{Name: "search", Usage: "also look for parents below `DIR`, by path and by id"},
	}
}

// openFolders opens the image folder and those of the flags. Cache 0 means the
// default budget. A panic that an image causes is told to panicked; nil lets it
// end the program.
func openFolders(c *cli.Context, top string, cache int64, panicked func(where string, value any, stack []byte)) (*folders, error) {
	f := &folders{}
	o := ops.LibraryOptions{Formats: formats, Tables: part.Tables{}, Tracking: track.Files{}, BeforeWrite: host.LoopOn, Panicked: panicked}
	if cache > 0 {
		o.Cache = ops.NewCache(cache)
	}
	dir, err := f.open(top)
	if err != nil {
		return nil, err
	}
	o.Top, o.Retired = dir, noteRetired(ops.NewOpLog(dir, false))
	for _, list := range []struct {
		flag string
		dirs *[]ops.Dir
	}{{"search", &o.Search}, {"allow-parent", &o.Allow}} {
		for _, name := range c.StringSlice(list.flag) {
			d, err := f.open(name)
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			*list.dirs = append(*list.dirs, d)
		}
	}
	f.lib = ops.NewLibrary(o)
	return f, nil
}

func (f *folders) open(name string) (ops.Dir, error) {
	d, err := host.OpenDir(name)
	if err != nil {
		return nil, err
	}
	f.all = append(f.all, d)
	return d, nil
}

// noteRetired writes to the log of the folder what became of files of Hyper-V.
func noteRetired(log *ops.OpLog) func(image ops.Ref, from, to string) {
	return func(image ops.Ref, from, to string) {
		err := log.Add(ops.LogLine{
			Time: time.Now(), User: uint32(os.Getuid()), Process: uint32(os.Getpid()), Operation: "write", Image: image.Path(),
			Note: "first change: " + from + " does not know of it, and is " + to + " now",
		}, true)
		if err != nil {
			logrus.WithError(err).Warn("log of the folder: " + to)
		}
	}
}

// refuse keeps every folder from opening what lies on the device of a mount.
func (f *folders) refuse(dev uint64) {
	for _, d := range f.all {
		d.Refuse(dev)
	}
}

// Close closes the images, then the folders.
func (f *folders) Close() error {
	var errs []error
	if f.lib != nil {
		errs = append(errs, f.lib.Close())
	}
	for _, d := range f.all {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// place splits what the user typed into a folder and, for a file, its name. The
// path is taken as it stands, symbolic links resolved: only paths out of images
// are contained, in that folder.
func place(typed string) (folder, name string, err error) {
	path, err := filepath.EvalSymlinks(typed)
	if err != nil {
		return "", "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", "", err
	}
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return "", "", err
	case st.IsDir():
		return path, "", nil
	}
	return filepath.Dir(path), filepath.Base(path), nil
}
