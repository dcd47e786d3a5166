package vhdx

import (
	"encoding/binary"
	"hash/crc32"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/need"
	"vhdfs/test/sim"
)

const setLeaf = "disk_9ac15b72-2a6d-44b2-ba7c-f5f06831c74a.avhdx"

// setImage is a set without snapshots as its layout is described, written here
// byte by byte.
func setImage(leaf string) []byte {
	b := make([]byte, 266240)
	copy(b, "vhdsetv1")
	copy(b[8:], setUTF16("Some creator 1.0"))
	for i, off := range []int{0x10000, 0x20000} {
		h := b[off:]
		copy(h, "shdr")
		binary.LittleEndian.PutUint32(h[4:], 0xffffe000)
		binary.LittleEndian.PutUint64(h[8:], uint64(i))
		binary.LittleEndian.PutUint32(h[16:], 1)
		binary.LittleEndian.PutUint32(h[24:], 7)
		binary.LittleEndian.PutUint32(h[28:], 0x40000)
		binary.LittleEndian.PutUint32(h[32:], uint32(len(setUTF16(leaf))))
		setSeal(h)
	}
	copy(b[0x40000:], setUTF16(leaf))
	return b
}

func setUTF16(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// setSeal makes the checksum of a header right.
func setSeal(h []byte) {
	clear(h[20:24])
	binary.LittleEndian.PutUint32(h[20:], crc32.Checksum(h[:4096], crc32.MakeTable(crc32.Castagnoli)))
}

func setOpen(t *testing.T, b []byte) (*sim.Host, ops.File) {
	t.Helper()
	h := sim.New()
	h.Put("/d/s.vhds", b)
	f, err := h.Dir("/d").Open("s.vhds", ops.Read)
	require.NoError(t, err)
	h.Freeze()
	t.Cleanup(func() {
		require.Zero(t, h.Refused())
		require.NoError(t, f.Close(), "reading a set leaves its file open")
	})
	return h, f
}

func TestSetSample(t *testing.T) {
	b, err := os.ReadFile(need.Corpus(t, "microsoft_WindowsProtocolTestSuites/rsvd.vhds"))
	require.NoError(t, err)
	_, f := setOpen(t, b)
	set, err := SetFormat.Set(f)
	require.NoError(t, err)
	require.Equal(t, ops.Set{
		Leaf:    "rsvd_9ac15b72-2a6d-44b2-ba7c-f5f06831c74a.avhdx",
		Creator: "Microsoft Windows 10.0.10011.16384",
	}, set)
}

func TestSetWithoutSnapshots(t *testing.T) {
	_, f := setOpen(t, setImage(setLeaf))
	set, err := SetFormat.Set(f)
	require.NoError(t, err)
	require.Equal(t, ops.Set{Leaf: setLeaf, Creator: "Some creator 1.0"}, set)
}

// Whatever a set holds beyond the known layout is left alone: the disk is named,
// and the set must not be written.
func TestSetUnknownContentIsReadOnly(t *testing.T) {
	header := func(change func(h []byte)) func(b []byte) []byte {
		return func(b []byte) []byte {
			for _, off := range []int{0x10000, 0x20000} {
				change(b[off:])
				setSeal(b[off:])
			}
			return b
		}
	}
	u32 := func(off int, v uint32) func(h []byte) {
		return func(h []byte) { binary.LittleEndian.PutUint32(h[off:], v) }
	}
	at := func(off int) func(b []byte) []byte {
		return func(b []byte) []byte { b[off] = 1; return b }
	}
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		want   string
	}{
		{"version", header(u32(16, 2)), "header A: version 2, want 1"},
		{"value at 0x18", header(u32(24, 8)), "header A: value 8 at 0x18, want 7"},
		{"name elsewhere", func(b []byte) []byte {
			copy(b[0x30000:], b[0x40000:])
			return header(u32(28, 0x30000))(b)
		}, "header A: name at 0x30000, want 0x40000"},
		{"content in the header", header(u32(36, 1)), "header A: content after byte 0x24"},
		{"content at the header's end", header(func(h []byte) { h[4095] = 1 }), "header A: content after byte 0x24"},
		{"only in the older header", func(b []byte) []byte { b[0x10000+40] = 1; setSeal(b[0x10000:]); return b }, "header A: content after byte 0x24"},
		{"only in the newer header", func(b []byte) []byte { b[0x20000+40] = 1; setSeal(b[0x20000:]); return b }, "header B: content after byte 0x24"},
		{"after the creator", at(8 + 2*16 + 2), "content at 0x2a"},
		{"at the creator's end", at(519), "content at 0x207"},
		{"after the creator's field", at(520), "content at 0x208"},
		{"before header A", at(0xffff), "content at 0xffff"},
		{"after header A", at(0x11000), "content at 0x11000"},
		{"after header B", at(0x21000), "content at 0x21000"},
		{"third region", at(0x30000), "content at 0x30000"},
		{"after the name", at(0x40000 + 2*len(setLeaf)), "content at 0x4005e"},
		{"last byte", at(0x40fff), "content at 0x40fff"},
		{"longer", func(b []byte) []byte { return append(b, 0) }, "file of 266241 bytes, want 266240"},
		{"much longer", func(b []byte) []byte { return append(b, make([]byte, 4<<20)...) }, "file of 4460544 bytes, want 266240"},
		{"shorter", func(b []byte) []byte { return b[:0x40800] }, "file of 264192 bytes, want 266240"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, f := setOpen(t, tt.change(setImage(setLeaf)))
			set, err := SetFormat.Set(f)
			require.NoError(t, err)
			require.Equal(t, setLeaf, set.Leaf)
			require.Equal(t, "the set holds what is not known here ("+tt.want+"), perhaps snapshots", set.ReadOnly)
			require.Empty(t, set.Anomalies)
		})
	}
}

