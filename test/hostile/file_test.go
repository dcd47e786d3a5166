package hostile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func TestH01TooShort(t *testing.T) {
	sizes := []struct {
		name string
		n    int
	}{{"empty", 0}, {"1 byte", 1}, {"511 bytes", 511}, {"513 bytes", 513}, {"100,000 bytes", 100_000}}
	for _, ext := range []string{".vhdx", ".avhdx", ".vhd", ".avhd", ".iso", ".vhds"} {
		var family []row
		for _, s := range sizes {
			says := "disk" + ext + ": no format knows this file"
			switch ext {
			case ".iso":
				says = fmt.Sprintf("iso: ...in a file of %d bytes", s.n)
			case ".vhds":
				says = "vhds: identifier"
			}
			family = append(family, row{name: s.name, file: folder.Raw(noise(s.n)), class: ops.ErrCorrupt, says: says})
		}
		t.Run(ext, func(t *testing.T) { rows(t, "disk"+ext, family) })
	}
	rows(t, "disk.vfd", []row{
		{name: "empty floppy", file: folder.Raw{}, class: ops.ErrCorrupt, says: "0 bytes"},
		{name: "floppy of a byte", file: folder.Raw{1}, class: ops.ErrCorrupt, says: "1 byte"},
		{name: "floppy of 511 bytes", file: folder.Raw(noise(511)), class: ops.ErrCorrupt, says: "511"},
		{name: "floppy of 100,000 bytes", file: folder.Raw(noise(100_000)), class: ops.ErrCorrupt, says: "100000"},
	})
}

// A VHD of before Virtual PC 2004 ends in a footer of 511 bytes: good for reading.
func TestH01ShortFooter(t *testing.T) {
	rows(t, "disk.vhd", []row{
		{
			name: "dynamic",
			file: func() folder.Maker { v := smallVHD(); v.ShortFooter = true; return v }(),
			odd:  []string{"vhd.footer.short"}, readOnly: "511",
		},
		{
			name: "fixed",
			file: fixture.VHD{Size: 8 * mib, Type: 2, Writes: base, ShortFooter: true},
			odd:  []string{"vhd.footer.short"}, readOnly: "511",
		},
		{
			name:  "dynamic, checksum wrong and no copy",
			file:  fixture.VHD{Size: 8 * mib, ShortFooter: true, NoCopy: true, Patches: []fixture.VHDPatch{{Part: "tail", Off: 64, Data: []byte{1}}}},
			class: ops.ErrCorrupt, says: "footer",
		},
	})
}

func TestH02SignatureAndNothing(t *testing.T) {
	vhd := fixture.VHD{Size: 8 * mib, Writes: base}.Bytes()
	rows(t, "disk.vhdx", []row{
		{name: "zeros", file: folder.Raw(make([]byte, mib)), class: ops.ErrCorrupt, says: "disk.vhdx"},
		{name: "noise", file: folder.Raw(noise(int(mib))), class: ops.ErrCorrupt, says: "disk.vhdx"},
		{name: "identifier and end", file: folder.Raw("vhdxfile"), class: ops.ErrCorrupt, says: "vhdx: ...file ends at 0x8"},
		{name: "7 bytes of the identifier", file: folder.Raw("vhdxfil"), class: ops.ErrCorrupt, says: "disk.vhdx"},
		{name: "identifier in lower and upper case", file: folder.Raw(append([]byte("VHDXFILE"), make([]byte, mib)...)), class: ops.ErrCorrupt, says: "disk.vhdx"},
		{name: "identifier and zeros", file: folder.Raw(append([]byte("vhdxfile"), make([]byte, mib)...)), class: ops.ErrCorrupt, says: "header...signature"},
	})
	rows(t, "disk.vhd", []row{
		{name: "cookie and end", file: folder.Raw("conectix"), class: ops.ErrCorrupt, says: "disk.vhd"},
		{name: "copy of a footer and end", file: folder.Raw(vhd[:512]), class: ops.ErrCorrupt, says: "vhd: "},
		{name: "copy, header and end", file: folder.Raw(vhd[:1536]), class: ops.ErrCorrupt, says: "vhd: "},
		{name: "footer cookie and zeros at the end", file: folder.Raw(append(make([]byte, mib), append([]byte("conectix"), make([]byte, 504)...)...)), class: ops.ErrCorrupt, says: "footer...checksum"},
		{name: "zeros", file: folder.Raw(make([]byte, mib)), class: ops.ErrCorrupt, says: "disk.vhd"},
		{name: "disabled by blktap", file: folder.Raw(bytes.ReplaceAll(bytes.Clone(vhd), []byte("conectix"), []byte("v_poison"))), class: ops.ErrForbidden, says: `footer: cookie "v_poison"`},
	})
}

// Cut at every border of a structure: the answer is an error, at opening or at
// the bytes that are gone.
func TestH02CutShort(t *testing.T) {
	var family []row
	for _, c := range []struct {
		name string
		at   int64
		says string
	}{
		{"in header 1", 64*kib + 100, "file ends at 0x10064"},
		{"behind header 1", 68 * kib, "file ends at"},
		{"in header 2", 128*kib + 4095, "file ends at 0x20fff"},
		{"in region table 1", 200 * kib, "past end of file 0x32000"},
		{"in region table 2", 300 * kib, "past end of file 0x4b000"},
		{"before the log", mib, "header: log at 0x100000 of 0x100000 bytes past end of file 0x100000"},
		{"in the log", mib + 4096, "header: log at 0x100000"},
		{"before the metadata", 2 * mib, "0x200000"},
		{"in the metadata table", 2*mib + 100, "0x200064"},
		{"in the metadata items", 2*mib + 64*kib + 20, "0x210014"},
		{"before the BAT", 3 * mib, "0x300000"},
	} {
		v := small()
		v.Cut = c.at
		family = append(family, row{name: c.name, file: v, class: ops.ErrCorrupt, says: c.says})
	}
	v := small()
	v.Cut = 5 * mib
	family = append(family, row{
		name: "behind block 0", file: v, bad: blocks(mib, 3, 7), badRead: ops.ErrCorrupt, says: "bat entry...past end of file 0x500000",
	})
	rows(t, "disk.vhdx", family)
}

// A file that somebody cuts while it is open answers errors where bytes are gone.
func TestH03ShrinksWhileOpen(t *testing.T) {
	for name, m := range map[string]folder.Maker{
		"disk.vhdx":  small(),
		"disk.vhd":   smallVHD(),
		"fixed.vhd":  fixture.VHD{Size: 8 * mib, Type: 2, Writes: base},
		"fixed.vhdx": fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Fixed: true, Writes: base},
		"floppy.vfd": folder.Raw(noise(1_474_560)),
	} {
		t.Run(name, func(t *testing.T) {
			folder.Watch(t)
			dir := folder.Make(t, folder.Files{name: m})
			l := folder.Open(t, dir)
			h, err := l.Open(l.Top(name), ops.Read)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(filepath.Join(dir, name), mib))
			p := make([]byte, 512)
			_, err = h.ReadAt(p, h.Size()-512)
			require.Error(t, err, "bytes that are gone were read")
			require.NotContains(t, string(p), "the last sector.")
			require.NoError(t, h.Close())
		})
	}
}
