package iso_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/test/conformance"
	"vhdfs/test/sim"
)

func TestLabels(t *testing.T) {
	with := func(change func(d disc)) disc {
		d := newDisc(40)
		d.primary(16, "PRIMARY", 40)
		change(d)
		return d
	}
	for _, tt := range []struct {
		name string
		d    disc
		want string
	}{
		{"primary", iso9660(), "PRIMARY"},
		{"primary of 32 characters", with(func(d disc) { copy(d.at(16)[40:72], "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345") }), "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"},
		{"primary padded with zeros", with(func(d disc) { copy(d.at(16)[40:72], "AB\x00\x00                  ") }), "AB"},
		{"primary with a byte that is no UTF-8", with(func(d disc) { d.at(16)[40] = 0xe9 }), "\ufffdRIMARY"},
		{"the first primary counts", with(func(d disc) { d.primary(17, "SECOND", 1) }), "PRIMARY"},
		{"joliet level 1", with(func(d disc) { d.joliet(17, "J\u00f6liet", "%/@") }), "J\u00f6liet"},
		{"joliet level 2", with(func(d disc) { d.joliet(17, "Joliet", "%/C") }), "Joliet"},
		{"joliet level 3", with(func(d disc) { d.joliet(17, "\U0001f4bf", "%/E"); d.end(18) }), "\U0001f4bf"},
		{"supplementary without joliet", with(func(d disc) { d.joliet(17, "Enhanced", "   ") }), "PRIMARY"},
		{"joliet behind a boot record", with(func(d disc) { d.descriptor(17, 0, "CD001"); d.joliet(18, "Joliet", "%/E") }), "Joliet"},
		{"joliet behind a gap", with(func(d disc) { d.joliet(18, "Joliet", "%/E") }), "PRIMARY"},
		{"udf, blocks of 2048", udf(2048), "Udf label"},
		{"bridge", func() disc {
			d := udf(2048)
			d.primary(16, "PRIMARY", 512)
			d.joliet(17, "Joliet", "%/E")
			d.end(18)
			d.recognise(19, "NSR02")
			return d
		}(), "Udf label"},
		{"udf, blocks of 512", udf(512), "Udf label"},
		{"udf, blocks of 1024", udf(1024), "Udf label"},
		{"udf, blocks of 4096", udf(4096), "Udf label"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info := mustOpen(t, tt.d).Info()
			require.Equal(t, tt.want, info.Label)
			require.Empty(t, info.Anomalies)
		})
	}
}

func TestInfo(t *testing.T) {
	require.Equal(t, ops.Info{
		LogicalSector: 2048, PhysicalSector: 2048,
		ReadOnly: "ISO images are read-only",
		Creator:  "TEST APPLICATION",
		Label:    "PRIMARY",
	}, mustOpen(t, iso9660()).Info())
}

// Each field of the UDF structures that does not hold leads to the next place
// where it is stored, and at last to no label.
func TestUDFStructures(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(d disc)
		want   string
	}{
		{"whole", func(disc) {}, "Udf label"},
		{"NSR02", func(d disc) { d.recognise(16, "NSR02") }, "Udf label"},
		{"anchor at the last block", func(d disc) { clear(d.at(256)); d.anchor(2048, 511, 300, 320) }, "Udf label"},
		{"anchor 256 before the last block", func(d disc) { clear(d.at(256)); d.anchor(2048, 255, 300, 320) }, "Udf label"},
		{"no anchor", func(d disc) { clear(d.at(256)) }, ""},
		{"anchor checksum", func(d disc) { d.at(256)[4]++ }, ""},
		{"anchor location", func(d disc) {
			copy(d.at(256), d.at(257))
			d.anchor(2048, 257, 300, 320)
			copy(d.at(256), d.at(257))
			clear(d.at(257))
		}, ""},
		{"anchor identifier", func(d disc) { d.tag(2048, 256, 3, nil) }, ""},
		{"main sequence gone, reserve there", func(d disc) { clear(d[300*2048 : 303*2048]); d.sequence(2048, 320, []byte("\x08Reserve"), 350, 162) }, "Reserve"},
		{"main sequence past the file", func(d disc) { d.anchor(2048, 256, 100000, 320); d.sequence(2048, 320, []byte("\x08Reserve"), 350, 162) }, "Reserve"},
		{"sequence without end", func(d disc) { d.tag(2048, 302, 7, nil) }, "Udf label"},
		{"sequence goes on elsewhere", func(d disc) { d.tag(2048, 300, 3, nil) }, ""},
		{"label of 16-bit characters", func(d disc) { d.sequence(2048, 300, []byte("\x10\x00F\x00\xe9\x04\x16\x03\x98vr"), 350, 162) }, "F\u00e9\u0416\u0398\u7672"},
		{"label of 8-bit characters", func(d disc) { d.sequence(2048, 300, []byte("\x08F\xe9"), 350, 162) }, "F\u00e9"},
		{"label with a compression of 9", func(d disc) { d.sequence(2048, 300, []byte("\x09AB"), 350, 162) }, ""},
		{"label of length 0", func(d disc) { d.sequence(2048, 300, nil, 350, 162) }, ""},
		{"label longer than its field", func(d disc) {
			d.sequence(2048, 300, []byte("\x08AB"), 350, 162)
			d.at(301)[211] = 128
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := udf(2048)
			tt.change(d)
			info := mustOpen(t, d).Info()
			require.Equal(t, tt.want, info.Label)
			require.Empty(t, info.Anomalies)
		})
	}
}

