package ops

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	newFilePerm  = 0o600 // what a guest stores is for its owner
	stateDirPerm = 0o700
)

// NameIsFree is fs.ErrExist where a name is taken: what takes long is not begun then.
// Only [MakeFile] takes the name.
func NameIsFree(r Ref) error {
	_, err := r.Dir.Stat(r.Name)
	switch {
	case err == nil:
		return fmt.Errorf("%s: %w; nothing is ever overwritten", r.Path(), iofs.ErrExist)
	case errors.Is(err, iofs.ErrNotExist):
		return nil
	}
	return err
}

// MakeFile makes a file that has no name before it is whole; fill writes and
// syncs it. After a crash there is
//
//	create        a temporary in the state folder, where nothing looks for images
//	fill          the same, with some of the content
//	rename        the temporary, or the whole file under its name
//	sync folder   the file
//
// An error before the last step removes the temporary; after a crash the next one
// that is made in the folder does. A name that is taken by then is an fs.ErrExist:
// nothing is ever replaced.
func MakeFile(to Ref, fill func(File) error) error {
	folder := path.Dir(to.Name)
	temp, f, err := newTemporary(to.Dir, folder)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = to.Dir.Rename(temp, to.Name)
	}
	named := err == nil
	// The lock is given back when nobody can take the file for a stale one.
	if err = errors.Join(err, f.Close()); err != nil {
		if !named {
			err = errors.Join(err, to.Dir.Remove(temp), removeIfEmpty(to.Dir, path.Dir(temp)))
		}
		return err
	}
	if err := to.Dir.Sync(folder, "create.name"); err != nil {
		return err
	}
	return removeIfEmpty(to.Dir, path.Dir(temp))
}

// temporarySuffix marks files that are to get another name.
const temporarySuffix = ".new"

// newTemporary makes a file in the state folder, locked so that nobody sweeps it,
// and the folder where it is missing. Another operation that ends may remove that
// before there is something in it: it is made again.
func newTemporary(d Dir, folder string) (string, File, error) {
	const attempts = 8 // each is lost only to an operation that ends just then
	state := path.Join(folder, StateDir)
	var err error
	for range attempts {
		if err = d.Mkdir(state, stateDirPerm); err != nil && !errors.Is(err, iofs.ErrExist) {
			return "", nil, err
		}
		sweep(d, state)
		temp := path.Join(state, NewGUID().String()+temporarySuffix)
		var f File
		f, err = d.Create(temp, newFilePerm)
		if err == nil {
			if err = claim(d, temp, f); err == nil {
				return temp, f, nil
			}
			err = errors.Join(err, f.Close())
			if e := d.Remove(temp); !errors.Is(e, iofs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
		if !errors.Is(err, iofs.ErrNotExist) && !errors.Is(err, ErrBusy) {
			return "", nil, errors.Join(err, removeIfEmpty(d, state))
		}
	}
	return "", nil, err
}

// claim locks a temporary that was made just now: ErrBusy or fs.ErrNotExist where
// somebody took it for a stale one before. Where files have no locks nobody sweeps.
func claim(d Dir, temp string, f File) error {
	if err := f.Lock(true); err != nil {
		if noLocks(err) {
			return nil
		}
		return err
	}
	_, err := d.Stat(temp)
	return err
}

// noLocks tells whether a file system answers that it has none.
func noLocks(err error) bool {
	return errors.Is(err, syscall.ENOLCK) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS)
}

// sweep removes the temporaries in a state folder that no living process holds:
// their makers were killed. What cannot be removed stays for the next one, which
// is as good a time as now.
func sweep(d Dir, state string) {
	list, err := d.List(state)
	if err != nil {
		return
	}
	for _, e := range list {
		if base, ok := strings.CutSuffix(e.Name, folderSuffix); ok && e.IsDir {
			sweepFolder(d, path.Join(state, base))
		}
		id, ok := strings.CutSuffix(e.Name, temporarySuffix)
		if _, err := ParseGUID(id); !ok || err != nil || !e.IsRegular {
			continue
		}
		name := path.Join(state, e.Name)
		f, err := d.Open(name, Write|NoFollow)
		if err != nil {
			continue
		}
		if f.Lock(true) == nil && removeTree(d, folderOfTemporary(name)) == nil {
			_ = d.Remove(name)
		}
		_ = f.Close()
	}
}

// sweepFolder removes the folder of a temporary that a crash took away.
func sweepFolder(d Dir, base string) {
	if _, err := ParseGUID(path.Base(base)); err != nil {
		return
	}
	if _, err := d.Stat(base + temporarySuffix); errors.Is(err, iofs.ErrNotExist) {
		_ = removeTree(d, base+folderSuffix)
	}
}

// folderOfTemporary is the folder that goes with a temporary, where several files
// get their names with one rename: as long as it is there so is the temporary, but
// for a crash.
func folderOfTemporary(temp string) string {
	return strings.TrimSuffix(temp, temporarySuffix) + folderSuffix
}

const folderSuffix = ".dir"

// removeTree removes a folder of ours with the files in it; nothing where there is
// none.
func removeTree(d Dir, name string) error {
	list, err := d.List(name)
	for _, e := range list {
		if err == nil {
			err = d.Remove(path.Join(name, e.Name))
		}
	}
	if err == nil {
		err = d.Remove(name)
	}
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
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
	if base := path.Base(typed); strings.HasSuffix(typed, "/") || base == "." {
		return Ref{}, Errorf(ErrUsage, 0, "%s=%q: want the path of a file", key, typed)
	}
	ref, err := r.placeOrFolder(key, typed, others...)
	if err == nil && ref.Name == "." {
		err = Errorf(ErrForbidden, 0, "%s=%q: outside of the folders that are open here", key, typed)
	}
	return ref, err
}

// placeOrFolder is place that takes folders too, the image folder itself among them.
func (r *Request) placeOrFolder(key, typed string, others ...Dir) (Ref, error) {
	parts := strings.Split(typed, "/")
	switch {
	case slices.Contains(parts, ".."):
		return Ref{}, Errorf(ErrUsage, 0, "%s=%q: a path in a request has no \"..\"", key, typed)
	case slices.Contains(parts, StateDir):
		return Ref{}, Errorf(ErrUsage, 0, "%s=%q: %s is for files of vhdfs itself", key, typed, StateDir)
	case !path.IsAbs(typed):
		return r.Library.Top(path.Clean(typed)), nil
	}
	for _, d := range slices.Concat([]Dir{r.Library.opts.Top}, r.Named, others) {
		if name, ok := beneath(d.Path("."), path.Clean(typed)); ok {
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
		err = ask(h.engine().id)
	}
	if err == nil {
		err = h.askMergeForCopy()
	}
	if err == nil {
		err = l.whenFree(func() error {
			if h.engine().use.merge != nil {
				return h.engine().operated(h.engine().use.operation)
			}
			if h.engine().use.writers > 0 {
				return Errorf(ErrBusy, StatusParentOpen, "%s is open for writing", r.Path())
			}
			h.still = true
			h.engine().use.still++
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
