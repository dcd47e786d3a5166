package vhdx

import (
	"fmt"
	"hash/crc32"
	"time"

	"vhdfs/ops"
)

const (
	setOwnSignature = "vhdfsset"
	setOwnMagic     = "vhdfshdr"
	setOwnVersion   = 1
	setOwnSize      = 512 // of a header: one sector, which no crash tears
	setOwnUsed      = 72  // bytes of it that have a meaning; the rest is zero

	setBodyOffset = 0x50000 // of the first body
	setBodyAlign  = 0x10000
	setBodyMax    = 16 << 20 // bytes: more than the greatest set takes
)

var setOwnOffsets = [2]int64{0x30000, 0x38000}

// setOwnHeader is a header of our own layout. Numbers are little-endian:
//
//	0   "vhdfshdr"
//	8   version
//	12  CRC-32C of the 512 bytes with this field zero
//	16  sequence number
//	24  id of the set, the virtual disk's id
//	56  offset of the body, its length and its CRC-32C
//
// One without a body only says that what surrounds it is ours.
type setOwnHeader struct {
	seq        uint64
	id, diskID ops.GUID
	bodyOffset uint64
	bodyLength uint32
	bodyCRC    uint32
}

// setOwn are the two of a file; nil for one that is not valid.
type setOwn [2]*setOwnHeader

func (o setOwn) any() bool { return o[0] != nil || o[1] != nil }

// current is the valid header with the higher sequence number that names a body,
// or any if there is none; -1 without. The slot comes with it.
func (o setOwn) current() (*setOwnHeader, int) {
	var best *setOwnHeader
	slot := -1
	for i, h := range o {
		if h != nil && (best == nil || h.seq > best.seq) {
			best, slot = h, i
		}
	}
	return best, slot
}

// next is the sequence number of the next header; 1 where there is none.
func (o setOwn) next() uint64 {
	if h, _ := o.current(); h != nil {
		return h.seq + 1
	}
	return 1
}

func setOwnHeaders(b []byte) setOwn {
	var o setOwn
	for i := range o {
		o[i] = setDecodeOwn(b[i*setOwnSize : (i+1)*setOwnSize])
	}
	return o
}

// setDecodeOwn reads b, 512 bytes; nil when they are no valid header.
func setDecodeOwn(b []byte) *setOwnHeader {
	if string(b[:8]) != setOwnMagic || le.Uint32(b[8:]) != setOwnVersion || !setZero(b[setOwnUsed:]) {
		return nil
	}
	crc := crc32.Update(crc32.Checksum(b[:12], setCRC), setCRC, []byte{0, 0, 0, 0})
	if crc32.Update(crc, setCRC, b[16:]) != le.Uint32(b[12:]) {
		return nil
	}
	return &setOwnHeader{
		seq: le.Uint64(b[16:]), id: ops.GUIDFromLE(b[24:]), diskID: ops.GUIDFromLE(b[40:]),
		bodyOffset: le.Uint64(b[56:]), bodyLength: le.Uint32(b[64:]), bodyCRC: le.Uint32(b[68:]),
	}
}

func (h *setOwnHeader) encode() []byte {
	b := make([]byte, setOwnSize)
	copy(b, setOwnMagic)
	le.PutUint32(b[8:], setOwnVersion)
	le.PutUint64(b[16:], h.seq)
	h.id.PutLE(b[24:])
	h.diskID.PutLE(b[40:])
	le.PutUint64(b[56:], h.bodyOffset)
	le.PutUint32(b[64:], h.bodyLength)
	le.PutUint32(b[68:], h.bodyCRC)
	le.PutUint32(b[12:], crc32.Checksum(b, setCRC))
	return b
}

// body is where the header's body lies.
func (h *setOwnHeader) body() span {
	return span{int64(h.bodyOffset), int64(h.bodyOffset) + int64(h.bodyLength)}
}

// problem says why the body cannot be looked at; "" when it can.
func (h *setOwnHeader) problem(size int64) string {
	switch {
	case h.bodyLength == 0 || h.bodyLength > setBodyMax:
		return fmt.Sprintf("body of %d bytes, want 1 to %d", h.bodyLength, setBodyMax)
	case h.bodyOffset < setBodyOffset || h.bodyOffset > uint64(size) || h.body().end > size:
		return fmt.Sprintf("body of %d bytes at %#x, want it from %#x to the end of the file, %#x", h.bodyLength, h.bodyOffset, setBodyOffset, size)
	}
	return ""
}