func TestAnomalies(t *testing.T) {
	for _, tt := range []struct {
		name string
		d    []byte
		want []string
	}{
		{"whole", iso9660(), nil},
		{"one sector short", iso9660()[:39*sector], []string{"iso.truncated: sector 16: the volume has 81920 bytes, the file 79872"}},
		{"one byte short", iso9660()[:40*sector-1], []string{
			"iso.truncated: sector 16: the volume has 81920 bytes, the file 81919",
			"iso.size: file: 81919 bytes are no multiple of 2048"}},
		{"padded", append(iso9660(), make([]byte, 150*sector)...), nil},
		{"odd padding", append(iso9660(), 1), []string{"iso.size: file: 81921 bytes are no multiple of 2048"}},
		{"largest size", func() []byte { d := iso9660(); d.primary(16, "", 0xffffffff); return d }(),
			[]string{"iso.truncated: sector 16: the volume has 8796093020160 bytes, the file 81920"}},
		{"just the descriptor", iso9660()[:17*sector], []string{"iso.truncated: sector 16: the volume has 81920 bytes, the file 34816"}},
		{"udf cut", udf(2048)[:400*sector], []string{"iso.truncated: udf partition descriptor, block 300: the volume has 1048576 bytes, the file 819200"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := mustOpen(t, tt.d)
			var got []string
			for _, a := range l.Info().Anomalies {
				require.Equal(t, ops.Broken, a.Severity)
				got = append(got, a.Name+": "+a.Where+": "+a.Text)
			}
			require.Equal(t, tt.want, got)
			require.Equal(t, int64(len(tt.d)), l.Size())
		})
	}
}

