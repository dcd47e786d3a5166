package vhdx

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/need"
	"vhdfs/test/sim"
)

// openFile opens a copy, in memory, of a file of the host.
func openFile(t *testing.T, path string) *Disk {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	h := sim.New()
	h.Put("/img/"+testImage, b)
	h.Freeze()
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, d.Close())
		require.Zero(t, h.Refused(), "a reader wrote")
	})
	return d
}

// sparseDigest is the digest of the corpus over the disk that chain shows, the
// child first: every page of 4096 bytes that is not zeros with its index, then
// the size.
func sparseDigest(t *testing.T, chain ...*Disk) string {
	t.Helper()
	sum := sha256.New()
	size := chain[0].Size()
	page, index, zero := make([]byte, 4096), make([]byte, 8), make([]byte, 4096)
	for off := int64(0); off < size; {
		if x, err := chain[0].Extent(off, size-off); len(chain) == 1 && x.Kind != ops.Data && x.Len >= 4096 && off%4096 == 0 {
			require.NoError(t, err)
			off += x.Len / 4096 * 4096
			continue
		}
		clear(page)
		readChain(t, page[:min(4096, size-off)], off, chain...)
		if string(page) != string(zero) {
			binary.LittleEndian.PutUint64(index, uint64(off/4096))
			sum.Write(index)
			sum.Write(page)
		}
		off += 4096
	}
	binary.LittleEndian.PutUint64(index, uint64(size))
	sum.Write(index)
	return hex.EncodeToString(sum.Sum(nil))
}

func readChain(t *testing.T, p []byte, off int64, chain ...*Disk) {
	t.Helper()
	for at := 0; at < len(p); {
		n, kind, err := chain[0].ReadRun(p[at:], off+int64(at))
		require.NoError(t, err)
		if kind == ops.Absent {
			clear(p[at : at+n])
			if len(chain) > 1 {
				readChain(t, p[at:at+n], off+int64(at), chain[1:]...)
			}
		}
		at += n
	}
}

// Every VHDX of the corpus reads as its manifest says: Windows', QEMU's with a
// dirty log, and children with their parents.
func TestCorpus(t *testing.T) {
	seen := 0
	for _, row := range need.CorpusRows(t) {
		if row.Format != "vhdx" {
			continue
		}
		seen++
		t.Run(row.File, func(t *testing.T) {
			path := need.Corpus(t, row.File)
			d := openFile(t, path)
			require.Equal(t, row.VirtualSize, d.Size())
			require.Equal(t, row.Type, d.Info().Type.String())
			chain := []*Disk{d}
			if row.Parent != "" {
				p := d.Info().Parent
				name := strings.TrimPrefix(p.Paths[0].Path, `.\`)
				chain = append(chain, openFile(t, filepath.Join(filepath.Dir(path), name)))
				require.Contains(t, p.IDs, chain[1].Info().LinkID)
				require.Equal(t, chain[1].Info().DiskID, d.Info().DiskID)
			}
			require.Equal(t, strings.HasPrefix(row.Log, "dirty"), d.Info().Log == ops.LogReplayed)
			require.Equal(t, row.SparseDigest, sparseDigest(t, chain...))
		})
	}
	require.GreaterOrEqual(t, seen, 9)
}

// What qemu-img makes reads as what went in.
func TestQEMUMakesWeRead(t *testing.T) {
	qemu := need.Tool(t, "qemu-img")
	dir := t.TempDir()
	raw := make([]byte, 24*mib+512)
	for i := range raw {
		if i/int(mib)%3 != 1 {
			raw[i] = byte(i>>9) ^ byte(i)
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600))
	for _, options := range []string{"block_size=1M", "block_size=8M", "subformat=fixed", "log_size=4M,block_size=2M", "block_state_zero=off,block_size=1M"} {
		t.Run(options, func(t *testing.T) {
			img := filepath.Join(dir, "image.vhdx")
			out, err := exec.Command(qemu, "convert", "-f", "raw", "-O", "vhdx", "-o", options, filepath.Join(dir, "raw"), img).CombinedOutput()
			require.NoError(t, err, "%s", out)
			d := openFile(t, img)
			require.Equal(t, raw, read(t, d, 0, d.Size()))
			for _, name := range check(t, d) {
				require.NotContains(t, name, "bat")
			}
		})
	}
}

// The fixtures themselves are what other readers take for VHDX.
func TestFixturesAreVHDX(t *testing.T) {
	qemu := need.Tool(t, "qemu-img")
	for _, v := range []fixture.VHDX{
		{Size: 10 << 30, BlockSize: 1 << 20}, {Size: 300 * mib, BlockSize: 32 << 20, Order: []int64{8, 1, 0}}, {Size: 16 * mib, Fixed: true},
	} {
		v.Writes = []fixture.Write{{Off: 512, Data: fill(70000, 1)}, {Off: v.Size - 512, Data: fill(512, 2)}}
		img := filepath.Join(t.TempDir(), "image.vhdx")
		require.NoError(t, v.WriteFile(img))
		out, err := exec.Command(qemu, "check", "-f", "vhdx", img).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}
