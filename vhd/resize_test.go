package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

func resizeTo(size int64) func(w ops.Writer) error {
	return func(w ops.Writer) error { return w.(ops.Resizer).Resize(context.Background(), size, 0) }
}

type resizeTest struct {
	changeTest
	size int64 // after it
}

func resizeTests() map[string]resizeTest {
	data := []fixture.Write{{Off: 1024, Data: pattern(512, 1)}, {Off: 20 << 10, Data: pattern(1024, 2)}}
	odd := []fixture.Write{{Off: 30<<10 - 512, Data: pattern(512, 3)}}
	list := map[string]resizeTest{}
	for name, tt := range map[string]struct {
		v    fixture.VHD
		size int64
	}{
		"within the table":   {fixture.VHD{Size: 32 << 10, BlockSize: 4096, Entries: 100, Writes: data}, 64 << 10},
		"within its padding": {fixture.VHD{Size: 32 << 10, BlockSize: 4096, Writes: data}, 128 * 4096},
		"over a block":       {fixture.VHD{Size: 32 << 10, BlockSize: 512, Writes: data, Unaligned: true}, 600 * 512},
		"over many blocks":   {fixture.VHD{Size: 32 << 10, BlockSize: 512, Writes: data, Unaligned: true}, 2000 * 512},
		"over the footer":    {fixture.VHD{Size: 32 << 10, BlockSize: 1024}, 4 << 20},
		"batmap":             {fixture.VHD{Size: 32 << 10, BlockSize: 1024, Writes: data, Batmap: true, Creator: "tap\x00"}, 600 << 10},
		"inside a block":     {fixture.VHD{Size: 30 << 10, BlockSize: 4096, Writes: odd}, 60 << 10},
		"no tail":            {fixture.VHD{Size: 32 << 10, BlockSize: 4096, Writes: data, NoTail: true}, 128 * 4096},
		"no copy":            {fixture.VHD{Size: 32 << 10, BlockSize: 4096, Writes: data, NoCopy: true}, 128 * 4096},
		"fixed":              {fixture.VHD{Size: 32 << 10, Type: 2, Writes: data}, 64 << 10},
		"fixed by a sector":  {fixture.VHD{Size: 32 << 10, Type: 2, Writes: data}, 32<<10 + 512},
		"QEMU's":             {fixture.VHD{Size: 104448, BlockSize: 4096, Writes: data, Creator: "qemu"}, 200 << 10},
		"QEMU's fixed":       {fixture.VHD{Size: 104448, Type: 2, Writes: data, Creator: "qemu"}, 200 << 10},
	} {
		list[name] = resizeTest{size: tt.size, changeTest: changeTest{
			image: tt.v, changes: true, also: map[bool]func([]byte) error{true: trueBatmap}[tt.v.Batmap],
			change: func(g *crash.Guest) error {
				if err := g.Write(8192, 512); err != nil {
					return err
				}
				return resizeTo(tt.size)(g.Writer)
			},
			twice: resizeTo(tt.size),
		}}
	}
	return list
}

// stuff fills what is behind the end of v's disk in its last block, and allocates
// the blocks behind that.
func stuff(v fixture.VHD) *sim.Host {
	b := v.Bytes()
	if v.Type == 2 {
		return disk(b)
	}
	lay := v.Layout()
	last := blocksFor(v.Size, int64(v.BlockSize)) - 1
	if at, ok := lay.Blocks[last]; ok {
		in := v.Size - last*int64(v.BlockSize)
		copy(b[at+512+in:at+512+int64(v.BlockSize)], pattern(int(v.BlockSize), 0xee))
	}
	return disk(b)
}

func TestResize(t *testing.T) {
	for name, c := range resizeTests() {
		t.Run(name, func(t *testing.T) {
			h := stuff(c.image)
			want := append(model(c.image, 0), make([]byte, c.size-c.image.Size)...)
			edit(t, h, func(w ops.Writer) {
				require.NoError(t, w.(ops.Resizer).CanResize(c.size))
				require.NoError(t, c.twice(w))
				require.NoError(t, c.twice(w), "to the same size")
				require.Equal(t, c.size, w.Size())
				got, err := readLayer(w, 0, c.size, 0)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got))
				for off := int64(4096); off < c.size; off += 48 << 10 {
					write(t, w, off, 9, 1)
					copy(want[off:], pattern(512, 9))
				}
				write(t, w, c.size-512, 8, 1)
				copy(want[c.size-512:], pattern(512, 8))
			})
			b := image(t, h)
			l := mustOpen(t, b)
			require.Equal(t, c.size, l.Size())
			require.Empty(t, l.Info().Anomalies)
			require.Empty(t, findings(t, l))
			got, err := readLayer(l, 0, c.size, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
			foot := decodeFooter(b[len(b)-512:])
			require.EqualValues(t, c.image.Size, foot.originalSize, "stays")
			require.Equal(t, geometryFor(c.size), foot.chs)
			require.False(t, foot.misread(), "by QEMU")
			if l.Info().Type == ops.Dynamic {
				require.Equal(t, b[:512], b[len(b)-512:], "T28: equal footers")
				require.Equal(t, be64(512), b[16:24], "T28: header at 512")
				require.Equal(t, be64(1536), b[512+16:512+24], "T28: table at 1536")
				want := max(uint32(blocksFor(c.size, int64(c.image.BlockSize))), c.image.Entries)
				require.Equal(t, want, binary.BigEndian.Uint32(b[512+28:]), "T6: as many entries as blocks")
			}
		})
	}
}

