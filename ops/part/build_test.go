package part_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/part"
)

var le = binary.LittleEndian

// image is a sparse disk: what was put, zeros elsewhere. It counts its reads.
type image struct {
	size   int64
	pieces map[int64][]byte // by offset; pieces do not overlap
	reads  int
	bytes  int64
	fail   int // the read of this number fails; 0: none
}

var errDisk = errors.New("disk failure")

func newImage(size int64) *image { return &image{size: size, pieces: map[int64][]byte{}} }

func (m *image) put(off int64, b []byte) { m.pieces[off] = b }

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	m.reads++
	m.bytes += int64(len(p))
	if m.reads == m.fail {
		return 0, errDisk
	}
	n := int(max(0, min(int64(len(p)), m.size-off)))
	clear(p[:n])
	for at, b := range m.pieces {
		lo, hi := max(at, off), min(at+int64(len(b)), off+int64(n))
		if lo < hi {
			copy(p[lo-off:hi-off], b[lo-at:hi-at])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// entry is one MBR entry: status, type, start, sectors.
type entry struct {
	status, kind byte
	start, count uint32
}

func bootSector(sign uint32, entries ...entry) []byte {
	b := make([]byte, 512)
	le.PutUint32(b[440:], sign)
	for i, e := range entries {
		s := b[446+16*i:]
		s[0], s[4] = e.status, e.kind
		le.PutUint32(s[8:], e.start)
		le.PutUint32(s[12:], e.count)
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// gpt describes a GPT to write; patch changes a header before it is sealed.
type gpt struct {
	sector, sectors int64
	count, size     int // of entries; 0: 128 of 128 bytes
	parts           map[int]gptPart
	patch           func(header []byte, backup bool)
	patchEntries    func(entries []byte, backup bool)
	backupAt        int64 // sector; 0: the last
	noMBR           bool
}

type gptPart struct {
	kind        string
	first, last uint64
	attributes  uint64
	name        string
}

const (
	basicData = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"
	diskGUID  = "11223344-5566-7788-99aa-bbccddeeff00"
)

func guid(s string) ops.GUID {
	g, err := ops.ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

func (g gpt) image() *image {
	if g.count == 0 {
		g.count = 128
	}
	if g.size == 0 {
		g.size = 128
	}
	if g.backupAt == 0 {
		g.backupAt = g.sectors - 1
	}
	m := newImage(g.sectors * g.sector)
	if !g.noMBR {
		m.put(0, bootSector(0, entry{kind: 0xee, start: 1, count: uint32(min(g.sectors-1, 0xffffffff))}))
	}
	room := (int64(g.count)*int64(g.size) + g.sector - 1) / g.sector
	g.write(m, 1, g.backupAt, 2, room, false)
	g.write(m, g.backupAt, 1, g.backupAt-room, room, true)
	return m
}

func (g gpt) write(m *image, at, other, entries, room int64, backup bool) {
	array := make([]byte, g.count*g.size)
	for i, p := range g.parts {
		e := array[(i-1)*g.size:]
		guid(p.kind).PutLE(e)
		ops.GUID{0xaa, 15: byte(i)}.PutLE(e[16:])
		le.PutUint64(e[32:], p.first)
		le.PutUint64(e[40:], p.last)
		le.PutUint64(e[48:], p.attributes)
		for j, u := range utf16.Encode([]rune(p.name)) {
			le.PutUint16(e[56+2*j:], u)
		}
	}
	h := make([]byte, g.sector)
	copy(h, "EFI PART")
	le.PutUint32(h[8:], 0x10000)
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], uint64(at))
	le.PutUint64(h[32:], uint64(other))
	le.PutUint64(h[40:], uint64(2+room))
	le.PutUint64(h[48:], uint64(g.backupAt-room-1))
	guid(diskGUID).PutLE(h[56:])
	le.PutUint64(h[72:], uint64(entries))
	le.PutUint32(h[80:], uint32(g.count))
	le.PutUint32(h[84:], uint32(g.size))
	if g.patchEntries != nil {
		g.patchEntries(array, backup)
	}
	le.PutUint32(h[88:], crc32.ChecksumIEEE(array))
	if g.patch != nil {
		g.patch(h, backup)
	}
	seal(h)
	m.put(at*g.sector, h)
	m.put(entries*g.sector, array)
}

// seal makes the checksum of a header right again, unless its size is absurd.
func seal(h []byte) {
	n := le.Uint32(h[12:])
	if int64(n) > int64(len(h)) || n < 20 {
		n = 92
	}
	clear(h[16:20])
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
}

func read(t *testing.T, m *image, sector uint32) *part.Table {
	t.Helper()
	tab, err := part.Read(m, m.size, sector)
	require.NoError(t, err)
	return tab
}

// names are the anomalies found, as "name: where".
func names(tab *part.Table) []string {
	var s []string
	for _, a := range tab.Anomalies {
		s = append(s, a.Name+": "+a.Where)
	}
	return s
}

func requireMin(t *testing.T, want int64, tab *part.Table) {
	t.Helper()
	require.NotNil(t, tab.MinInternalSize)
	require.Equal(t, want, *tab.MinInternalSize)
}
