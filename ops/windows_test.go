package ops_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/need"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// windowsDisk is a copy of an image that Windows wrote, its parent beside it.
type windowsDisk struct {
	*testing.T
	lib  *ops.Library
	dir  string
	row  need.Row
	name string
	qemu string
}

const (
	smallDisk = 16 << 20  // read and hashed whole, and given to QEMU
	fixedDisk = 256 << 20 // fixed copies are made up to here
)

// operations are what can be done to a disk, and what holds the same content then.
var operations = []struct {
	name string
	can  func(r need.Row) bool
	do   func(d *windowsDisk) (same string)
}{
	{"compact", anyDisk, func(d *windowsDisk) string { d.ask("compact", d.name, "mode=prezeroed"); return d.name }},
	{"compact what no partition has", notDifferencing, func(d *windowsDisk) string {
		d.ask("compact", d.name, "mode=full")
		d.ask("check", d.name, "run")
		return ""
	}},
	{"grow", func(r need.Row) bool { return r.Format == "vhdx" || r.Type != "differencing" }, func(d *windowsDisk) string {
		d.ask("resize", d.name, "+64M")
		if d.row.Type == "differencing" { // a check warns of the parent's end
			require.Equal(d, d.row.SparseDigest, d.digest(d.name))
			return ""
		}
		return d.name
	}},
	{"grow and shrink", func(r need.Row) bool { return r.Format == "vhdx" }, func(d *windowsDisk) string {
		d.ask("resize", d.name, "+64M")
		d.ask("resize", d.name, fmt.Sprintf("size=%d unsafe=true", d.row.VirtualSize))
		return d.name
	}},
	{"convert to dynamic VHDX", anyDisk, converted("new.vhdx", "dynamic")},
	{"convert to dynamic VHD", func(r need.Row) bool { return r.VirtualSize < 2040<<30 }, converted("new.vhd", "dynamic")},
	{"convert to fixed VHDX", fixedFits, converted("new.vhdx", "fixed")},
	{"convert to fixed VHD", fixedFits, converted("new.vhd", "fixed")},
	{"convert to differencing", differencing, func(d *windowsDisk) string {
		d.ask("convert", d.name, "path=new."+d.row.Format+" type=differencing parent="+d.parent())
		return "new." + d.row.Format
	}},
	{"convert its chain", anyDisk, func(d *windowsDisk) string {
		d.ask("convert", d.name, "path=chain type=chain")
		return "chain/" + d.name
	}},
	{"convert to raw", fixedFits, func(d *windowsDisk) string {
		d.ask("convert", d.name, "path=new.raw format=raw")
		if d.row.VirtualSize <= smallDisk {
			require.Equal(d, d.row.RawSHA256, d.fileSum("new.raw"))
		}
		return d.name
	}},
	{"convert to a set", func(r need.Row) bool { return r.Format == "vhdx" }, func(d *windowsDisk) string {
		d.ask("convert-to-set", d.name, "1")
		return strings.TrimSuffix(d.name, ".vhdx") + ".vhds"
	}},
	{"set-parent", differencing, func(d *windowsDisk) string {
		require.NoError(d, os.Mkdir(filepath.Join(d.dir, "moved"), 0o700))
		require.NoError(d, os.Rename(filepath.Join(d.dir, d.parent()), filepath.Join(d.dir, "moved", "p."+d.row.Format)))
		d.ask("set-parent", d.name, "moved/p."+d.row.Format)
		return d.name
	}},
	{"snapshot and merge", anyDisk, func(d *windowsDisk) string { d.ask("merge", d.snapshot(d.name), "1"); return d.name }},
	{"merge into the parent", differencing, func(d *windowsDisk) string { d.ask("merge", d.name, "1"); return d.parent() }},
	{"merge a chain, the leaf first", differencing, func(d *windowsDisk) string {
		d.ask("merge", d.snapshot(d.name), "1")
		d.ask("merge", d.name, "1")
		return d.parent()
	}},
	{"merge a chain, the middle first", differencing, func(d *windowsDisk) string {
		leaf := d.snapshot(d.name)
		d.ask("merge", d.name, "1")
		require.Len(d, d.chain(leaf), 2)
		d.ask("merge", leaf, "1")
		return d.parent()
	}},
	{"merge a chain at once", differencing, func(d *windowsDisk) string {
		d.ask("merge", d.snapshot(d.name), "into="+d.parent())
		return d.parent()
	}},
}

func anyDisk(need.Row) bool           { return true }
func differencing(r need.Row) bool    { return r.Type == "differencing" }
func notDifferencing(r need.Row) bool { return r.Type != "differencing" }
func fixedFits(r need.Row) bool       { return r.VirtualSize <= fixedDisk }

func converted(name, kind string) func(d *windowsDisk) string {
	return func(d *windowsDisk) string {
		d.ask("convert", d.name, "path="+name+" type="+kind)
		return name
	}
}