func TestResizeStates(t *testing.T) {
	for name, c := range resizeTests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := c.states(t)
			require.NoError(t, err)
			if c.image.Type != 2 {
				require.NoError(t, c.damaged(t))
			}
			t.Logf("%d states, %d failed calls", n, c.faults(t))
		})
	}
}

// What an earlier, longer life left in the table and in the last block does not
// come back.
func TestResizeForgetsTheLongerLife(t *testing.T) {
	v := fixture.VHD{Size: 64 << 10, BlockSize: 4096, Blocks: []int64{7, 9}, Writes: []fixture.Write{{Off: 0, Data: pattern(64<<10, 0xee)}}}
	const short = 30 << 10
	for _, part := range []string{"copy", "tail"} {
		v.Patches = append(v.Patches, fixture.VHDPatch{Part: part, Off: 48, Data: be64(short), Repair: true})
	}
	h := disk(v.Bytes())
	require.EqualValues(t, short, mustOpen(t, image(t, h)).Size())
	edit(t, h, func(w ops.Writer) { require.NoError(t, resizeTo(64<<10)(w)) })
	l := mustOpen(t, image(t, h))
	got, err := readLayer(l, 0, 64<<10, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(pattern(short, 0xee), make([]byte, 34<<10)...), got))
}

// A table that cannot grow where it is goes behind everything.
func TestResizeMovesTheTable(t *testing.T) {
	v := fixture.VHD{Size: 32 << 10, BlockSize: 512, Writes: []fixture.Write{{Off: 1024, Data: pattern(512, 1)}}}
	b := v.Bytes()
	// a locator, which a dynamic disk has no use for, right behind the table
	locator{codeW2ru, 512, 8, 2048}.encode(b[512+576:])
	putChecksum(b[512:1536], headerSumAt)
	h := disk(b)
	c := changeTest{changes: true, twice: resizeTo(4 << 20), change: func(g *crash.Guest) error { return resizeTo(4 << 20)(g.Writer) }}
	edit(t, h, func(w ops.Writer) {
		write(t, w, 8192, 2, 1)
		require.NoError(t, c.twice(w))
		write(t, w, 4<<20-512, 3, 1)
	})
	l := mustOpen(t, image(t, h))
	require.NotEqual(t, be64(1536), image(t, h)[512+16:512+24])
	require.Empty(t, findings(t, l))
	for off, b := range map[int64]byte{1024: 1, 8192: 2, 4<<20 - 512: 3} {
		got, err := readLayer(l, off, 512, 0)
		require.NoError(t, err)
		require.Equal(t, pattern(512, b), got)
	}
}

func TestResizeNeedsItsSyncs(t *testing.T) {
	for label, name := range map[string]string{
		"vhd.fixed.footer": "fixed", "vhd.fixed.zero": "fixed", "vhd.fixed.size": "fixed",
		"vhd.header": "over a block", "vhd.switch.end": "over a block", "vhd.switch.copy": "over a block",
		"vhd.data": "over a block", "vhd.table": "over a block", "vhd.data ": "batmap",
	} {
		t.Run(label+name, func(t *testing.T) { resizeTests()[name].needs(t, strings.TrimSpace(label)) })
	}
}

// A crash can leave a file of the new length without the new footer.
func TestFixedFooterIsFoundInALongFile(t *testing.T) {
	v := fixture.VHD{Size: 1 << 20, Type: 2, Writes: []fixture.Write{{Off: 4096, Data: pattern(512, 1)}}}
	for _, longer := range []int64{512, 4096, 1 << 20, 1 << 40} {
		t.Run(fmt.Sprint(longer), func(t *testing.T) {
			h := disk(v.Bytes())
			f := openFile(t, h, ops.Write)
			require.NoError(t, f.Truncate(1<<20+512+longer, "test"))
			require.NoError(t, f.Close())
			l, err := tryOpen(t, h.Clone())
			require.NoError(t, err)
			require.EqualValues(t, 1<<20, l.Size())
			require.Equal(t, []string{"vhd.footer.end"}, names(l.Info().Anomalies))
			edit(t, h, func(w ops.Writer) { write(t, w, 0, 2, 1) })
			want := v.Bytes()
			copy(want, pattern(512, 2))
			require.True(t, bytes.Equal(want, image(t, h)))
		})
	}
}

