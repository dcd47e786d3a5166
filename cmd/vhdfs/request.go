package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// request is an operation as it was typed, its paths absolute paths of the host.
type request struct {
	op     *ops.Op
	image  string   // host path of the image; of the service: of the folder that the request is about
	text   string   // the words, for the log
	args   ops.Args // with absolute host paths
	paths  []string // names of the arguments that are paths
	mounts []mountLine
	inside string // directory of the image in a mount, if that was typed
	mnt    string // mount point of the service that is asked; "" where the image says which one
}

// newRequest reads the words of a command line. first is the IMAGE; for an
// operation of the service it is the path that it is about, or the mount point of the
// service where it is about none.
func newRequest(op *ops.Op, first string, words []string) (*request, error) {
	mounts, err := vhdfsMounts()
	if err != nil {
		return nil, err
	}
	about := pathOf(op)
	if about != nil {
		key := about.Key() + "="
		words = append([]string{key + strings.TrimPrefix(first, key)}, words...)
	}
	q := &request{op: op, mounts: mounts, text: strings.Join(words, " ")}
	if q.args, err = op.ParseWords(words); err != nil {
		return nil, err
	}
	if err := q.resolve(); err != nil {
		return nil, err
	}
	switch {
	case about != nil && isDir(q.args.Text(about.Name)):
		q.image = q.args.Text(about.Name)
		return q, nil
	case about != nil:
		q.image = filepath.Dir(q.args.Text(about.Name))
		return q, nil
	case op.Service:
		return q, q.ask(first)
	}
	folder, name, err := place(first)
	if err == nil && op.Device {
		folder, name, err = q.underDevice(folder, name)
	}
	switch {
	case err != nil:
		return nil, err
	case name != "":
		q.image = filepath.Join(folder, name)
	case isMounted(folder):
		q.inside = folder
		q.image = hostPathOf(mounts, folder)
	default:
		return nil, isFolder(first)
	}
	return q, nil
}

// pathOf is the argument of an operation of the service that says which file or
// folder it is about; nil where it is about the service, or an image.
func pathOf(op *ops.Op) *ops.Arg {
	for i := range op.Args {
		if op.Service && op.Args[i].Bare && isPath(op.Args[i].Kind) {
			return &op.Args[i]
		}
	}
	return nil
}

func isPath(k ops.ArgKind) bool {
	return k == ops.ArgPath || k == ops.ArgNewPath || k == ops.ArgPlace
}

// ask sends the request to the service of a mount point.
func (q *request) ask(typed string) error {
	mnt, err := ourMountPoint(typed)
	if err != nil {
		return err
	}
	q.mnt, q.image = mnt, hostPathOf(q.mounts, mnt)
	return nil
}

// resolve makes the paths that were typed absolute. They are taken as they stand,
// wherever they lead; one in a mount of ours means the file that is shown there.
func (q *request) resolve() error {
	for _, a := range q.op.Args {
		if !q.args.Has(a.Name) || !isPath(a.Kind) {
			continue
		}
		find := place
		if a.Kind == ops.ArgNewPath {
			find = placeNew
		}
		typed := q.args.Text(a.Name)
		folder, name, err := find(typed)
		if err != nil {
			return err
		}
		path := hostPathOf(q.mounts, filepath.Join(folder, name))
		if name == "" && path == folder && a.Kind != ops.ArgPlace {
			return usagef("%s=%q is a folder", a.Key(), typed)
		}
		q.args[a.Name] = path
		q.paths = append(q.paths, a.Name)
	}
	return nil
}

// run carries the operation out, through the mount that shows the image if there is
// one, else in this process, and gives its answer as JSON. Paths outside the folder
// of a mount, and folders to look for parents in, are nothing that can be asked of
// a mount: this process does it then, as far as locks allow.
func (q *request) run(ctx context.Context, c *cli.Context, p *progress) ([]byte, error) {
	control, err := q.control(c)
	if err != nil {
		return nil, err
	}
	if control == nil && !q.needsService() {
		return q.runHere(ctx, c, p)
	}
	var answer []byte
	if control == nil {
		answer, err = q.attachAlone(ctx, c, p)
	} else {
		answer, err = control.do(ctx, q, p)
	}
	if errors.Is(err, errors.ErrUnsupported) && q.op.Plans {
		if why := q.refusal(ctx, c, p); why != nil {
			return why, nil
		}
	}
	if control != nil && err == nil && q.op.Name == opDetach && !q.args.Dry() && succeeded(answer) {
		err = control.mount.awaitEnd()
	}
	return answer, err
}

// refusal is what the operation itself says against an image for which a mount has
// no control file: a plan is asked for here, which changes nothing. nil where that
// finds nothing unsupported.
func (q *request) refusal(ctx context.Context, c *cli.Context, p *progress) []byte {
	dry := *q
	dry.args = q.args.Planned()
	answer, err := dry.runHere(ctx, c, p)
	var head struct{ Errno string }
	if err != nil || json.Unmarshal(answer, &head) != nil || head.Errno != ops.Errno(errors.ErrUnsupported) {
		return nil
	}
	return answer
}

// placeNew is place for a file that is to be made: its folder is there.
func placeNew(typed string) (folder, name string, err error) {
	folder, err = filepath.EvalSymlinks(filepath.Dir(typed))
	if err == nil {
		folder, err = filepath.Abs(folder)
	}
	return folder, filepath.Base(typed), err
}

// named opens the folders of the paths in a request.
func (f *folders) named(q *request) ([]ops.Dir, error) {
	var dirs []ops.Dir
	for _, name := range q.paths {
		d, err := f.open(filepath.Dir(q.args.Text(name)))
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}