func TestSetHeaders(t *testing.T) {
	const other = "other.avhdx"
	seq := func(b []byte, a, c uint64) []byte { // header A names setLeaf, header B other
		binary.LittleEndian.PutUint64(b[0x10000+8:], a)
		binary.LittleEndian.PutUint64(b[0x20000+8:], c)
		copy(b[0x40000+512:], setUTF16(other))
		binary.LittleEndian.PutUint32(b[0x20000+28:], 0x40000+512)
		binary.LittleEndian.PutUint32(b[0x20000+32:], uint32(2*len(other)))
		setSeal(b[0x10000:])
		setSeal(b[0x20000:])
		return b
	}
	broken := func(b []byte, offs ...int) []byte {
		for _, off := range offs {
			b[off]++
		}
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		leaf string
		bad  string // anomaly: "where: text"
		err  string
	}{
		{"B is newer", seq(setImage(setLeaf), 1, 2), other, "", ""},
		{"A is newer", seq(setImage(setLeaf), 2, 1), setLeaf, "", ""},
		{"numbers of 64 bits", seq(setImage(setLeaf), 1<<63, 1), setLeaf, "", ""},
		{"same number, different", seq(setImage(setLeaf), 5, 5), "", "", "headers A and B differ and have the same sequence number 5"},
		{"same number, same content", func() []byte { b := setImage(setLeaf); copy(b[0x10000:0x11000], b[0x20000:]); return b }(), setLeaf, "", ""},
		{"signature of A", broken(seq(setImage(setLeaf), 2, 1), 0x10000), other, `header A: signature "thdr", want "shdr"; the other header is used`, ""},
		{"checksum of A", broken(seq(setImage(setLeaf), 2, 1), 0x10fff), other, "header A: checksum 0x", ""},
		{"checksum of B", broken(seq(setImage(setLeaf), 1, 2), 0x20000+21), setLeaf, "header B: checksum 0x", ""},
		{"both", broken(setImage(setLeaf), 0x10000, 0x20000), "", "", `vhds: header A: signature "thdr", want "shdr"; header B: signature "thdr", want "shdr": image is corrupt`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, f := setOpen(t, tt.b)
			set, err := SetFormat.Set(f)
			if tt.err != "" {
				require.ErrorIs(t, err, ops.ErrCorrupt)
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.leaf, set.Leaf)
			if tt.bad == "" {
				require.Empty(t, set.Anomalies)
				return
			}
			require.Len(t, set.Anomalies, 1)
			require.Equal(t, "vhds.header", set.Anomalies[0].Name)
			require.Contains(t, set.Anomalies[0].Where+": "+set.Anomalies[0].Text, tt.bad)
		})
	}
}

