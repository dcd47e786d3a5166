package fs

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// spoolMemory is how many bytes of a document are kept in memory; what is longer
// goes to an unlinked file.
const spoolMemory = 1 << 20

// spool is a rendered document: written once, then read by offset.
type spool struct {
	mem  []byte
	file *os.File // nil until mem is full; holds everything from then on
	size int64
}

var (
	_ io.Writer   = (*spool)(nil)
	_ io.ReaderAt = (*spool)(nil)
)

// Write implements [io.Writer].
func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && len(s.mem)+len(p) > spoolMemory {
		if err := s.spill(); err != nil {
			return 0, err
		}
	}
	if s.file == nil {
		s.mem = append(s.mem, p...)
		s.size += int64(len(p))
		return len(p), nil
	}
	n, err := s.file.Write(p)
	s.size += int64(n)
	return n, err
}

// spill moves what is there to a file without a name.
func (s *spool) spill() error {
	fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil { // a temporary folder that cannot: memory of the kernel's, which it can swap
		fd, err = unix.MemfdCreate("vhdfs-document", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return err
	}
	s.file = os.NewFile(uintptr(fd), "document")
	if _, err := s.file.Write(s.mem); err != nil {
		return err
	}
	s.mem = nil
	return nil
}

// ReadAt implements [io.ReaderAt].
func (s *spool) ReadAt(p []byte, off int64) (int, error) {
	if s.file != nil {
		return s.file.ReadAt(p, off)
	}
	if off >= int64(len(s.mem)) {
		return 0, io.EOF
	}
	n := copy(p, s.mem[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close gives the file back.
func (s *spool) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
