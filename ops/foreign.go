package ops

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"sync"
	"sync/atomic"
)

// Endings of the files in which Hyper-V keeps, beside an image, which parts of it
// changed; and what they get at the end when that is not true any more.
var foreignTracking = []string{".rct", ".mrt"}

const (
	staleSuffix = ".stale-by-vhdfs"
	maxStale    = 1000 // of one name
)

// retireForeign comes before the first change of an image: Hyper-V's files beside
// it do not know of what is written here. They get other names, so that Hyper-V finds
// none and makes a full backup, never a short one.
//
//	rename        nothing of the image has changed
//	sync folder   before anything does; again where another session may not have come so far
func (l *Library) retireForeign(image Ref) error {
	stale := false
	for _, ending := range foreignTracking {
		there, err := l.retire(image, image.Name+ending)
		if err != nil {
			return fmt.Errorf("%s is about to be written, of which %s would not know, and that cannot be renamed: %w", image.Path(), image.Dir.Path(image.Name+ending), err)
		}
		stale = stale || there
	}
	if !stale {
		return nil
	}
	if err := image.Dir.Sync(path.Dir(image.Name), "foreign.rename"); err != nil {
		return Wrapf(err, ErrPoisoned, 0, "%s: other names of Hyper-V's files beside it are not durable", image.Path())
	}
	return nil
}

// retire renames one file, where it is there, and tells whether one has that name.
func (l *Library) retire(image Ref, from string) (stale bool, err error) {
	st, err := image.Dir.Stat(from)
	switch {
	case errors.Is(err, iofs.ErrNotExist) || err == nil && !st.IsRegular:
		if _, err = image.Dir.Stat(from + staleSuffix); errors.Is(err, iofs.ErrNotExist) {
			return false, nil
		}
		return true, err
	case err != nil:
		return false, err
	}
	to, err := makeStale(image.Dir, from)
	if err == nil && l.opts.Retired != nil {
		l.opts.Retired(image, image.Dir.Path(from), image.Dir.Path(to))
	}
	return true, err
}

// makeStale renames a file, to a name that is free.
func makeStale(d Dir, from string) (to string, err error) {
	to = from + staleSuffix
	for n := 2; n <= maxStale; n++ {
		if err = d.Rename(from, to); !errors.Is(err, iofs.ErrExist) {
			return to, err
		}
		to = fmt.Sprintf("%s%s.%d", from, staleSuffix, n)
	}
	return to, err
}

// firstWrite is the file of a write session. before comes before anything in the file
// changes, until it succeeds: as long as it fails, nothing does. A sync of it that
// failed is final.
type firstWrite struct {
	File
	before func() error
	done   atomic.Bool
	mu     struct {
		sync.Mutex
		failed error
	}
}

func (f *firstWrite) begin() error {
	if f.done.Load() {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done.Load() || f.mu.failed != nil {
		return f.mu.failed
	}
	err := f.before()
	if errors.Is(err, ErrPoisoned) {
		f.mu.failed = err
	}
	f.done.Store(err == nil)
	return err
}

// WriteAt implements [File].
func (f *firstWrite) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

// Truncate implements [File].
func (f *firstWrite) Truncate(size int64, label string) error {
	if err := f.begin(); err != nil {
		return err
	}
	return f.File.Truncate(size, label)
}

// Punch implements [File].
func (f *firstWrite) Punch(off, n int64) error {
	if err := f.begin(); err != nil {
		return err
	}
	return f.File.Punch(off, n)
}

// Allocate implements [File].
func (f *firstWrite) Allocate(off, n int64) error {
	if err := f.begin(); err != nil {
		return err
	}
	return f.File.Allocate(off, n)
}
