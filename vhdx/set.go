package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"unicode/utf16"

	"vhdfs/ops"
)

// SetFormat is the VHD set: a small file that names the active .avhdx beside
// it. Its layout is not published. What is read here is that of a set without
// snapshots, as one file by Windows has it:
//
//	0        "vhdsetv1", creator in UTF-16LE
//	64 KiB   header A       the valid header with the higher
//	128 KiB  header B       sequence number is the current one
//	256 KiB  name of the active disk, UTF-16LE
//	260 KiB  end of the file
//
// Everything else in that file is zero. A set that holds more, or other values
// in its header, is read as far as this goes and never written.
//
// A set with snapshots is in a layout of our own, with another identifier, so that
// nobody who does not know it takes the files of snapshots for garbage:
//
//	0        "vhdfsset", creator in UTF-16LE
//	64 KiB … 192 KiB, 256 KiB … 260 KiB: as above, and without a meaning
//	192 KiB  own header A    the valid header with the higher
//	224 KiB  own header B    sequence number is the current one
//	320 KiB … bodies: the one that the current header names, and room for the next
//
// A body is one whole table; see [setBody]. docs/vhds.md has every field.
var SetFormat = &ops.Format{
	Name:       "vhds",
	Number:     ops.FormatSet,
	Extensions: []string{".vhds"},
	Probe:      setProbe,
	Set:        setRead,
	CreateSet:  setCreate,
	CommitSet:  setCommit,
}

const (
	setSignature   = "vhdsetv1"
	setCreatorOff  = 8
	setCreatorSize = 512

	setHeaderSize    = 4096
	setHeaderUsed    = 36 // bytes of a header that have a known meaning
	setHeaderVersion = 1
	setHeaderKind    = 7 // of the entry that holds offset and length; its meaning is not known

	setNameOffset = 0x40000
	setNameArea   = 4096
	setFileSize   = setNameOffset + setNameArea
	setNameMax    = 255 // UTF-16 units and, in UTF-8, bytes: the longest name of a file

	setScanChunk = 64 << 10
)

var (
	setHeaderOffsets = [2]int64{0x10000, 0x20000}
	setCRC           = crc32.MakeTable(crc32.Castagnoli)
)

// setProbe tells by content, and by the name for a set that is damaged. Under
// the names of disks the identifier is a guest's business.
func setProbe(f ops.File, ext string) (bool, error) {
	if ext != "" {
		return ext == ".vhds", nil
	}
	b := make([]byte, len(setSignature))
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("vhds: identifier: %w", err)
	}
	return string(b[:n]) == setSignature || string(b[:n]) == setOwnSignature, nil
}

// setHeader is one of the two headers. Numbers are little-endian.
type setHeader struct {
	seq        uint64
	version    uint32
	kind       uint32
	nameOffset uint32
	nameLength uint32 // bytes
	unknown    bool   // something follows the fields known here
}

// setDecodeHeader reads b, 4096 bytes. The word at 4 is garbage in files by
// Windows; the checksum covers it.
func setDecodeHeader(b []byte) (setHeader, error) {
	if s := string(b[:4]); s != "shdr" {
		return setHeader{}, fmt.Errorf("signature %q, want %q", s, "shdr")
	}
	le := binary.LittleEndian
	crc := crc32.Update(crc32.Checksum(b[:20], setCRC), setCRC, []byte{0, 0, 0, 0})
	if got, want := le.Uint32(b[20:]), crc32.Update(crc, setCRC, b[24:]); got != want {
		return setHeader{}, fmt.Errorf("checksum %#08x, want %#08x", got, want)
	}
	return setHeader{
		seq:        le.Uint64(b[8:]),
		version:    le.Uint32(b[16:]),
		kind:       le.Uint32(b[24:]),
		nameOffset: le.Uint32(b[28:]),
		nameLength: le.Uint32(b[32:]),
		unknown:    !setZero(b[setHeaderUsed:]),
	}, nil
}

// odd says what of a header is not as in a set without snapshots; "" for nothing.
func (h *setHeader) odd() string {
	switch {
	case h.version != setHeaderVersion:
		return fmt.Sprintf("version %d, want %d", h.version, setHeaderVersion)
	case h.kind != setHeaderKind:
		return fmt.Sprintf("value %d at 0x18, want %d", h.kind, setHeaderKind)
	case h.nameOffset != setNameOffset:
		return fmt.Sprintf("name at %#x, want %#x", h.nameOffset, setNameOffset)
	case h.unknown:
		return fmt.Sprintf("content after byte %#x", setHeaderUsed)
	}
	return ""
}

