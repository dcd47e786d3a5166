package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// target is the IMAGE of a command: a file of the host, or its directory in a
// mount. Both give the same documents and answers.
type target interface {
	// document writes one of [view.Documents].
	document(w io.Writer, name string) error
	// do runs an operation and gives its answer as JSON.
	do(ctx context.Context, op *ops.Op, words []string) ([]byte, error)
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
		return nil, usagef("%s is a folder; name an image file, or the directory of an image in a mount", typed)
	}
	f, err := openFolders(c, folder, 0, nil)
	if err != nil {
		return nil, err
	}
	return &direct{folders: f, image: f.lib.Top(name), stderr: c.App.ErrWriter}, nil
}

// direct is an image file, without a mount.
type direct struct {
	*folders
	image  ops.Ref
	stderr io.Writer
}

func (d *direct) document(w io.Writer, name string) error {
	for i := range view.Documents {
		if doc := &view.Documents[i]; doc.Name == name {
			return doc.Render(w, &view.Source{Library: d.lib, Image: d.image})
		}
	}
	return fmt.Errorf("document %s: %w", name, os.ErrNotExist)
}

func (d *direct) do(ctx context.Context, op *ops.Op, words []string) ([]byte, error) {
	args, err := op.ParseWords(words)
	if err != nil {
		return nil, err
	}
	named, err := d.named(op, args)
	if err != nil {
		return nil, err
	}
	r := &request{op: op, text: strings.Join(words, " "), log: ops.NewOpLog(d.lib.Top(".").Dir, false), stderr: d.stderr}
	return r.do(ctx, &ops.Request{Library: d.lib, Image: d.image, Args: args, Named: named})
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

// do writes the request to the control file and reads the answer on the same
// handle: another one could get another request's.
func (m mounted) do(_ context.Context, op *ops.Op, words []string) ([]byte, error) {
	if _, err := op.ParseWords(words); err != nil {
		return nil, err
	}
	request, err := requestJSON(op, words)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(string(m), op.File()), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	_, failed := f.Write(request)
	answer, err := io.ReadAll(f)
	if err == nil && len(answer) == 0 {
		err = failed
	}
	return bytes.TrimSpace(answer), errors.Join(err, f.Close())
}

// requestJSON is the form of a request that needs no quoting.
func requestJSON(op *ops.Op, words []string) ([]byte, error) {
	request := map[string]string{}
	for _, w := range words {
		key, value, pair := strings.Cut(w, "=")
		if !pair {
			if key = bareName(op); key == "" {
				continue // 1 or run: the defaults
			}
			value = w
		}
		request[key] = value
	}
	return json.Marshal(request)
}

func bareName(op *ops.Op) string {
	for _, a := range op.Args {
		if a.Bare {
			return a.Name
		}
	}
	return ""
}
