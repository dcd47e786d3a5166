package main

import (
	"path/filepath"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// named makes the paths in a request absolute and opens their folders: what a
// user typed is taken as it stands, wherever it leads.
func (f *folders) named(op *ops.Op, args ops.Args) ([]ops.Dir, error) {
	var dirs []ops.Dir
	for _, a := range op.Args {
		if !args.Has(a.Name) || a.Kind != ops.ArgPath && a.Kind != ops.ArgNewPath {
			continue
		}
		find := place
		if a.Kind == ops.ArgNewPath {
			find = placeNew
		}
		folder, name, err := find(args.Text(a.Name))
		if err != nil {
			return nil, err
		}
		if name == "" {
			return nil, usagef("%s=%q is a folder", a.Key(), args.Text(a.Name))
		}
		d, err := f.open(folder)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, d)
		args[a.Name] = filepath.Join(folder, name)
	}
	return dirs, nil
}

// placeNew is place for a file that is to be made: its folder is there.
func placeNew(typed string) (folder, name string, err error) {
	folder, err = filepath.EvalSymlinks(filepath.Dir(typed))
	if err == nil {
		folder, err = filepath.Abs(folder)
	}
	return folder, filepath.Base(typed), err
}

// openFolderOf is the target of an operation that makes the file typed.
func openFolderOf(c *cli.Context, typed string) (target, error) {
	folder, _, err := placeNew(typed)
	if err != nil {
		return nil, err
	}
	f, err := openFolders(c, folder, 0, nil)
	if err != nil {
		return nil, err
	}
	return &direct{folders: f, image: f.lib.Top("."), stderr: c.App.ErrWriter}, nil
}
