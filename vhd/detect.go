package vhd

import (
	"bytes"
	"errors"
	"io"

	"vhdfs/ops"
)

// slotState says what one place for a footer holds.
type slotState uint8

const (
	slotEmpty   slotState = iota // no cookie
	slotDamaged                  // cookie, wrong checksum
	slotBad                      // right checksum, a field that cannot be
	slotPoison                   // blktap disabled the file
	slotGood
)

// slot is one place for a footer and what was found there.
type slot struct {
	where string
	off   int64
	len   int64 // 512 or 511
	state slotState
	f     footer // not when empty or poisoned
	err   error  // why it is not good
}

// parseSlot judges the 511 or 512 bytes b found at off.
func parseSlot(where string, off int64, b []byte) slot {
	s := slot{where: where, off: off, len: int64(len(b))}
	switch cookie := string(b[:8]); cookie {
	case footerCookie:
	case poisonCookie:
		s.state = slotPoison
		s.err = ops.Errorf(ops.ErrForbidden, ops.StatusFooterCorrupt, "vhd: %s: cookie %q: blktap disabled this file", where, cookie)
		return s
	default:
		s.err = ops.Corruptf(ops.StatusFooterMissing, "vhd: %s: cookie %q, want %q", where, cookie, footerCookie)
		return s
	}
	s.f = decodeFooter(b)
	if !s.f.sumGood() {
		s.state = slotDamaged
		s.err = ops.Corruptf(ops.StatusFooterChecksum, "vhd: %s: checksum %#08x, want %#08x", where, s.f.sum, checksum(s.f.raw[:], footerSumAt))
		return s
	}
	if s.err = s.f.validate(where); s.err != nil {
		s.state = slotBad
		return s
	}
	s.state = slotGood
	return s
}

// slots are the places of a file where a footer may be.
type slots struct {
	size int64 // of the file
	tail slot  // the last 512 bytes, or 511 in a file of 511 more than whole sectors
	head slot  // the copy at 0
	vhdx bool  // the file begins with a VHDX identifier
}

func readSlots(f ops.File) (slots, error) {
	st, err := f.Stat()
	if err != nil {
		return slots{}, err
	}
	s := slots{
		size: st.Size,
		tail: slot{where: "footer", err: ops.Corruptf(ops.StatusFooterMissing, "vhd: footer: a file of %d bytes cannot end in one", st.Size)},
		head: slot{where: "footer copy", err: ops.Corruptf(ops.StatusFooterMissing, "vhd: footer copy: a file of %d bytes holds none", st.Size)},
	}
	n := int64(footerSize)
	if st.Size%sectorSize == shortFooterSize {
		n = shortFooterSize
	}
	if st.Size >= n && (st.Size-n)%sectorSize == 0 {
		if s.tail, err = readSlot(f, "footer", st.Size-n, n); err != nil {
			return s, err
		}
	}
	if st.Size >= footerSize {
		b := make([]byte, footerSize)
		if err := readFull(f, b, 0, "footer copy"); err != nil {
			return s, err
		}
		s.head = parseSlot("footer copy", 0, b)
		s.vhdx = string(b[:8]) == "vhdxfile"
	}
	return s, nil
}

// unchanged compares the footers with those found before: the format has no
// field that would show another writer.
func (s *slots) unchanged(f ops.File) error {
	now, err := readSlots(f)
	if err != nil {
		return err
	}
	if now.size != s.size || now.tail.f != s.tail.f || now.head.f != s.head.f {
		return ops.Errorf(ops.ErrChanged, 0, "vhd: footer: the file is not what it was when it was opened")
	}
	return nil
}

func readSlot(f ops.File, where string, off, n int64) (slot, error) {
	b := make([]byte, n)
	if err := readFull(f, b, off, where); err != nil {
		return slot{}, err
	}
	return parseSlot(where, off, b), nil
}

