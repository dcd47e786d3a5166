// Package folder lays out folders of images for tests and looks at them the way
// users do: through a library, every byte that can be reached, in bounded steps.
package folder

import (
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/sim"
	"vhdfs/vfd"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// Maker stores one file. The images of package fixture are makers.
type Maker interface {
	WriteFile(path string) error
}

// Raw is a file of just these bytes.
type Raw []byte

// WriteFile implements [Maker].
func (r Raw) WriteFile(path string) error { return os.WriteFile(path, r, 0o644) }

// Func makes a maker of a function.
type Func func(path string) error

// WriteFile implements [Maker].
func (f Func) WriteFile(path string) error { return f(path) }

// Hole is a file of this many bytes, none of them stored.
type Hole int64

// WriteFile implements [Maker].
func (h Hole) WriteFile(path string) error {
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return err
	}
	return os.Truncate(path, int64(h))
}

// Link is a symbolic link to this target.
type Link string

// WriteFile implements [Maker].
func (l Link) WriteFile(path string) error { return os.Symlink(string(l), path) }

// Files are what a folder holds, by slash path.
type Files map[string]Maker

// Make lays out a folder.
func Make(t testing.TB, files Files) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	require.NoError(t, os.Mkdir(dir, 0o755))
	Add(t, dir, files)
	return dir
}

// Add puts files into a folder.
func Add(t testing.TB, dir string, files Files) {
	t.Helper()
	for name, m := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, m.WriteFile(path), name)
	}
}

// Formats are all formats in the order in which the program probes them.
func Formats() []*ops.Format {
	return []*ops.Format{vfd.Format, iso.Format, vhd.Format, vhdx.Format, vhdx.SetFormat}
}

// Open makes a library of a folder on the host. It is closed with the test; a
// panic that an image caused fails it.
func Open(t testing.TB, dir string) *ops.Library {
	t.Helper()
	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	return OpenDir(t, d)
}

// OpenDir is [Open] for any directory.
func OpenDir(t testing.TB, d ops.Dir) *ops.Library {
	t.Helper()
	l := ops.NewLibrary(ops.LibraryOptions{
		Top: d, Formats: Formats(),
		Panicked: func(where string, value any, stack []byte) {
			t.Errorf("panic in %s: %v\n%s", where, value, stack)
		},
	})
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		require.NoError(t, d.Close())
	})
	return l
}

// hangs is after what time a test is taken for one that never ends. It is no
// bound on speed: the slowest test stays far below on the slowest machine.
const hangs = 2 * time.Minute

// Watch ends the program with all stacks when the test does not end.
func Watch(t testing.TB) {
	timer := time.AfterFunc(hangs, func() {
		debug.SetTraceback("all")
		panic(t.Name() + " does not end")
	})
	t.Cleanup(func() { timer.Stop() })
}

// Untouched asks, when the test ends, that the folder is as it is now: names,
// sizes, modes, times, stored bytes and the space they take. The host writes back
// first what it holds of them: only then it says for good how much space that is.
func Untouched(t testing.TB, dir string) {
	t.Helper()
	writeBack(t, dir)
	before := Fingerprint(t, dir)
	t.Cleanup(func() { require.Equal(t, before, Fingerprint(t, dir), "the folder was changed") })
}

// writeBack syncs the files of a folder.
func writeBack(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	}))
}

// Fingerprint describes every file of a folder: change times and content too,
// but not access times.
func Fingerprint(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var sum uint64
		if e.Type().IsRegular() {
			if sum, err = checksum(path); err != nil {
				return err
			}
		}
		fmt.Fprintln(&b, path, e.Type(), st.Mode, st.Ino, st.Size, st.Blocks, st.Mtim, st.Ctim, sum)
		return nil
	}))
	return b.String()
}

var crcTable = crc64.MakeTable(crc64.ECMA)

func checksum(path string) (uint64, error) {
	h := crc64.New(crcTable)
	err := EachExtent(path, func(off int64, p []byte) error {
		_, err := fmt.Fprintf(h, "%d:%s", off, p)
		return err
	})
	return h.Sum64(), err
}

// EachExtent hands out the stored bytes of a file in pieces, holes left out.
func EachExtent(path string, visit func(off int64, p []byte) error) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 256<<10)
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		for data < at {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), at-data)], data)
			if err != nil && err != io.EOF {
				return err
			}
			if err := visit(data, buf[:n]); err != nil {
				return err
			}
			if data += int64(n); n == 0 {
				break
			}
		}
	}
}

// SimTop is where [Sim] puts the folder.
const SimTop = "/vms"

// Sim copies a folder of plain files and directories into a host in memory, which
// counts and refuses every change from then on.
func Sim(t testing.TB, dir string) *sim.Host {
	t.Helper()
	h := sim.New()
	top := h.Dir(SimTop)
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return top.Mkdir(name, 0o755)
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			h.Symlink(target, filepath.Join(SimTop, name))
			return err
		case !e.Type().IsRegular():
			h.Special(filepath.Join(SimTop, name))
			return nil
		}
		return copyFile(top, name, path)
	}))
	h.Freeze()
	return h
}

func copyFile(top ops.Dir, name, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := top.Create(name, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(st.Size(), "copy"); err != nil {
		return errors.Join(err, f.Close())
	}
	err = EachExtent(path, func(off int64, p []byte) error {
		_, err := f.WriteAt(p, off)
		return err
	})
	return errors.Join(err, f.Close())
}
