package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// target is the IMAGE of a command that looks at it: a file of the host, or its
// directory in a mount. Both give the same documents.
type target interface {
	// document writes one of [view.Documents].
	document(w io.Writer, name string) error
	io.Closer
}

func openTarget(c *cli.Context, typed string) (target, error) {
	folder, name, err := place(typed)
	if err != nil {
		return nil, err
	}
	if name == "" {
		if isMounted(folder) {
			return mounted(folder), nil
		}
		return nil, isFolder(typed)
	}
	f, err := openFolders(c, folder, 0, nil)
	if err != nil {
		return nil, err
	}
	return &direct{folders: f, image: f.lib.Top(name)}, nil
}

func isFolder(typed string) error {
	return usagef("%s is a folder; name an image file, or the directory of an image in a mount", typed)
}

// direct is an image file, without a mount.
type direct struct {
	*folders
	image ops.Ref
}

func (d *direct) document(w io.Writer, name string) error {
	for i := range view.Documents {
		if doc := &view.Documents[i]; doc.Name == name {
			return doc.Render(w, &view.Source{Library: d.lib, Image: d.image})
		}
	}
	return fmt.Errorf("document %s: %w", name, os.ErrNotExist)
}

// mounted is the directory of an image in a mount.
type mounted string

// isMounted tells whether dir is the directory of an image in a FUSE mount:
// chain.json is in every one.
func isMounted(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.FUSE_SUPER_MAGIC {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, "chain.json"))
	return err == nil
}

func (m mounted) Close() error { return nil }

func (m mounted) document(w io.Writer, name string) error {
	f, err := os.Open(filepath.Join(string(m), name))
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}
