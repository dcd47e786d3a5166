package main

import (
	"errors"
	"io"
	"path"
	"path/filepath"

	"vhdfs/ops"
	"vhdfs/ops/host"
)

// content is the disk of an image, or of a snapshot, as a backup reads it.
type content interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// NextData is [ops.File.NextData] of the disk; what is not data reads as zeros.
	NextData(off int64) (data, hole int64, err error)
	// Settle returns when whatever was written before is known to change tracking.
	Settle() error
}

// watched is content that may be written while it is read, in order. Each time that
// every bytes were read it asks whether that part still is what it was: the copy of a
// disk in use ends there, and not at its end.
type watched struct {
	content
	every int64
	still func(off, n int64) error

	from, to int64 // from the first byte that was not asked about to the last
	read     int64 // of these
}

// ReadAt implements [io.ReaderAt]; one goroutine reads.
func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	if w.read >= w.every {
		if err := w.still(w.from, w.to-w.from); err != nil {
			return 0, err
		}
		w.read = 0
	}
	if w.read == 0 {
		w.from = off
	}
	n, err := w.content.ReadAt(p, off)
	w.to, w.read = off+int64(n), w.read+int64(n)
	return n, err
}

// openContent opens the raw file in the mount that shows the image; without one, the
// image.
func (b *backupRun) openContent() (content, error) {
	q, err := newRequest(opNamed("tracking"), b.image, nil)
	if err != nil {
		return nil, err
	}
	shown, err := q.control(b.c)
	if err != nil {
		return nil, err
	}
	if shown != nil {
		return openRaw(filepath.Dir(shown.file), b.snapshot)
	}
	folder, name := filepath.Split(q.image)
	f, err := openFolders(b.c, folder, 0, nil)
	if err != nil {
		return nil, err
	}
	h, err := openHandle(f.lib, f.lib.Top(name), b.snapshot)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &imageContent{h, f}, nil
}

// rawContent is a raw file in a mount.
type rawContent struct {
	ops.File
	size int64
}

func openRaw(dir, snapshot string) (_ content, err error) {
	d, err := host.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	name := "raw"
	if snapshot != "" {
		name = path.Join("snapshots", snapshot, name)
	}
	f, err := d.Open(name, ops.Read)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rawContent{f, st.Size}, nil
}

// Size is the virtual size in bytes.
func (r *rawContent) Size() int64 { return r.size }

// Settle makes the kernel write its pages back, whoever made them dirty.
func (r *rawContent) Settle() error { return r.Sync("backup.read") }

// imageContent is an image that no mount shows.
type imageContent struct {
	*ops.Handle
	folders *folders
}

// openHandle opens an image, or the file of a snapshot of a set.
func openHandle(lib *ops.Library, r ops.Ref, snapshot string) (*ops.Handle, error) {
	if snapshot != "" {
		return lib.OpenSnapshot(r, snapshot)
	}
	return lib.Open(r, ops.Read)
}

// Close closes the image and its folder.
func (m *imageContent) Close() error { return errors.Join(m.Handle.Close(), m.folders.Close()) }

// Settle has nothing to do: no kernel is between.
func (m *imageContent) Settle() error { return nil }

// NextData implements content.
func (m *imageContent) NextData(off int64) (data, hole int64, err error) {
	for off < m.Size() {
		x, err := m.Extent(off, m.Size()-off)
		if err != nil {
			return 0, 0, err
		}
		if x.Kind == ops.Data {
			return off, off + x.Len, nil
		}
		off += x.Len
	}
	return 0, 0, io.EOF
}