// setReadOwn reads the layout with snapshots. The header before the current one
// counts where the current one's body does not: it was not durable before.
func setReadOwn(f ops.File, creator string, own setOwn) (ops.Set, error) {
	st, err := f.Stat()
	if err != nil {
		return ops.Set{}, fmt.Errorf("vhds: %w", err)
	}
	h, slot := own.current()
	if h == nil {
		return ops.Set{}, ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: own headers A and B are both damaged")
	}
	set, err := setReadBody(f, h, st.Size)
	var anomalies []ops.Anomaly
	if other := own[1-slot]; err != nil && other != nil {
		older, e := setReadBody(f, other, st.Size)
		if e != nil {
			return ops.Set{}, err
		}
		anomalies = append(anomalies, ops.Anomaly{Name: "vhds.body", Severity: ops.Warning, Where: fmt.Sprintf("own header %c", 'A'+slot),
			Text: err.Error() + "; what the set said before is used"})
		set, err = older, nil
		set.ReadOnly = "the last change of the set is damaged: check repair=true makes it whole from its files"
	}
	if err != nil {
		return ops.Set{}, err
	}
	set.Creator, set.Anomalies = creator, anomalies
	return set, nil
}

func setReadBody(f ops.File, h *setOwnHeader, size int64) (ops.Set, error) {
	if why := h.problem(size); why != "" {
		return ops.Set{}, ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: %s", why)
	}
	b := make([]byte, h.bodyLength)
	if err := setFill(f, b, int64(h.bodyOffset), "body"); err != nil {
		return ops.Set{}, err
	}
	if got := crc32.Checksum(b, setCRC); got != h.bodyCRC {
		return ops.Set{}, ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: body at %#x: checksum %#08x, want %#08x", h.bodyOffset, got, h.bodyCRC)
	}
	set, err := setDecodeBody(b)
	if err != nil {
		return ops.Set{}, err
	}
	set.ID, set.Sequence = h.id, h.seq
	return set, nil
}

// setReader takes a body apart. After the first failure everything is zero.
type setReader struct {
	b   []byte
	bad bool
}

func (r *setReader) bytes(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return make([]byte, n)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *setReader) u16() uint16    { return le.Uint16(r.bytes(2)) }
func (r *setReader) u32() uint32    { return le.Uint32(r.bytes(4)) }
func (r *setReader) u64() uint64    { return le.Uint64(r.bytes(8)) }
func (r *setReader) guid() ops.GUID { return ops.GUIDFromLE(r.bytes(16)) }
func (r *setReader) text() string   { return string(r.bytes(int(r.u16()))) }

// setDecodeBody reads a table, in this order, each text as 16 bits of length and
// UTF-8:
//
//	active disk
//	number of files; each: name, virtual disk id, link id
//	number of snapshots; each: id, type, label, file, parent, milliseconds since 1970, tracking id
//	1 when an operation is pending: from, into
func setDecodeBody(b []byte) (ops.Set, error) {
	r := &setReader{b: b}
	s := ops.Set{Leaf: r.text()}
	n := r.u32()
	for i := uint32(0); i < n && !r.bad && n <= ops.MaxSetFiles; i++ {
		s.Files = append(s.Files, ops.SetFile{Name: r.text(), DiskID: r.guid(), LinkID: r.guid()})
	}
	m := r.u32()
	for i := uint32(0); i < m && !r.bad && m <= ops.MaxSetSnapshots; i++ {
		s.Snapshots = append(s.Snapshots, ops.SetSnapshot{ID: r.guid(), Type: ops.SetSnapshotType(r.u16()), Label: r.text(), Path: r.text(),
			Parent: r.guid(), Created: time.UnixMilli(int64(r.u64())).UTC(), TrackingID: r.text()})
	}
	pending := r.bytes(1)[0]
	if pending == 1 {
		s.Pending = &ops.SetPending{From: r.text(), Into: r.text()}
	}
	if r.bad || len(r.b) > 0 || n > ops.MaxSetFiles || m > ops.MaxSetSnapshots || pending > 1 {
		return ops.Set{}, ops.Corruptf(ops.StatusNotVirtualDisk, "vhds: body of %d bytes with %d files and %d snapshots: %d bytes left over, short: %t",
			len(b), n, m, len(r.b), r.bad)
	}
	if err := s.Check(); err != nil {
		return ops.Set{}, ops.Wrapf(err, ops.ErrCorrupt, ops.StatusNotVirtualDisk, "vhds: body")
	}
	return s, nil
}

func setEncodeBody(s *ops.Set) []byte {
	text := func(b []byte, t string) []byte { return append(le.AppendUint16(b, uint16(len(t))), t...) }
	guid := func(b []byte, g ops.GUID) []byte {
		b = append(b, make([]byte, 16)...)
		g.PutLE(b[len(b)-16:])
		return b
	}
	b := text(nil, s.Leaf)
	b = le.AppendUint32(b, uint32(len(s.Files)))
	for _, f := range s.Files {
		b = guid(guid(text(b, f.Name), f.DiskID), f.LinkID)
	}
	b = le.AppendUint32(b, uint32(len(s.Snapshots)))
	for _, n := range s.Snapshots {
		b = le.AppendUint16(guid(b, n.ID), uint16(n.Type))
		b = guid(text(text(b, n.Label), n.Path), n.Parent)
		b = text(le.AppendUint64(b, uint64(n.Created.UnixMilli())), n.TrackingID)
	}
	if s.Pending == nil {
		return append(b, 0)
	}
	return text(text(append(b, 1), s.Pending.From), s.Pending.Into)
}