// setReads bounds how often a set that is being changed meanwhile is read.
const setReads = 8

// setRead reads a set: a few small reads, a scan of at most 260 KiB and one body.
// It writes nothing and does not look for the disk that is named.
func setRead(f ops.File) (ops.Set, error) {
	before, err := setState(f)
	for range setReads {
		if err != nil {
			return ops.Set{}, err
		}
		set, failed := setReadOnce(f, before)
		after, e := setState(f)
		if e == nil && bytes.Equal(before, after) {
			return set, failed
		}
		before, err = after, e
	}
	return ops.Set{}, ops.Errorf(ops.ErrBusy, 0, "vhds: changed while it was read, %d times", setReads)
}

// setState is all that a commit changes last: the identifier and the own headers.
func setState(f ops.File) ([]byte, error) {
	b := make([]byte, setCreatorOff+setCreatorSize+len(setOwnOffsets)*setOwnSize)
	if err := setFill(f, b[:setCreatorOff+setCreatorSize], 0, "identifier"); err != nil {
		return nil, err
	}
	for i, off := range setOwnOffsets {
		at := setCreatorOff + setCreatorSize + i*setOwnSize
		if n, err := f.ReadAt(b[at:at+setOwnSize], off); n < setOwnSize && err != nil && err != io.EOF {
			return nil, fmt.Errorf("vhds: own header %c: %w", 'A'+i, err)
		}
	}
	return b, nil
}

// setReadOnce reads a set whose state is known.
func setReadOnce(f ops.File, state []byte) (ops.Set, error) {
	id, own := state[:setCreatorOff+setCreatorSize], setOwnHeaders(state[setCreatorOff+setCreatorSize:])
	creator, n := setCreator(id[setCreatorOff:])
	switch s := string(id[:setCreatorOff]); s {
	case setSignature:
		return setReadPlain(f, creator, setCreatorOff+n, own)
	case setOwnSignature:
		return setReadOwn(f, creator, own)
	default:
		return ops.Set{}, ops.Corruptf(ops.StatusFormatUnknown, "vhds: identifier %q, want %q", s, setSignature)
	}
}

// setReadPlain reads the layout of a set without snapshots. head is where the
// creator ends. What a change to or from the other layout left, when it was broken
// off, is known by one of its headers.
func setReadPlain(f ops.File, creator string, head int, own setOwn) (ops.Set, error) {
	st, err := f.Stat()
	if err != nil {
		return ops.Set{}, fmt.Errorf("vhds: %w", err)
	}
	h, anomalies, reason, err := setReadHeaders(f)
	if err != nil {
		return ops.Set{}, err
	}
	leaf, err := setReadName(f, h, st.Size)
	if err != nil {
		return ops.Set{}, err
	}
	if own.any() {
		anomalies = append(anomalies, ops.Anomaly{Name: "vhds.leftover", Severity: ops.Note, Where: "own headers",
			Text: "a change of the set was broken off; the next one removes what it left"})
	}
	if reason == "" {
		if reason, err = setUnknown(f, h, head, st.Size, own.any()); err != nil {
			return ops.Set{}, err
		}
	}
	if reason != "" {
		reason = "the set holds what is not known here (" + reason + "), perhaps snapshots"
	}
	return ops.Set{Leaf: leaf, Creator: creator, ReadOnly: reason, Anomalies: anomalies}, nil
}

// setFill reads all of b from off: a set is refused where it ends before that.
func setFill(f ops.File, b []byte, off int64, what string) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		return ops.Corruptf(ops.StatusFileSizeInvalid, "vhds: %s: the file ends at %#x, within %#x-%#x", what, off+int64(n), off, off+int64(len(b)))
	}
	return fmt.Errorf("vhds: %s: %w", what, err)
}

