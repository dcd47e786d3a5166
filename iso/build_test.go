package iso_test

import (
	"encoding/binary"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/test/sim"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

const sector = 2048

// disc is an image under construction: sectors of 2048 bytes.
type disc []byte

func newDisc(sectors int) disc { return make(disc, sectors*sector) }

func (d disc) at(i int) []byte { return d[i*sector : (i+1)*sector] }

// descriptor writes the head that all descriptors of sector 16… share.
func (d disc) descriptor(i int, kind byte, id string) []byte {
	b := d.at(i)
	clear(b)
	b[0] = kind
	copy(b[1:], id)
	b[6] = 1
	return b
}

func (d disc) primary(i int, label string, blocks uint32) {
	b := d.descriptor(i, 1, "CD001")
	copy(b[40:72], label+"                                ")
	le.PutUint32(b[80:], blocks)
	be.PutUint32(b[84:], blocks)
	le.PutUint16(b[128:], sector)
	be.PutUint16(b[130:], sector)
	copy(b[574:702], "TEST APPLICATION          ")
}

func (d disc) joliet(i int, label, escape string) {
	b := d.descriptor(i, 2, "CD001")
	for j := range 16 {
		be.PutUint16(b[40+2*j:], ' ')
	}
	for j, u := range utf16.Encode([]rune(label)) {
		be.PutUint16(b[40+2*j:], u)
	}
	copy(b[88:], escape)
}

func (d disc) end(i int) { d.descriptor(i, 255, "CD001") }

// iso9660 is a small image that is whole.
func iso9660() disc {
	d := newDisc(40)
	d.primary(16, "PRIMARY", 40)
	d.end(17)
	return d
}

// recognise writes the UDF part of the recognition sequence from sector i on.
func (d disc) recognise(i int, nsr string) {
	d.descriptor(i, 0, "BEA01")
	d.descriptor(i+1, 0, nsr)
	d.descriptor(i+2, 0, "TEA01")
}

// tag writes a UDF descriptor at block at of size bs.
func (d disc) tag(bs, at int, id uint16, body func(b []byte)) {
	b := d[at*bs : at*bs+512]
	clear(b)
	le.PutUint16(b, id)
	le.PutUint16(b[2:], 2)
	le.PutUint32(b[12:], uint32(at))
	if body != nil {
		body(b)
	}
	b[4] = 0
	var sum byte
	for _, c := range b[:16] {
		sum += c
	}
	b[4] = sum
}

func (d disc) anchor(bs, at, main, reserve int) {
	d.tag(bs, at, 2, func(b []byte) {
		le.PutUint32(b[16:], uint32(16*bs))
		le.PutUint32(b[20:], uint32(main))
		le.PutUint32(b[24:], uint32(16*bs))
		le.PutUint32(b[28:], uint32(reserve))
	})
}

// sequence writes a volume descriptor sequence: partition, logical volume, end.
func (d disc) sequence(bs, at int, label []byte, start, count uint32) {
	d.tag(bs, at, 5, func(b []byte) {
		le.PutUint32(b[188:], start)
		le.PutUint32(b[192:], count)
	})
	d.tag(bs, at+1, 6, func(b []byte) {
		copy(b[84:211], label)
		b[211] = byte(len(label))
	})
	d.tag(bs, at+2, 8, nil)
}

// udf is an image of 512 blocks with its anchor at block 256.
func udf(bs int) disc {
	d := make(disc, max(512*bs, 64*sector))
	d.recognise(16, "NSR03")
	d.anchor(bs, 256, 300, 320)
	d.sequence(bs, 300, []byte("\x08Udf label"), 350, 162)
	return d
}

func openBytes(t *testing.T, b []byte, o ops.OpenOptions) (*sim.Host, ops.Layer, error) {
	t.Helper()
	h := sim.New()
	h.Put("/iso/disc.iso", b)
	f, err := h.Dir("/iso").Open("disc.iso", ops.Read)
	require.NoError(t, err)
	h.Freeze()
	l, err := iso.Format.Open(f, o)
	require.Zero(t, h.Refused())
	return h, l, err
}

func mustOpen(t *testing.T, b []byte) ops.Layer {
	t.Helper()
	_, l, err := openBytes(t, b, ops.OpenOptions{Ext: ".iso"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}