func TestSetNames(t *testing.T) {
	long := strings.Repeat("n", 249)
	for _, tt := range []struct {
		leaf, err string
	}{
		{"d.avhdx", ""},
		{"a..b.avhdx", ""},
		{"d\u00efsk \U0001f4be.avhdx", ""},
		{"\ufffd.avhdx", ""}, // the replacement character itself is a character
		{long + ".avhdx", ""},
		{long + "n.avhdx", "vhds: name of 512 bytes: want an even number up to 510"},
		{strings.Repeat("\u00ef", 130) + ".avhdx", "is no name of a file"}, // 266 bytes in UTF-8
		{"", "vhds: name of 0 bytes"},
		{"../d.avhdx", "is no name of a file"},
		{"/etc/passwd", "is no name of a file"},
		{`..\d.avhdx`, "is no name of a file"},
		{`C:\d.avhdx`, "is no name of a file"},
		{"..", "is no name of a file"},
		{".", "is no name of a file"},
		{"d.avhdx\x00", "is no name of a file"},
		{"s.VHDS", `active disk "s.VHDS" is a set itself`},
	} {
		t.Run(tt.leaf, func(t *testing.T) {
			_, f := setOpen(t, setImage(tt.leaf))
			set, err := SetFormat.Set(f)
			if tt.err != "" {
				require.ErrorIs(t, err, ops.ErrCorrupt)
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.leaf, set.Leaf)
			require.Empty(t, set.ReadOnly)
		})
	}
}

func TestSetRejected(t *testing.T) {
	name := func(off, length uint32) []byte {
		b := setImage(setLeaf)
		for _, h := range [][]byte{b[0x10000:], b[0x20000:]} {
			binary.LittleEndian.PutUint32(h[28:], off)
			binary.LittleEndian.PutUint32(h[32:], length)
			setSeal(h)
		}
		return b
	}
	lone := setImage(setLeaf)
	copy(lone[0x40000:], "\x00\xd8")
	for _, tt := range []struct {
		name string
		b    []byte
		err  string
	}{
		{"empty", nil, "vhds: identifier: the file ends at 0x0, within 0x0-0x208"},
		{"one byte", []byte("v"), "vhds: identifier: the file ends at 0x1"},
		{"zeros", make([]byte, 266240), `vhds: identifier "\x00\x00\x00\x00\x00\x00\x00\x00", want "vhdsetv1"`},
		{"version 2", append([]byte("vhdsetv2"), setImage(setLeaf)[8:]...), `vhds: identifier "vhdsetv2", want "vhdsetv1"`},
		{"a set with snapshots of vhdfs", append([]byte("vhdfsset"), setImage(setLeaf)[8:]...), "own headers A and B are both damaged"},
		{"cut in header A", setImage(setLeaf)[:0x10800], "vhds: header A: the file ends at 0x10800, within 0x10000-0x11000"},
		{"cut in header B", setImage(setLeaf)[:0x20fff], "vhds: header B: the file ends at 0x20fff"},
		{"cut in the name", setImage(setLeaf)[:0x40010], "vhds: name of 94 bytes at 0x40000 past end of file 0x40010"},
		{"name of an odd length", name(0x40000, 93), "vhds: name of 93 bytes"},
		{"name of 4 GiB", name(0x40000, 0xffffffff), "vhds: name of 4294967295 bytes"},
		{"name past the file", name(0xfffffffe, 94), "vhds: name of 94 bytes at 0xfffffffe past end of file 0x41000"},
		{"name in a header", name(0x10000, 94), "is no name of a file"},
		{"name with half a surrogate pair", lone, "is no name of a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, f := setOpen(t, tt.b)
			_, err := SetFormat.Set(f)
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.NotZero(t, ops.StatusOf(err))
			require.ErrorContains(t, err, tt.err)
		})
	}
}

