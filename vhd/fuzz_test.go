package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"testing"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// Fuzz inputs are patches on sound images, 8 bytes each: template or repair,
// part, offset, length, value. Random bytes would never get past a checksum.
const patchSize = 8

// template is a sound image on a host that is cloned, never changed.
type template struct {
	fixture.VHD
	lay  fixture.VHDLayout
	host *sim.Host
}

var fuzzTemplates = sync.OnceValue(func() []template {
	w := []fixture.Write{{Off: 1000, Data: make([]byte, 3000)}, {Off: 200<<10 - 700, Data: []byte("last")}}
	var ts []template
	for _, v := range []fixture.VHD{
		{Size: 200 << 10, Type: 2, Writes: w},
		{Size: 200 << 10, BlockSize: 16 << 10, Writes: w},
		{Size: 200 << 10, BlockSize: 4096, Type: 4, Parent: parent(), Writes: w},
		{Size: 200 << 10, BlockSize: 64 << 10, Batmap: true, Creator: "tap\x00", Writes: w},
		{Size: 200 << 10, BlockSize: 64 << 10, NoTail: true, Writes: w},
		{Size: 200 << 10, BlockSize: 64 << 10, ShortFooter: true, Writes: w},
	} {
		ts = append(ts, template{v, v.Layout(), disk(v.Bytes())})
	}
	return ts
})

// fuzzImage is a host with the image that an input describes.
func fuzzImage(in []byte) *sim.Host {
	templates := fuzzTemplates()
	t := templates[0]
	if len(in) > 0 {
		t = templates[int(in[0])%len(templates)]
		in = in[1:]
	}
	h := t.host.Clone()
	b := h.Bytes("/d.vhd")
	for n := 0; n < 32 && len(in) >= patchSize; n++ {
		t.patch(b, in[:patchSize])
		in = in[patchSize:]
	}
	return h
}

// patch changes up to 4 bytes, of the end footer, the footer's copy, the header
// or what part there is, and sums that part again unless the input says no.
func (t template) patch(b sim.Bytes, in []byte) {
	off, data := int64(binary.BigEndian.Uint16(in[2:])), in[4:4+1+int(in[0]>>1)%4]
	var at, n, sumAt int64
	switch part := in[1] % 4; {
	case part == 0 && !t.NoTail:
		at, n, sumAt = t.lay.Tail, t.lay.Len-t.lay.Tail, 64
	case part == 1 && t.lay.Header != 0:
		at, n, sumAt = 0, 512, 64
	case part == 2 && t.lay.Header != 0:
		at, n, sumAt = t.lay.Header, 1024, 36
	default:
		b.Write(off%min(t.lay.Len, 8192), data)
		return
	}
	b.Write(at+off%(n-11), data)
	if in[0]&1 == 0 {
		p := b.Get(at, n)
		fixture.VHDSum(p, int(sumAt))
		b.Write(at+sumAt, p[sumAt:sumAt+4])
	}
}