// probe tells whether f is a VHD. The end of the file decides: what stands at
// its beginning may be a guest's own doing. A copy at 0 alone counts only where
// it leads to a dynamic header, and never against an extension of a format whose
// first sector a guest can write.
func probe(f ops.File, ext string) (bool, error) {
	if ext == ".vfd" || ext == ".iso" {
		return false, nil
	}
	s, err := readSlots(f)
	if err != nil {
		return false, err
	}
	own := ext == ".vhd" || ext == ".avhd"
	if s.vhdx && (ext == ".vhdx" || ext == ".avhdx" || ext == ".vhds") {
		return false, nil
	}
	switch {
	case s.tail.state == slotGood, s.tail.state == slotBad, s.tail.state == slotPoison:
		return true, nil
	case s.tail.state == slotDamaged:
		return own || !s.vhdx, nil
	case s.head.state == slotEmpty:
		if !own {
			return false, nil
		}
		_, found, err := strayFooter(f, s.size)
		return found, err
	case own:
		return true, nil
	}
	_, err = headFooter(f, &s)
	return err == nil, passReadErrors(err)
}

// passReadErrors keeps what the host refused and drops what the content is.
func passReadErrors(err error) error {
	if isCorrupt(err) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, ops.ErrForbidden) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// headFooter reads the dynamic header that the copy at 0 leads to, if the copy
// is good and not one of a fixed disk: those have none, so it would be a guest's.
func headFooter(f ops.File, s *slots) (header, error) {
	if s.head.state != slotGood {
		return header{}, s.head.err
	}
	if s.head.f.typ() == ops.Fixed {
		return header{}, ops.Corruptf(ops.StatusFooterMissing, "vhd: footer copy: a fixed disk has its footer at the end, and there is none")
	}
	return readHeader(f, &s.head.f, s.size)
}

// strayWindow is how far back from the last stored byte a footer is looked for.
const strayWindow = 64 << 10

// stray is a good footer that does not end the file.
type stray struct {
	slot
	zeros bool // all that follows it is zeros
}

// hangs tells whether the footer is the last thing of a fixed disk's file.
func (s *stray) hangs() bool {
	return s.zeros && s.f.typ() == ops.Fixed && int64(s.f.currentSize) <= s.off
}

// strayFooter looks for a footer that does not end the file because something
// was appended to it, or because the file grew and nothing was stored there.
func strayFooter(f ops.File, size int64) (found stray, ok bool, err error) {
	end, err := storedEnd(f, size)
	if err != nil {
		return stray{}, false, err
	}
	start := max(end-strayWindow, 0) / sectorSize * sectorSize
	b := make([]byte, end-start)
	if len(b) < footerSize {
		return stray{}, false, nil
	}
	if err := readFull(f, b, start, "end of file"); err != nil {
		return stray{}, false, err
	}
	for i := (len(b) - footerSize) / sectorSize * sectorSize; i >= 0; i -= sectorSize {
		if !bytes.HasPrefix(b[i:], []byte(footerCookie)) {
			continue
		}
		found.slot = parseSlot("footer", start+int64(i), b[i:i+footerSize])
		if found.state == slotGood {
			rest := b[i+footerSize:]
			found.zeros = bytes.Equal(rest, ops.Zeros(int64(len(rest))))
			return found, true, nil
		}
	}
	return stray{}, false, nil
}

// storedEnd is where the last data stored in a file of size bytes end: a whole
// sector, or the end of the file. The host is asked about 40 times, however large the
// file: where nothing more is stored, nothing is behind that either.
func storedEnd(f ops.File, size int64) (int64, error) {
	lo, hi := int64(0), size // data end in [lo, hi]
	for lo < hi {
		mid := lo + (hi-lo)/2
		_, hole, err := f.NextData(mid)
		switch {
		case errors.Is(err, io.EOF):
			hi = mid
		case errors.Is(err, errors.ErrUnsupported):
			return size, nil
		case err != nil:
			return 0, err
		default:
			lo = min(max(hole, mid+1), hi)
		}
	}
	return min(roundUp(hi, sectorSize), size), nil
}
