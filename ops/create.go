package ops

import (
	"errors"
	iofs "io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const (
	newFilePerm  = 0o600 // what a guest stores is for its owner
	stateDirPerm = 0o700
)

// makeFile makes a file that has no name before it is whole; fill writes and
// syncs it. After a crash there is
//
//	create        a temporary in the state folder, where nothing looks for images
//	fill          the same, with some of the content
//	rename        the temporary, or the whole file under its name
//	sync folder   the file
//
// An error before the last step removes the temporary. A name that is taken by
// then is an fs.ErrExist: nothing is ever replaced.
func makeFile(to Ref, fill func(File) error) error {
	folder := path.Dir(to.Name)
	temp, f, err := newTemporary(to.Dir, folder)
	if err != nil {
		return err
	}
	err = errors.Join(fill(f), f.Close())
	if err == nil {
		err = to.Dir.Rename(temp, to.Name)
	}
	if err != nil {
		return errors.Join(err, to.Dir.Remove(temp), removeIfEmpty(to.Dir, path.Dir(temp)))
	}
	if err := to.Dir.Sync(folder, "create.name"); err != nil {
		return err
	}
	return removeIfEmpty(to.Dir, path.Dir(temp))
}

// newTemporary makes the state folder where it is missing. Another operation
// that ends may remove it before there is something in it: it is made again.
func newTemporary(d Dir, folder string) (string, File, error) {
	const attempts = 8 // each is lost only to an operation that ends just then
	state := path.Join(folder, StateDir)
	var err error
	for range attempts {
		if err = d.Mkdir(state, stateDirPerm); err != nil && !errors.Is(err, iofs.ErrExist) {
			return "", nil, err
		}
		temp := path.Join(state, NewGUID().String()+".new")
		var f File
		if f, err = d.Create(temp, newFilePerm); err == nil {
			return temp, f, nil
		}
		if !errors.Is(err, iofs.ErrNotExist) {
			return "", nil, errors.Join(err, removeIfEmpty(d, state))
		}
	}
	return "", nil, err
}

// removeIfEmpty removes a state folder that holds nothing.
func removeIfEmpty(d Dir, state string) error {
	err := d.Remove(state)
	if errors.Is(err, iofs.ErrExist) || errors.Is(err, iofs.ErrNotExist) {
		return nil // ENOTEMPTY, or somebody was faster
	}
	return err
}

// place is the file that a request names: by a path in the image folder, or by
// an absolute host path beneath it or beneath one of others.
func (r *Request) place(key, typed string, others ...Dir) (Ref, error) {
	parts := strings.Split(typed, "/")
	switch {
	case slices.Contains(parts, ".."):
		return Ref{}, Errorf(ErrUsage, 0, "%s=%q: a path in a request has no \"..\"", key, typed)
	case slices.Contains(parts, StateDir):
		return Ref{}, Errorf(ErrUsage, 0, "%s=%q: %s is for files of vhdfs itself", key, typed, StateDir)
	case parts[len(parts)-1] == "" || parts[len(parts)-1] == ".":
		return Ref{}, Errorf(ErrUsage, 0, "%s=%q: want the path of a file", key, typed)
	case !path.IsAbs(typed):
		return r.Library.Top(path.Clean(typed)), nil
	}
	for _, d := range slices.Concat([]Dir{r.Library.opts.Top}, r.Named, others) {
		if name, ok := beneath(d.Path("."), path.Clean(typed)); ok && name != "." {
			return Ref{Dir: d, Name: name}, nil
		}
	}
	return Ref{}, Errorf(ErrForbidden, 0, "%s=%q: outside of the folders that are open here", key, typed)
}

// openStill opens an image for reading where nothing writes it, and keeps
// writers out until the handle is closed. ErrBusy where something does, or where
// the file is below a loop device.
func (l *Library) openStill(r Ref) (*Handle, error) {
	h, err := l.Open(r, Read)
	if err != nil {
		return nil, err
	}
	if ask := l.opts.BeforeWrite; ask != nil {
		err = ask(h.engine.id)
	}
	if err == nil {
		err = l.whenFree(func() error {
			if h.engine.use.writers > 0 {
				return Errorf(ErrBusy, StatusParentOpen, "%s is open for writing", r.Path())
			}
			h.still = true
			h.engine.use.still++
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// relativePath leads from the folder of a child to its parent, both absolute
// host paths: "./p.vhdx", "../d/p.vhdx".
func relativePath(child, parent string) (string, error) {
	rel, err := filepath.Rel(path.Dir(child), parent)
	if err != nil || strings.HasPrefix(rel, "../") {
		return rel, err
	}
	return "./" + rel, nil
}