// walk opens an image, reads some of every run and checks it, bounded.
func walk(t *testing.T, h *sim.Host) {
	f := openFile(t, h, ops.Read)
	h.Freeze()
	if _, err := probe(f, ".vhd"); err != nil {
		t.Fatalf("probe: %v", err)
	}
	l, err := Open(f, ops.OpenOptions{Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
	if err != nil {
		typed(t, err)
		return
	}
	buf := make([]byte, 5000)
	off := int64(0)
	for steps := 0; off < l.Size() && steps < 200; steps++ {
		e, err := l.Extent(off, l.Size()-off)
		if err != nil {
			typed(t, err)
			off += 4096
			continue
		}
		if e.Len <= 0 || e.Len > l.Size()-off {
			t.Fatalf("extent of %d bytes at %d of %d", e.Len, off, l.Size())
		}
		if _, _, err := l.ReadRun(buf, off); err != nil {
			typed(t, err)
		}
		off += e.Len
	}
	if c, ok := l.(ops.Checker); ok && l.Size() <= 64<<20 {
		if err := c.Check(t.Context(), func(ops.Anomaly) {}); err != nil {
			typed(t, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if h.Refused() > 0 {
		t.Fatalf("%d changes were asked for", h.Refused())
	}
}

// typed fails for an error that no caller could act on.
func typed(t *testing.T, err error) {
	t.Helper()
	for _, class := range []error{ops.ErrCorrupt, ops.ErrForbidden, ops.ErrReadOnly, errors.ErrUnsupported, io.ErrUnexpectedEOF} {
		if errors.Is(err, class) {
			return
		}
	}
	t.Fatalf("untyped error: %v", err)
}

func FuzzImageRead(f *testing.F) {
	for i := range fuzzTemplates() {
		f.Add([]byte{byte(i)})
		f.Add([]byte{byte(i), 6, 2, 0, 28, 0xff, 0xff, 0xff, 0xff, 7, 3, 0x06, 0x00, 0, 0, 0, 3})
	}
	f.Fuzz(func(t *testing.T, in []byte) { walk(t, fuzzImage(in)) })
}

// FuzzImageWrite changes what opens for writing: what was stored is there after
// a reopening, and a disk that refuses is not written.
func FuzzImageWrite(f *testing.F) {
	for i := range fuzzTemplates() {
		f.Add([]byte{byte(i)}, []byte("some requests at some places"))
		f.Add([]byte{byte(i), 6, 2, 0, 28, 0xff, 0xff, 0xff, 0xff}, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
	}
	f.Fuzz(func(t *testing.T, in, requests []byte) {
		h := fuzzImage(in)
		l, err := Open(openFile(t, h, ops.Write), ops.OpenOptions{Write: true, Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
		if err != nil {
			typed(t, err)
			return
		}
		stored := request(t, l.(ops.Writer), requests)
		if err := l.Close(); err != nil {
			typed(t, err)
		}
		if len(stored) == 0 {
			return
		}
		again, err := Open(openFile(t, h, ops.Read), ops.OpenOptions{Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
		if err != nil {
			t.Fatalf("does not open any more: %v", err)
		}
		fill := byte(0)
		if again.Info().Type == ops.Differencing {
			fill = 0xee // never the parent's
		}
		for off, b := range stored {
			got, err := readLayer(again, off, 512, fill)
			if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{b}, 512)) {
				t.Fatalf("sector at %d reads as %x…, was %x (%v)", off, got[:min(4, len(got))], b, err)
			}
		}
	})
}

// request makes up to 20 changes of a sector each, and gives those that were
// stored.
func request(t *testing.T, w ops.Writer, requests []byte) map[int64]byte {
	stored := map[int64]byte{}
	for n := 0; n < 20 && len(requests) >= 4; n++ {
		off := int64(binary.BigEndian.Uint16(requests[1:])) * 512 % (w.Size() / 512 * 512)
		b := requests[3] | 1
		var err error
		switch requests[0] % 4 {
		case 0:
			b, err = 0, w.Zero(off, 512, requests[3]&1 == 0)
		case 1:
			err = w.Flush()
			b = stored[off]
		default:
			_, err = w.WriteAt(bytes.Repeat([]byte{b}, 512), off)
		}
		if err != nil {
			typed(t, err)
		} else if _, ok := stored[off]; ok || requests[0]%4 != 1 {
			stored[off] = b
		}
		requests = requests[4:]
	}
	return stored
}

func FuzzFooter(f *testing.F) {
	f.Add(fixture.VHD{Size: 3 << 20, Type: 2}.Bytes()[3<<20:], false)
	f.Add(fixture.VHD{Size: 3 << 20}.Bytes()[:512], true)
	f.Fuzz(func(t *testing.T, b []byte, repair bool) {
		if len(b) < shortFooterSize {
			return
		}
		b = bytes.Clone(b[:min(len(b), footerSize)])
		if repair {
			binary.BigEndian.PutUint32(b[64:], checksum(b, 64))
		}
		s := parseSlot("footer", 0, b)
		if (s.state == slotGood) != (s.err == nil) {
			t.Fatalf("state %d with error %v", s.state, s.err)
		}
		if s.state != slotGood {
			return
		}
		again := decodeFooter(s.f.encode())
		again.raw, s.f.raw = [footerSize]byte{}, [footerSize]byte{}
		again.sum, s.f.sum = 0, 0
		if again != s.f {
			t.Fatalf("fields changed: %+v, were %+v", again, s.f)
		}
	})
}

// patched is b with 4 bytes at each of the places that in names.
func patched(b, in []byte) []byte {
	b = bytes.Clone(b)
	for ; len(in) >= 6; in = in[6:] {
		copy(b[int(binary.BigEndian.Uint16(in))%len(b):], in[2:6])
	}
	return b
}

func FuzzDynamic(f *testing.F) {
	good := fixture.VHD{Size: 3 << 20, Type: 4, Parent: parent()}.Bytes()
	f.Add([]byte{}, []byte{}, int64(len(good)), true)
	f.Add([]byte{0, 28, 0, 0, 0, 9, 0, 32, 0, 0, 2, 0}, []byte{0, 48, 0, 0, 0, 1}, int64(1<<40), true)
	f.Fuzz(func(t *testing.T, head, foot []byte, end int64, repair bool) {
		b := patched(good[512:1536], head)
		if repair {
			binary.BigEndian.PutUint32(b[36:], checksum(b, 36))
		}
		h, err := decodeHeader(b)
		if err != nil {
			typed(t, err)
			return
		}
		ft := decodeFooter(patched(good[:512], foot))
		if end < 0 || ft.validate("footer") != nil || ft.typ() == ops.Fixed {
			return
		}
		if err := h.validate(&ft, int64(footerSize), end); err != nil {
			typed(t, err)
			return
		}
		if int64(h.tableOffset) > end-h.tableBytes() || int64(h.entries)*int64(h.blockSize) < int64(ft.currentSize) {
			t.Fatalf("accepted table of %d entries at %d in %d bytes", h.entries, h.tableOffset, end)
		}
	})
}

func FuzzLocator(f *testing.F) {
	f.Add(uint32(codeW2ru), []byte(".\x00\\\x00p\x00"))
	f.Add(uint32(codeMacX), []byte("file://./p%20q"))
	f.Add(uint32(codeWi2k), []byte("C:\\p\xff"))
	f.Fuzz(func(t *testing.T, code uint32, data []byte) {
		p, err := locator{code: code}.path(data)
		if err != nil {
			typed(t, err)
			return
		}
		if p.Path == "" || p.Kind == "" {
			t.Fatalf("%#v is no path", p)
		}
	})
}