func TestSetProbe(t *testing.T) {
	for _, tt := range []struct {
		name, ext string
		b         []byte
		want      bool
	}{
		{"content, no name", "", setImage(setLeaf), true},
		{"other content, no name", "", []byte("vhdset"), false},
		{"damaged, .vhds", ".vhds", []byte("x"), true},
		{"content in a disk", ".vhd", setImage(setLeaf), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, f := setOpen(t, tt.b)
			got, err := SetFormat.Probe(f, tt.ext)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// An error of the host is not taken for a damaged set.
func TestSetReadErrors(t *testing.T) {
	for k := 1; ; k++ {
		h, f := setOpen(t, setImage(setLeaf))
		calls := 0
		h.SetFault(func(c sim.Call) error {
			calls = c.N
			if c.N == k {
				return syscall.EIO
			}
			return nil
		})
		_, err := SetFormat.Set(f)
		h.SetFault(nil)
		if err == nil {
			require.Less(t, calls, k)
			require.LessOrEqual(t, calls, 16)
			return
		}
		require.ErrorIs(t, err, syscall.EIO, "call %d", k)
		require.NotErrorIs(t, err, ops.ErrCorrupt, "call %d", k)
	}
}

func TestSetProbeError(t *testing.T) {
	h := sim.New()
	h.Put("/d/s", nil)
	f, err := h.Dir("/d").Open("s", ops.Read)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = SetFormat.Probe(f, "")
	require.ErrorIs(t, err, fs.ErrClosed)
}

// FuzzSet changes a set by patches of 4 bytes of input: place and value. The
// headers' checksums are made right again, so that what is behind them is reached.
func FuzzSet(f *testing.F) {
	f.Add([]byte{}, uint32(266240))
	f.Add([]byte{1, 0, 32, 200, 2, 0, 32, 200}, uint32(266240))
	f.Add([]byte{4, 0, 0, '/'}, uint32(0x40020))
	base := sim.New()
	base.Put("/d/s.vhds", setImage(setLeaf))
	f.Fuzz(func(t *testing.T, patches []byte, size uint32) {
		h := base.Clone()
		b := h.Bytes("/d/s.vhds")
		for i := 0; i+4 <= len(patches) && i < 120; i += 4 {
			p := patches[i : i+4]
			b.Write(int64(p[0]%5)<<16|int64(p[1])<<8&0xf00|int64(p[2]), p[3:])
		}
		for _, off := range []int64{0x10000, 0x20000} {
			head := b.Get(off, 4096)
			setSeal(head)
			b.Write(off, head)
		}
		b.Truncate(min(int64(size), b.Size()))
		h.Freeze()
		file, err := h.Dir("/d").Open("s.vhds", ops.Read)
		must(t, err)
		set, err := SetFormat.Set(file)
		if err != nil {
			mustCorrupt(t, err)
		} else if set.Leaf == "" || len(set.Leaf) > 255 || strings.ContainsAny(set.Leaf, "/\\\x00") || set.Leaf == ".." {
			t.Fatalf("active disk %q", set.Leaf)
		}
		must(t, file.Close())
		if n := h.Refused(); n > 0 {
			t.Fatalf("%d changes were asked for", n)
		}
	})
}