// Every operation on copies of the images that Windows wrote: what it makes, and
// what it changed, reads as the manifest of the images says, passes the check, and
// QEMU reads it too.
func TestOperationsOnImagesOfWindows(t *testing.T) {
	for _, row := range need.CorpusRows(t) {
		need.Corpus(t, row.File) // stays unpacked for all
	}
	for _, row := range need.CorpusRows(t) {
		if !strings.HasPrefix(row.Creator, "win ") && !strings.HasPrefix(row.Creator, "Microsoft") || row.Format == "vhds" {
			continue
		}
		for _, o := range operations {
			if !o.can(row) {
				continue
			}
			t.Run(filepath.Base(row.File)+"/"+o.name, func(t *testing.T) {
				d := copyOfWindows(t, row)
				require.Equal(t, row.SparseDigest, d.digest(d.name))
				if same := o.do(d); same != "" {
					d.sound(same)
				}
			})
		}
	}
}

func copyOfWindows(t *testing.T, row need.Row) *windowsDisk {
	t.Helper()
	d := &windowsDisk{T: t, dir: t.TempDir(), row: row, name: filepath.Base(row.File), qemu: need.Tool(t, "qemu-img")}
	names := []string{row.File}
	if row.Type == "differencing" {
		names = append(names, filepath.Join(filepath.Dir(row.File), d.parent()))
	}
	for _, name := range names {
		to := filepath.Join(d.dir, filepath.Base(name))
		out, err := exec.Command("cp", "--sparse=always", need.Corpus(t, name), to).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.NoError(t, os.Chmod(to, 0o600))
	}
	dir, err := host.OpenDir(d.dir)
	require.NoError(t, err)
	d.lib = ops.NewLibrary(ops.LibraryOptions{Top: dir, Formats: []*ops.Format{vhd.Format, vhdx.Format, vhdx.SetFormat}})
	t.Cleanup(func() {
		require.NoError(t, d.lib.Close())
		require.NoError(t, dir.Close())
	})
	return d
}

func (d *windowsDisk) parent() string { return "ntfs-parent." + d.row.Format }

func (d *windowsDisk) ask(name, image, request string) ops.Answer {
	d.Helper()
	args, err := op(d.T, name).Parse(request)
	require.NoError(d, err)
	a := op(d.T, name).Do(context.Background(), &ops.Request{Library: d.lib, Image: d.lib.Top(image), Args: args})
	require.NoError(d, a.Err)
	return a
}

// snapshot makes a child of an image and is its name.
func (d *windowsDisk) snapshot(image string) string {
	d.Helper()
	path, ok := field(d.ask("snapshot", image, "1"), "Path").(string)
	require.True(d, ok)
	return filepath.Base(path)
}

func (d *windowsDisk) chain(image string) []ops.Link {
	d.Helper()
	links, err := d.lib.ChainOf(d.lib.Top(image))
	require.NoError(d, err)
	return links
}

// sound asks that an image holds what the manifest says, zeros behind it, and that
// nobody finds fault with it.
func (d *windowsDisk) sound(image string) {
	d.Helper()
	require.Equal(d, d.row.SparseDigest, d.digest(image))
	d.ask("check", image, "run")
	path := filepath.Join(d.dir, image)
	if links := d.chain(image); len(links) > 1 || links[0].Found.Set != nil {
		return // QEMU opens no such image, or ignores the parent
	}
	if strings.HasSuffix(image, ".vhdx") {
		out, err := exec.Command(d.qemu, "check", "-q", "-f", "vhdx", path).CombinedOutput()
		require.NoError(d, err, "%s", out)
	}
	if d.row.VirtualSize > smallDisk {
		return
	}
	file := "json:{\"driver\":\"vhdx\",\"file.filename\":\"" + path + "\"}"
	if strings.HasSuffix(image, ".vhd") {
		file = "json:{\"driver\":\"vpc\",\"force_size_calc\":\"current_size\",\"file.filename\":\"" + path + "\"}"
	}
	raw := filepath.Join(d.dir, "qemu.raw")
	out, err := exec.Command(d.qemu, "convert", "-O", "raw", file, raw).CombinedOutput()
	require.NoError(d, err, "%s", out)
	require.NoError(d, os.Truncate(raw, d.row.VirtualSize))
	require.Equal(d, d.row.RawSHA256, d.fileSum("qemu.raw"))
}

func (d *windowsDisk) fileSum(name string) string {
	d.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	require.NoError(d, err)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// digest is the manifest's over the bytes that the disk of the manifest has; what is
// behind them must be zeros.
func (d *windowsDisk) digest(image string) string {
	d.Helper()
	h, err := d.lib.Open(d.lib.Top(image), ops.Read)
	require.NoError(d, err)
	const page = 4096
	sum, zero := sha256.New(), make([]byte, page)
	for off := int64(0); off < h.Size(); {
		x, err := h.Extent(off, h.Size()-off)
		require.NoError(d, err)
		if n := x.Len / page * page; x.Kind != ops.Data && off%page == 0 && n > 0 {
			off += n
			continue
		}
		b := make([]byte, page)
		_, err = h.ReadAt(b[:min(page, h.Size()-off)], off)
		require.NoError(d, err)
		if !bytes.Equal(b, zero) {
			require.Less(d, off, d.row.VirtualSize)
			sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(off/page)))
			sum.Write(b)
		}
		off += page
	}
	require.NoError(d, h.Close())
	sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(d.row.VirtualSize)))
	return hex.EncodeToString(sum.Sum(nil))
}
