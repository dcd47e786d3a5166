package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// entry is one line of a listing.
type entry struct {
	Name   string
	Format string
	Type   string
	Size   int64 // virtual
	Parent string
	Error  string `json:",omitempty"`
}

func lsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list the images of a folder",
		ArgsUsage: "[DIR]",
		Category:  "images",
		Flags:     append(parentFlags(), jsonFlag()),
		Action: func(c *cli.Context) error {
			typed := "."
			if c.NArg() > 0 {
				args, err := positional(c, "DIR")
				if err != nil {
					return err
				}
				typed = args[0]
			}
			folder, name, err := place(typed)
			if err != nil {
				return err
			}
			if name != "" {
				return usagef("%s is a file; see vhdfs info", typed)
			}
			each := eachFound
			if isMount(folder) {
				each = eachMounted
			}
			return list(c, func(do func(*entry) error) error { return each(c, folder, do) })
		},
	}
}

// list prints entries as they come.
func list(c *cli.Context, each func(func(*entry) error) error) error {
	if c.Bool("json") {
		all := []entry{}
		err := each(func(e *entry) error {
			all = append(all, *e)
			return nil
		})
		if err != nil {
			return err
		}
		return view.Encode(c.App.Writer, all)
	}
	t := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tFORMAT\tTYPE\tSIZE\tPARENT")
	err := each(func(e *entry) error {
		last := printable(e.Parent)
		if e.Error != "" {
			last = printable(e.Error)
		}
		_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", printable(e.Name), e.Format, e.Type, e.Size, last)
		return err
	})
	return errors.Join(err, t.Flush())
}

// eachFound lists a folder of the host.
func eachFound(c *cli.Context, folder string, do func(*entry) error) error {
	f, err := openFolders(c, folder, 0, nil)
	if err != nil {
		return err
	}
	names, err := f.lib.List(".")
	for i := 0; err == nil && i < len(names); i++ {
		if names[i].IsDir {
			err = do(&entry{Name: names[i].Name + "/", Format: "folder"})
			continue
		}
		found, ierr := f.lib.Inspect(f.lib.Top(names[i].Name))
		if ierr != nil {
			err = do(&entry{Name: names[i].Name, Error: ops.Sentence(ierr)})
			continue
		}
		err = do(newEntry(names[i].Name, found))
	}
	return errors.Join(err, f.Close())
}

func newEntry(name string, found *ops.Found) *entry {
	e := &entry{Name: name, Type: found.Info.Type.String(), Size: found.Size, Error: ops.Sentence(found.Err)}
	if found.Format != nil {
		e.Format = found.Format.Name
	}
	if p := found.Info.Parent; p != nil && len(p.Paths) > 0 {
		e.Parent = p.Paths[0].Path
	}
	return e
}

// eachMounted lists a folder of a mount by its chain.json files.
func eachMounted(_ *cli.Context, folder string, do func(*entry) error) error {
	names, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Name() == ".vhdfs" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(folder, n.Name(), "chain.json"))
		if errors.Is(err, os.ErrNotExist) {
			err = do(&entry{Name: n.Name() + "/", Format: "folder"})
		} else if err == nil {
			err = chainEntry(n.Name(), b, do)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func chainEntry(name string, b []byte, do func(*entry) error) error {
	var c view.Chain
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("%s: %w", path.Join(name, "chain.json"), err)
	}
	first := &c.Images[0]
	e := &entry{Name: name, Format: first.Format, Type: first.Type, Size: first.Size, Error: first.Error}
	if p := first.Parent; p != nil && len(p.StoredPaths) > 0 {
		e.Parent = p.StoredPaths[0].Path
	}
	return do(e)
}
