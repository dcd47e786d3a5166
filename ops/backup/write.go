package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"vhdfs/ops"
)

const (
	chunk = 1 << 20 // bytes that are held in memory
	page  = 4096    // zeros are left out in these units
)

// Writer takes the parts of the disk that a backup keeps.
type Writer struct {
	data ops.File
	list *listWriter
	buf  []byte
}

// Create makes a new backup: fill adds what it keeps. After a crash, or an error,
// there is
//
//	bytes     temporaries, which the next backup in the folder removes
//	sync
//	rename    a file without a map, which nothing restores
//	map
//	sync
//	rename    the backup
//
// fs.ErrExist where one of both names is taken: nothing is replaced.
func Create(to ops.Ref, h Head, fill func(*Writer) error) (Totals, error) {
	h.Format = formatName
	list := listOf(to)
	for _, r := range []ops.Ref{to, list} {
		if err := ops.NameIsFree(r); err != nil {
			return Totals{}, err
		}
	}
	var totals Totals
	named := false
	err := ops.MakeFile(list, func(m ops.File) error {
		w := &Writer{list: newListWriter(m), buf: make([]byte, chunk)}
		if err := w.list.line(h); err != nil {
			return err
		}
		err := ops.MakeFile(to, func(f ops.File) error { return w.fill(f, h.Size, fill) })
		if err != nil {
			return err
		}
		named = true
		if err := w.list.end(); err != nil {
			return err
		}
		totals = w.list.totals
		return m.Sync("backup.map")
	})
	if err != nil && named {
		err = errors.Join(err, to.Dir.Remove(to.Name))
	}
	return totals, err
}

// listOf is the map of a backup.
func listOf(r ops.Ref) ops.Ref { return ops.Ref{Dir: r.Dir, Name: r.Name + Suffix} }

func (w *Writer) fill(f ops.File, size int64, fill func(*Writer) error) error {
	w.data = f
	if err := f.Truncate(size, "backup.size"); err != nil {
		return err
	}
	if err := fill(w); err != nil {
		return err
	}
	return f.Sync("backup.data")
}

// Add keeps a range of the disk, which src reads at its own offsets. Ranges come
// in order, and do not overlap.
func (w *Writer) Add(ctx context.Context, r ops.Range, src io.ReaderAt) error {
	if err := w.list.line(extent{r.Off, r.Len}); err != nil {
		return err
	}
	w.list.totals.Ranges++
	w.list.totals.Bytes += r.Len
	return eachChunk(ctx, r, w.buf, src, func(p []byte, off int64) error {
		w.list.digest.Write(p)
		return store(w.data, p, off, nil)
	})
}

// eachChunk reads a range piece by piece.
func eachChunk(ctx context.Context, r ops.Range, buf []byte, src io.ReaderAt, do func(p []byte, off int64) error) error {
	for end := r.Off + r.Len; r.Off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), end-r.Off)]
		if n, err := src.ReadAt(p, r.Off); n < len(p) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read %d bytes at %d: %w", len(p), r.Off, err)
		}
		if err := do(p, r.Off); err != nil {
			return err
		}
		r.Off += int64(len(p))
	}
	return nil
}

// store writes what is not zeros; zeros go to zero, which may be nil where there is
// nothing but zeros in the file.
func store(f ops.File, p []byte, off int64, zero func(off, n int64) error) error {
	for from := 0; from < len(p); {
		empty, to := zeros(p, from)
		for to < len(p) {
			same, end := zeros(p, to)
			if same != empty {
				break
			}
			to = end
		}
		var err error
		switch {
		case !empty:
			_, err = f.WriteAt(p[from:to], off+int64(from))
		case zero != nil:
			err = zero(off+int64(from), int64(to-from))
		}
		if err != nil {
			return err
		}
		from = to
	}
	return nil
}

// zeros tells whether the page of p at from is zeros, and where it ends.
func zeros(p []byte, from int) (bool, int) {
	to := min(from+page, len(p))
	return bytes.Equal(p[from:to], ops.Zeros(int64(to-from))), to
}
