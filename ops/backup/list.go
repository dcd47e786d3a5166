package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"time"

	"vhdfs/ops"
)

// Suffix is what the name of a map has after that of the bytes.
const Suffix = ".map"

const (
	formatName = "vhdfs backup 1"
	maxLine    = 4096     // bytes of a line of a map
	maxSize    = 64 << 40 // bytes of a disk: no format of ours has larger ones
)

// Head says what a backup is of.
type Head struct {
	Format string
	Size   int64    // bytes of the disk
	DiskID ops.GUID // VirtualDiskId
	Since  string   // id of the content that it changes; "": it is a full one
	ID     string   // id of the content that it ends with
	Taken  time.Time
}

// Totals are what a backup keeps.
type Totals struct {
	Ranges int64
	Bytes  int64
	SHA256 string // in hexadecimal
}

// extent is the line of a range.
type extent struct{ Offset, Length int64 }

// listWriter writes a map.
type listWriter struct {
	w      *bufio.Writer
	digest hash.Hash
	totals Totals
}

func newListWriter(f ops.File) *listWriter {
	return &listWriter{w: bufio.NewWriterSize(io.NewOffsetWriter(f, 0), 64<<10), digest: sha256.New()}
}

// line writes a line that the digest covers.
func (l *listWriter) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	l.digest.Write(b)
	_, err = l.w.Write(b)
	return err
}

// end writes the line that makes the map whole.
func (l *listWriter) end() error {
	l.totals.SHA256 = hex.EncodeToString(l.digest.Sum(nil))
	b, err := json.Marshal(l.totals)
	if err != nil {
		return err
	}
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		return err
	}
	return l.w.Flush()
}

// listReader reads a map and judges it.
type listReader struct {
	path   string
	r      *bufio.Reader
	digest hash.Hash
	number int64 // of the line
	head   Head
	seen   Totals
	last   int64 // where the range before ended
}

func newListReader(path string, f ops.File) (*listReader, error) {
	l := &listReader{path: path, r: bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 64<<10), digest: sha256.New()}
	b, err := l.line()
	if err != nil {
		return nil, err
	}
	if err := l.decode(b, &l.head); err != nil {
		return nil, err
	}
	switch h := l.head; {
	case h.Format != formatName:
		return nil, l.corrupt("Format is %q, want %q", h.Format, formatName)
	case h.Size < 1 || h.Size > maxSize:
		return nil, l.corrupt("Size is %d", h.Size)
	case h.ID == "":
		return nil, l.corrupt("it has no ID")
	}
	l.digest.Write(b)
	return l, nil
}

func (l *listReader) corrupt(format string, args ...any) error {
	return ops.Errorf(ops.ErrBackup, 0, "backup %s: map line %d: "+format, append([]any{l.path, l.number}, args...)...)
}

// line is the next one, with its newline. It is valid until the one after it.
func (l *listReader) line() ([]byte, error) {
	l.number++
	b, err := l.r.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF):
		return nil, l.corrupt("the map ends here, and not with its digest")
	case errors.Is(err, bufio.ErrBufferFull), err == nil && len(b) > maxLine:
		return nil, l.corrupt("longer than %d bytes", maxLine)
	}
	return b, err
}

func (l *listReader) decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return l.corrupt("%v", err)
	}
	return nil
}

// next is the next range, whose bytes have to be given to the digest; false at an
// end where everything is as it was written.
func (l *listReader) next() (ops.Range, bool, error) {
	b, err := l.line()
	if err != nil {
		return ops.Range{}, false, err
	}
	var x struct {
		extent
		Totals
	}
	if err := l.decode(b, &x); err != nil {
		return ops.Range{}, false, err
	}
	if x.SHA256 != "" {
		return ops.Range{}, false, l.judge(x.Totals)
	}
	if x.Offset < l.last || x.Length < 1 || x.Length > l.head.Size-x.Offset {
		return ops.Range{}, false, l.corrupt("%d bytes at %d: not after %d, or past the end of the disk of %d bytes", x.Length, x.Offset, l.last, l.head.Size)
	}
	l.digest.Write(b)
	l.last = x.Offset + x.Length
	l.seen.Ranges, l.seen.Bytes = l.seen.Ranges+1, l.seen.Bytes+x.Length
	return ops.Range{Off: x.Offset, Len: x.Length}, true, nil
}

// judge compares what was read with the end of the map.
func (l *listReader) judge(end Totals) error {
	l.seen.SHA256 = hex.EncodeToString(l.digest.Sum(nil))
	if l.seen != end {
		return l.corrupt("%d ranges of %d bytes with digest %s, want %d of %d with %s: damaged, or not the map of this file",
			l.seen.Ranges, l.seen.Bytes, l.seen.SHA256, end.Ranges, end.Bytes, end.SHA256)
	}
	if _, err := l.r.ReadByte(); err != io.EOF {
		l.number++
		return l.corrupt("it goes on after its end")
	}
	return nil
}