func TestResizeRefuses(t *testing.T) {
	sparse := fixture.VHD{Size: 32 << 10, BlockSize: 4096}
	fixed := fixture.VHD{Size: 32 << 10, Type: 2}
	child := fixture.VHD{Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent()}
	for _, tt := range []struct {
		v     fixture.VHD
		size  int64
		class error
		text  string
	}{
		{sparse, 16 << 10, errors.ErrUnsupported, "a VHD does not shrink"},
		{fixed, 16 << 10, errors.ErrUnsupported, "a VHD does not shrink"},
		{child, 64 << 10, errors.ErrUnsupported, "a differencing disk cannot be resized"},
		{sparse, 0, ops.ErrUsage, "size 0 is not"},
		{sparse, -512, ops.ErrUsage, "size -512 is not"},
		{fixed, 33<<10 + 1, ops.ErrUsage, "size 33793 is not"},
		{sparse, 2040<<30 + 512, ops.ErrUsage, "up to 2040 GiB"},
		{fixed, 2040<<30 + 512, ops.ErrUsage, "up to 2040 GiB"},
		{sparse, 2040 << 30, ops.ErrUsage, "takes 534773760 blocks of 4096 bytes, want at most 67108864"},
	} {
		t.Run(tt.text, func(t *testing.T) {
			h := disk(tt.v.Bytes())
			before := image(t, h)
			edit(t, h, func(w ops.Writer) {
				r := w.(ops.Resizer)
				for _, err := range []error{r.CanResize(tt.size), r.Resize(t.Context(), tt.size, 0)} {
					require.ErrorIs(t, err, tt.class)
					require.ErrorContains(t, err, tt.text)
					if tt.class == errors.ErrUnsupported {
						require.Equal(t, ops.StatusWrongType, ops.StatusOf(err))
					}
				}
			})
			require.True(t, bytes.Equal(before, image(t, h)))
		})
	}
}

func TestSettableIsRefused(t *testing.T) {
	for _, v := range []fixture.VHD{{Size: 32 << 10, Type: 2}, {Size: 32 << 10}, {Size: 32 << 10, Type: 4, Parent: parent()}} {
		edit(t, disk(v.Bytes()), func(w ops.Writer) {
			s := w.(ops.Settable)
			for _, err := range []error{s.SetPhysicalSector(4096), s.SetDiskID(ops.GUID{1})} {
				require.ErrorIs(t, err, errors.ErrUnsupported)
				require.Equal(t, ops.StatusWrongType, ops.StatusOf(err))
			}
		})
	}
}

// QEMU sees the new size and the same bytes, with and without force_size; the
// largest disk grows from the smallest.
func TestQEMUReadsWhatGrew(t *testing.T) {
	for _, tt := range []struct {
		format, force string
		sizes         []int64
	}{
		{"dynamic", "on", []int64{3<<20 + 512, 1 << 30, 1<<40 + 512}},
		{"dynamic", "off", []int64{5 << 20, 1 << 30}},
		{"dynamic", "on", []int64{2040 << 30}},
		{"fixed", "on", []int64{3<<20 + 512, 64 << 20}},
		{"fixed", "off", []int64{5 << 20, 64 << 20}},
	} {
		t.Run(fmt.Sprintf("%s, force_size %s, %d", tt.format, tt.force, tt.sizes[0]), func(t *testing.T) {
			dir := t.TempDir()
			raw := append(pattern(2<<20, 7), make([]byte, 104448)...)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600))
			run(t, dir, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size="+tt.force+",subformat="+tt.format, "raw", "d.vhd")
			for _, size := range tt.sizes {
				w := openIn(t, dir, "d.vhd", ops.Write).(ops.Writer)
				require.NoError(t, resizeTo(size)(w))
				write(t, w, size-512, 5, 1)
				require.NoError(t, w.Close())
			}
			size := tt.sizes[len(tt.sizes)-1]
			require.NoError(t, os.Truncate(filepath.Join(dir, "raw"), size))
			f, err := os.OpenFile(filepath.Join(dir, "raw"), os.O_WRONLY, 0)
			require.NoError(t, err)
			for _, s := range tt.sizes {
				_, err = f.WriteAt(pattern(512, 5), s-512)
				require.NoError(t, err)
			}
			require.NoError(t, f.Close())
			require.Contains(t, string(run(t, dir, "qemu-img", "info", "--output=json", "-f", "vpc", "d.vhd")), fmt.Sprintf(`"virtual-size": %d`, size))
			if size < 100<<30 {
				requireSame(t, dir)
			}
			l := openIn(t, dir, "d.vhd", ops.Read)
			for _, a := range findings(t, l) {
				require.Equal(t, "vhd.leak", a.Name, "what is left of a block's place behind the table")
			}
			require.NoError(t, l.Close())
			if tt.format == "dynamic" && size < 1<<40 {
				run(t, dir, "7z", "t", "-tvhd", "d.vhd")
			}
		})
	}
}