func TestNotAnISO(t *testing.T) {
	patched := func(i int, b byte) disc { d := iso9660(); d[16*sector+i] = b; return d }
	for _, tt := range []struct {
		name string
		b    []byte
	}{
		{"empty", nil},
		{"one byte", []byte{1}},
		{"zeros", make([]byte, 100*sector)},
		{"text", []byte(strings.Repeat("secret ", 10000))},
		{"cut in the first descriptor", iso9660()[:17*sector-1]},
		{"first character of the identifier", patched(1, 'X')},
		{"last character of the identifier", patched(5, '2')},
		{"only a terminator", func() []byte { d := newDisc(40); d.end(16); return d }()},
		{"UDF without NSR", func() []byte { d := newDisc(40); d.recognise(16, "TEA01"); return d }()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := openBytes(t, tt.b, ops.OpenOptions{Ext: ".iso"})
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.Equal(t, ops.StatusFormatUnknown, ops.StatusOf(err))
			require.EqualError(t, err, fmt.Sprintf(
				"iso: sector 16: no volume identifier of ISO 9660 or UDF in a file of %d bytes: image is corrupt", len(tt.b)))
		})
	}
}

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name, ext string
		b         []byte
		want      bool
	}{
		{"content, no name", "", iso9660(), true},
		{"udf content, no name", "", udf(512), true},
		{"zeros, no name", "", make([]byte, 100000), false},
		{"damaged, .iso", ".iso", []byte("x"), true},
		{"content in a disk that a guest writes", ".vfd", iso9660(), false},
		{"content in a fixed VHD with a bad footer", ".vhd", iso9660(), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := sim.New()
			h.Put("/d/f", tt.b)
			f, err := h.Dir("/d").Open("f", ops.Read)
			require.NoError(t, err)
			got, err := iso.Format.Probe(f, tt.ext)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestOpenForWriting(t *testing.T) {
	_, _, err := openBytes(t, iso9660(), ops.OpenOptions{Ext: ".iso", Write: true})
	require.ErrorIs(t, err, ops.ErrReadOnly)
	require.ErrorContains(t, err, "iso: ISO images are read-only")
}

// A failed open closes the file, whichever call failed.
func TestOpenErrors(t *testing.T) {
	for k := 1; ; k++ {
		h := sim.New()
		h.Put("/d/f", udf(2048))
		f, err := h.Dir("/d").Open("f", ops.Read)
		require.NoError(t, err)
		calls := 0
		h.SetFault(func(c sim.Call) error {
			calls = c.N
			if c.N == k {
				return syscall.EIO
			}
			return nil
		})
		l, err := iso.Format.Open(f, ops.OpenOptions{Ext: ".iso"})
		h.SetFault(nil)
		if err == nil {
			require.Less(t, calls, k)
			require.Greater(t, k, 5)
			require.NoError(t, l.Close())
			return
		}
		require.ErrorIs(t, err, syscall.EIO, "call %d", k)
		require.ErrorIs(t, f.Close(), fs.ErrClosed, "call %d", k)
	}
}

func TestLayer(t *testing.T) {
	d := udf(2048)
	for i := range d.at(400) {
		d.at(400)[i] = byte(i)
	}
	conformance.Layer(t, func(t *testing.T) ops.Layer {
		_, l, err := openBytes(t, d, ops.OpenOptions{Ext: ".iso"})
		require.NoError(t, err)
		return l
	}, model(d))
}

func model(b []byte) *conformance.Disk {
	want := conformance.NewDisk(int64(len(b)))
	want.Write(0, b)
	return want
}

// withoutHoles fills the pages of zeros, which the host in memory would store
// as holes.
func withoutHoles(b []byte) []byte {
	const page = 4096
	zero := make([]byte, page)
	for off := 0; off < len(b); off += page {
		if p := b[off:min(off+page, len(b))]; bytes.Equal(p, zero[:len(p)]) {
			p[0] = 0xaa
		}
	}
	return b
}

// A hole in the host's file is a run of zeros.
func TestHoles(t *testing.T) {
	h := sim.New()
	h.Put("/d/f", withoutHoles(append(iso9660(), make([]byte, 1<<20)...)))
	w, err := h.Dir("/d").Open("f", ops.Write)
	require.NoError(t, err)
	require.NoError(t, w.Punch(128<<10, 512<<10))
	f, err := h.Dir("/d").Open("f", ops.Read)
	require.NoError(t, err)
	l, err := iso.Format.Open(f, ops.OpenOptions{Ext: ".iso"})
	require.NoError(t, err)
	for _, tt := range []struct {
		off  int64
		want ops.Extent
	}{
		{0, ops.Extent{Len: 128 << 10, Kind: ops.Data, Pos: 0}},
		{100 << 10, ops.Extent{Len: 28 << 10, Kind: ops.Data, Pos: 100 << 10}},
		{128 << 10, ops.Extent{Len: 512 << 10, Kind: ops.Zero, Pos: -1}},
		{640 << 10, ops.Extent{Len: 464 << 10, Kind: ops.Data, Pos: 640 << 10}},
	} {
		e, err := l.Extent(tt.off, l.Size())
		require.NoError(t, err)
		require.Equal(t, tt.want, e)
	}
}

// A file cut while it is open gives errors for what is gone, never zeros.
func TestFileCutWhileOpen(t *testing.T) {
	h := sim.New()
	h.Put("/d/f", withoutHoles(iso9660()))
	f, err := h.Dir("/d").Open("f", ops.Read)
	require.NoError(t, err)
	l, err := iso.Format.Open(f, ops.OpenOptions{Ext: ".iso"})
	require.NoError(t, err)
	w, err := h.Dir("/d").Open("f", ops.Write)
	require.NoError(t, err)
	require.NoError(t, w.Truncate(20*sector, "test"))

	p := make([]byte, 4*sector)
	n, _, err := l.ReadRun(p, 16*sector)
	require.NoError(t, err)
	require.Equal(t, len(p), n)
	for _, off := range []int64{20 * sector, 30 * sector, 40*sector - 1} {
		_, _, err := l.ReadRun(p, off)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "at %d", off)
		_, err = l.Extent(off, 1)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "at %d", off)
	}
}
