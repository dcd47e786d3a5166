package vhd

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/need"
	"vhdfs/test/sim"
)

func TestReadsWhatTheGuestWrote(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"fixed":                  {Size: 9 << 20, Type: 2, Writes: someWrites()},
		"dynamic":                {Size: 9 << 20, Type: 3, Writes: someWrites()},
		"dynamic, clear bits":    {Size: 9 << 20, Type: 3, Writes: someWrites(), ExactBitmap: true},
		"dynamic, unaligned":     {Size: 9<<20 + 512, Type: 3, Writes: someWrites(), Unaligned: true},
		"dynamic, out of order":  {Size: 9 << 20, Type: 3, Writes: someWrites(), Blocks: []int64{3, 1, 0}},
		"dynamic, gaps":          {Size: 9 << 20, Type: 3, Writes: someWrites(), Gap: 1536},
		"dynamic, table to come": {Size: 9 << 20, Type: 3, Writes: someWrites(), Entries: 4000},
		"differencing":           {Size: 9 << 20, Type: 4, Writes: someWrites(), Parent: parent()},
		"differencing, 512 KiB":  {Size: 9 << 20, Type: 4, BlockSize: 512 << 10, Writes: someWrites(), Parent: parent()},
		"differencing, 4 KiB":    {Size: 9 << 20, Type: 4, BlockSize: 4096, Writes: someWrites(), Parent: parent()},
		"differencing, 32 MiB":   {Size: 9 << 20, Type: 4, BlockSize: 32 << 20, Writes: someWrites(), Parent: parent()},
		"batmap":                 {Size: 9 << 20, Type: 3, Writes: someWrites(), Batmap: true, Creator: "tap\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustOpen(t, v.Bytes())
			require.Equal(t, v.Size, l.Size())
			fill := byte(0)
			if v.Type == 4 {
				fill = 0xee
			}
			want := model(v, fill)
			for _, r := range [][2]int64{{0, v.Size}, {1, 3 << 20}, {2<<20 - 301, 1003}, {6<<20 + 5*512 - 1, 3*512 + 2}, {v.Size - 1, 5}} {
				got, err := readLayer(l, r[0], r[1], fill)
				require.NoError(t, err)
				require.Equal(t, want[r[0]:min(r[0]+r[1], v.Size)], got, "at %d", r[0])
			}
			require.Empty(t, l.Info().Anomalies)
			require.Empty(t, l.Info().ReadOnly)
		})
	}
}

// Every sample of the corpus reads as its manifest says, parents apart.
func TestCorpus(t *testing.T) {
	for _, row := range need.CorpusRows(t) {
		if row.Format != "vhd" {
			continue
		}
		t.Run(row.File, func(t *testing.T) {
			l := openHostFile(t, need.Corpus(t, row.File))
			require.Equal(t, row.VirtualSize, l.Size())
			require.Equal(t, row.Type, l.Info().Type.String())
			var parent ops.Layer
			if row.Type == "differencing" {
				parent = openHostFile(t, need.Corpus(t, "log2timeline_dfvfs/ntfs-parent.vhd"))
				require.Equal(t, parent.Info().LinkID, l.Info().Parent.IDs[0])
			}
			require.Equal(t, row.SparseDigest, sparseDigest(t, l, parent))
			if row.File == "log2timeline_dfvfs/image.vhd" {
				require.Equal(t, []string{"vhd.footer.checksum"}, names(l.Info().Anomalies))
				require.Equal(t, "the footer's checksum is wrong", l.Info().ReadOnly)
			}
		})
	}
}

func TestAlignedAsWindowsSays(t *testing.T) {
	for file, want := range map[string]bool{
		"log2timeline_dfvfs/ntfs-dynamic.vhd":      true,
		"log2timeline_dfvfs/ntfs-differential.vhd": true,
		"qemu_qemu/hyperv2012r2-dynamic.vhd":       true,
		"log2timeline_dfvfs/ext2.vhd":              false,
		"rubiojr_go-vhd/vbox.vhd":                  false,
	} {
		require.Equal(t, want, openHostFile(t, need.Corpus(t, file)).Info().Aligned, file)
	}
}

func openHostFile(t *testing.T, path string) ops.Layer {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	h := sim.New()
	h.Put("/d.vhd", b)
	l, err := tryOpen(t, h)
	require.NoError(t, err)
	return l
}

// sparseDigest is the corpus's digest of a big disk: index and content of each
// page of 4 KiB that holds something, then the size.
func sparseDigest(t *testing.T, l, parent ops.Layer) string {
	t.Helper()
	sum := sha256.New()
	page := make([]byte, 4096)
	for off := int64(0); off < l.Size(); {
		e, err := l.Extent(off, l.Size()-off)
		require.NoError(t, err)
		if e.Kind == ops.Absent && parent == nil && off%4096+e.Len >= 4096 && off%4096 == 0 {
			off += e.Len / 4096 * 4096
			continue
		}
		off -= off % 4096
		n := min(4096, l.Size()-off)
		clear(page)
		if parent != nil {
			b, err := readLayer(parent, off, n, 0)
			require.NoError(t, err)
			copy(page, b)
		}
		for at := int64(0); at < n; {
			k, _, err := l.ReadRun(page[at:n], off+at)
			require.NoError(t, err)
			at += int64(k)
		}
		if string(page) != string(make([]byte, 4096)) {
			_ = binary.Write(sum, binary.LittleEndian, uint64(off/4096))
			sum.Write(page)
		}
		off += n
	}
	_ = binary.Write(sum, binary.LittleEndian, uint64(l.Size()))
	return hex.EncodeToString(sum.Sum(nil))
}

// Section 13, row 31: nothing behind the disk's end can be reached.
func TestRangesOfRequests(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"fixed":   {Size: 3<<20 + 512, Type: 2},
		"dynamic": {Size: 3<<20 + 512, Blocks: []int64{0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustOpen(t, v.Bytes())
			p := make([]byte, 1024)
			n, _, err := l.ReadRun(p, v.Size-512)
			require.NoError(t, err)
			require.Equal(t, 512, n)
			for _, off := range []int64{v.Size, v.Size + 1, 1 << 62} {
				_, _, err = l.ReadRun(p, off)
				require.ErrorIs(t, err, io.EOF)
				_, err = l.Extent(off, 1)
				require.ErrorIs(t, err, io.EOF)
			}
			_, _, err = l.ReadRun(p, -1)
			require.ErrorIs(t, err, ops.ErrUsage)
			_, err = l.Extent(0, 0)
			require.ErrorIs(t, err, ops.ErrUsage)
			e, err := l.Extent(v.Size-512, 1<<40)
			require.NoError(t, err)
			require.EqualValues(t, 512, e.Len)
		})
	}
}