// setReadHeaders gives the current header, and why the set must not be written.
// One header may be torn by a crash.
func setReadHeaders(f ops.File) (current setHeader, anomalies []ops.Anomaly, reason string, err error) {
	var good []setHeader
	var bad []string
	for i, off := range setHeaderOffsets {
		b := make([]byte, setHeaderSize)
		where := fmt.Sprintf("header %c", 'A'+i)
		if err := setFill(f, b, off, where); err != nil {
			return current, nil, "", err
		}
		h, err := setDecodeHeader(b)
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", where, err))
			anomalies = append(anomalies, ops.Anomaly{Name: "vhds.header", Severity: ops.Warning, Where: where,
				Text: err.Error() + "; the other header is used"})
			continue
		}
		good = append(good, h)
		if odd := h.odd(); odd != "" && reason == "" {
			reason = where + ": " + odd
		}
	}
	switch {
	case len(good) == 0:
		return current, nil, "", ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: %s", strings.Join(bad, "; "))
	case len(good) == 2 && good[0].seq == good[1].seq && good[0] != good[1]:
		return current, nil, "", ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: headers A and B differ and have the same sequence number %d", good[0].seq)
	case len(good) == 2 && good[1].seq > good[0].seq:
		current = good[1]
	default:
		current = good[0]
	}
	return current, anomalies, reason, nil
}

// setReadName reads the name of the active disk: a plain file name.
func setReadName(f ops.File, h setHeader, size int64) (string, error) {
	if h.nameLength == 0 || h.nameLength%2 != 0 || h.nameLength > 2*setNameMax {
		return "", ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: name of %d bytes: want an even number up to %d", h.nameLength, 2*setNameMax)
	}
	if int64(h.nameOffset)+int64(h.nameLength) > size {
		return "", ops.Corruptf(ops.StatusFileSizeInvalid,
			"vhds: name of %d bytes at %#x past end of file %#x", h.nameLength, h.nameOffset, size)
	}
	b := make([]byte, h.nameLength)
	if err := setFill(f, b, int64(h.nameOffset), "name"); err != nil {
		return "", err
	}
	name, ok := setText(b)
	bare := name != "." && name != ".." && !strings.ContainsAny(name, "/\\\x00")
	if !ok || !bare || len(name) > setNameMax {
		return "", ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: active disk %q is no name of a file", name)
	}
	if strings.HasSuffix(strings.ToLower(name), ".vhds") {
		return "", ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: active disk %q is a set itself", name)
	}
	return name, nil
}

// setText decodes UTF-16LE; false when a surrogate stands alone.
func setText(b []byte) (string, bool) {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	r := utf16.Decode(u)
	return string(r), slices.Equal(utf16.Encode(r), u)
}

// setCreator is the text before the first NUL unit of b, and its length in bytes.
func setCreator(b []byte) (string, int) {
	n := 0
	for n < len(b) && (b[n] != 0 || b[n+1] != 0) {
		n += 2
	}
	s, _ := setText(b[:n])
	return s, n
}

// setZero tells whether b, at most setScanChunk bytes, is zeros.
func setZero(b []byte) bool { return bytes.Equal(b, ops.Zeros(int64(len(b)))) }

// setUnknown names the first content outside the structures known here, or
// answers "": identifier and creator end at head. The file is read a chunk at a
// time; one that has not the one known size is not looked through. With own, all of
// the place that our own layout takes is known.
func setUnknown(f ops.File, h setHeader, head int, size int64, own bool) (string, error) {
	if size != setFileSize && !(own && size > setFileSize) {
		return fmt.Sprintf("file of %d bytes, want %d", size, setFileSize), nil
	}
	known := [][2]int64{
		{0, int64(head)},
		{setHeaderOffsets[0], setHeaderOffsets[0] + setHeaderSize},
		{setHeaderOffsets[1], setHeaderOffsets[1] + setHeaderSize},
		{int64(h.nameOffset), int64(h.nameOffset) + int64(h.nameLength)},
	}
	if own {
		known = append(known, [2]int64{setOwnOffsets[0], setNameOffset})
	}
	b := make([]byte, setScanChunk)
	for off := int64(0); off < setFileSize; off += setScanChunk {
		b = b[:min(setScanChunk, setFileSize-off)]
		if err := setFill(f, b, off, "content"); err != nil {
			return "", err
		}
		for _, k := range known {
			if lo, hi := max(k[0]-off, 0), min(k[1]-off, int64(len(b))); lo < hi {
				clear(b[lo:hi])
			}
		}
		if setZero(b) {
			continue
		}
		i := slices.IndexFunc(b, func(c byte) bool { return c != 0 })
		return fmt.Sprintf("content at %#x", off+int64(i)), nil
	}
	return "", nil
}
