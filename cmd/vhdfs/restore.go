package main

import (
	"errors"
	"path/filepath"
	"strconv"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
	"vhdfs/ops/backup"
	"vhdfs/ops/view"
)

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name:      "restore",
		Usage:     "lay a full backup and the increments after it together, as a raw file",
		ArgsUsage: "to=FILE FULL [INCREMENT]...",
		Category:  "backups",
		Flags:     []cli.Flag{jsonFlag()},
		Action:    restore,
	}
}

// restoreAnswer is what the command prints.
type restoreAnswer struct {
	Path string
	ID   string `json:"ResilientChangeTrackingId"`
	Size int64
}

func restore(c *cli.Context) (err error) {
	values, rest, err := keyed(c.Args().Slice(), "to")
	if err != nil {
		return err
	}
	if len(rest) == 0 || values["to"] == "" {
		return usagef("want vhdfs restore %s", c.Command.ArgsUsage)
	}
	ctx, stop := interruptible(c)
	defer stop()
	var f folders
	defer func() { err = errors.Join(err, f.Close()) }()
	to, err := f.newFile(values["to"])
	if err != nil {
		return err
	}
	var parts []ops.Ref
	for _, typed := range rest {
		folder, name, err := place(typed)
		if err != nil {
			return err
		}
		if name == "" {
			return usagef("%s is a folder; name the file of a backup", typed)
		}
		d, err := f.open(folder)
		if err != nil {
			return err
		}
		parts = append(parts, ops.Ref{Dir: d, Name: name})
	}
	head, err := backup.Restore(ctx, to, parts)
	if err != nil {
		return err
	}
	a := restoreAnswer{to.Path(), head.ID, head.Size}
	if c.Bool("json") {
		return view.Encode(c.App.Writer, a)
	}
	return pairs(c.App.Writer, [][2]string{{"Path", a.Path}, {"ResilientChangeTrackingId", a.ID}, {"Size", strconv.FormatInt(a.Size, 10)}})
}

// newFile is a file that is to be made where the user typed.
func (f *folders) newFile(typed string) (ops.Ref, error) {
	folder, name, err := placeNew(typed)
	if err != nil {
		return ops.Ref{}, err
	}
	if isDir(filepath.Join(folder, name)) {
		return ops.Ref{}, usagef("to=%q is a folder", typed)
	}
	d, err := f.open(folder)
	return ops.Ref{Dir: d, Name: name}, err
}
