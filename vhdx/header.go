package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"vhdfs/ops"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	// pageSize is the unit of logged updates, and of the cache ([MS-VHDX] 2.3).
	pageSize = int64(4096)
	// maxFile is more than the largest disk needs: 64 TiB of payload, 16 GiB of
	// sector bitmaps, half a GiB of BAT. No offset past it is believed.
	maxFile = int64(65) << 40

	signature    = "vhdxfile"
	headerSize   = 4096
	creatorField = 512 // bytes of UTF-16
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// headerOffset is where the two headers stand.
	headerOffset = [2]int64{64 * kib, 128 * kib}
)

// checksum is the CRC-32C of b with the field at bytes 4 to 7 taken as zeros.
func checksum(b []byte) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, b[:4])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, b[8:])
}

func corruptf(status ops.StatusCode, format string, args ...any) error {
	return ops.Corruptf(status, "vhdx: "+format, args...)
}

// readFull fills p from off. What the file does not have is corruption: every
// structure was checked against the size of the file, or is so by this.
func readFull(r io.ReaderAt, p []byte, off int64, what string) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return corruptf(ops.StatusFileSizeInvalid, "%s: file ends at %#x, inside the %d bytes at %#x", what, off+int64(n), len(p), off)
	}
	return fmt.Errorf("vhdx: read %s: %w", what, err)
}

// header is one of the two copies at 64 and 128 KiB ([MS-VHDX] 2.2.2). The valid
// copy with the higher sequence number is the current one.
type header struct {
	seq        uint64
	fileWrite  ops.GUID
	dataWrite  ops.GUID
	log        ops.GUID // zero: nothing to replay
	logVersion uint16
	version    uint16
	logLength  uint32
	logOffset  uint64
}

// decodeHeader reads a copy and checks signature and checksum, nothing else.
func decodeHeader(b []byte) (header, error) {
	if got := string(b[0:4]); got != "head" {
		return header{}, corruptf(ops.StatusFooterCorrupt, "signature %q, want %q", got, "head")
	}
	if got, want := le.Uint32(b[4:]), checksum(b[:headerSize]); got != want {
		return header{}, corruptf(ops.StatusFooterChecksum, "checksum %#08x, want %#08x", got, want)
	}
	return header{
		seq:        le.Uint64(b[8:]),
		fileWrite:  ops.GUIDFromLE(b[16:]),
		dataWrite:  ops.GUIDFromLE(b[32:]),
		log:        ops.GUIDFromLE(b[48:]),
		logVersion: le.Uint16(b[64:]),
		version:    le.Uint16(b[66:]),
		logLength:  le.Uint32(b[68:]),
		logOffset:  le.Uint64(b[72:]),
	}, nil
}

// encode is the copy as it stands in the file, checksum included.
func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, "head")
	le.PutUint64(b[8:], h.seq)
	h.fileWrite.PutLE(b[16:])
	h.dataWrite.PutLE(b[32:])
	h.log.PutLE(b[48:])
	le.PutUint16(b[64:], h.logVersion)
	le.PutUint16(b[66:], h.version)
	le.PutUint32(b[68:], h.logLength)
	le.PutUint64(b[72:], h.logOffset)
	le.PutUint32(b[4:], checksum(b))
	return b
}

// check judges the current header against a file of size bytes.
func (h header) check(size int64) error {
	if h.version != 1 {
		return corruptf(ops.StatusVersionUnsupported, "header: version %d, want 1", h.version)
	}
	if h.log.IsZero() && h.logLength == 0 {
		return nil // no log and no need of one: good for reading
	}
	if !h.log.IsZero() && h.logVersion != 0 {
		return corruptf(ops.StatusVersionUnsupported, "header: log version %d, want 0", h.logVersion)
	}
	if h.logLength == 0 || int64(h.logLength)%mib != 0 {
		return corruptf(ops.StatusFooterCorrupt, "header: log length %#x is not a multiple of 1 MiB", h.logLength)
	}
	if h.logOffset < uint64(mib) || h.logOffset%uint64(mib) != 0 {
		return corruptf(ops.StatusFooterCorrupt, "header: log offset %#x is not a multiple of 1 MiB from 1 MiB on", h.logOffset)
	}
	if h.logOffset > uint64(size) || int64(h.logLength) > size-int64(h.logOffset) {
		return corruptf(ops.StatusFileSizeInvalid, "header: log at %#x of %#x bytes past end of file %#x", h.logOffset, h.logLength, size)
	}
	return nil
}

// logSpan is where the log lies; empty when there is none.
func (h header) logSpan() span {
	return span{off: int64(h.logOffset), end: int64(h.logOffset) + int64(h.logLength)}
}

// headers are both copies as read, and which one counts.
type headers struct {
	current   header
	slot      int // of the current one
	anomalies []ops.Anomaly
}

// pickHeader chooses the current header of two raw copies ([MS-VHDX] 2.2.2).
// Equal sequence numbers are taken when the copies are the same byte for byte,
// as Disk2vhd writes them; otherwise nobody can know which is newer.
func pickHeader(raw [2][]byte) (headers, error) {
	var hs headers
	var h [2]header
	var bad [2]error
	for i := range raw {
		h[i], bad[i] = decodeHeader(raw[i])
		if bad[i] != nil {
			hs.anomalies = append(hs.anomalies, ops.Anomaly{
				Name: "vhdx.header.invalid", Severity: ops.Warning,
				Where: headerName(i), Text: bad[i].Error(),
			})
		}
	}
	switch {
	case bad[0] != nil && bad[1] != nil:
		return hs, ops.Wrapf(bad[0], ops.ErrCorrupt, ops.StatusFooterCorrupt, "vhdx: both headers are invalid")
	case bad[0] != nil:
		hs.slot = 1
	case bad[1] != nil:
		hs.slot = 0
	case h[0].seq == h[1].seq && !bytes.Equal(raw[0], raw[1]):
		return hs, corruptf(ops.StatusFooterCorrupt, "headers: two different copies with sequence number %d", h[0].seq)
	case h[1].seq > h[0].seq:
		hs.slot = 1
	}
	if bad[0] == nil && bad[1] == nil && h[0].seq == h[1].seq {
		hs.anomalies = append(hs.anomalies, ops.Anomaly{
			Name: "vhdx.header.equal", Severity: ops.Note,
			Where: "headers", Text: "both copies have the same sequence number and the same content",
		})
	}
	hs.current = h[hs.slot]
	return hs, nil
}

func headerName(slot int) string { return [2]string{"header 1", "header 2"}[slot] }
