package hostile

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

func isA(format string) func(*testing.T, *folder.Sight) {
	return func(t *testing.T, s *folder.Sight) {
		t.Helper()
		require.Equal(t, format, s.Found.Format.Name)
	}
}

// guest is what a guest wrote over its whole disk, from the start.
func guest(b []byte) []fixture.Write { return []fixture.Write{{Off: 0, Data: b}} }

// forgedChild is a differencing VHD that names a parent beside it.
func forgedChild() fixture.VHD {
	return fixture.VHD{Size: 4 * mib, Type: 4, Parent: &fixture.VHDParent{
		UUID: fixture.VHDUUID, Name: "secret.vhd", Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\secret.vhd`}},
	}}
}

func secret() fixture.VHD {
	return fixture.VHD{Size: 4 * mib, Writes: []fixture.Write{{Off: 0, Data: []byte(canary)}}}
}

// canary is what must never show.
const canary = "CANARY-4f1d-must-not-be-read"

// A guest must not be able to switch the format of its own disk.
func TestH29GuestWritesHeaders(t *testing.T) {
	vhdx := small().Bytes()
	fixed := func(b []byte) fixture.VHD { return fixture.VHD{Size: 8 * mib, Type: 2, Writes: guest(b)} }
	footer := fixture.VHD{Size: 8 * mib, Type: 2}.Bytes()[8*mib:]
	floppy := func(writes ...fixture.Write) folder.Raw {
		b := make([]byte, 1_474_560)
		for _, w := range writes {
			copy(b[w.Off:], w.Data)
		}
		return b
	}
	atEnd := func(b []byte) fixture.Write { return fixture.Write{Off: 1_474_560 - int64(len(b)), Data: b} }
	// The last stored sector of this VHDX is the guest's last sector.
	ends := small()
	ends.Writes = []fixture.Write{base[0], base[1], {Off: 8*mib - 512, Data: footer}}
	sib := folder.Files{"secret.vhd": secret()}
	odd := []string{"image.extension"}
	rows(t, "disk.vhd", []row{
		{name: "fixed VHD full of a VHDX", file: fixed(vhdx), want: guest(vhdx), also: isA("vhd")},
		{name: "fixed VHD full of a VHDX, of a checkpoint", as: "disk.avhd", file: fixed(vhdx), want: guest(vhdx), also: isA("vhd")},
		{name: "fixed VHD full of a VHDX under a stranger's name", as: "disk.vfd", file: folder.Raw(fixed(vhdx).Bytes()[:8*mib]), class: ops.ErrCorrupt, says: "vfd: "},
		{name: "fixed VHD with a footer in front", file: fixed(footer), want: guest(footer), also: isA("vhd")},
		{name: "VHDX that ends in a footer", as: "disk.vhdx", file: ends, want: ends.Writes, also: isA("vhdx")},
		{name: "VHDX of a checkpoint that ends in a footer", as: "disk.avhdx", file: ends, want: ends.Writes, also: isA("vhdx")},
		{name: "floppy with a VHDX identifier", as: "disk.vfd", file: floppy(fixture.Write{Data: vhdx[:mib]}), want: guest(vhdx[:mib]), also: isA("vfd")},
		{name: "floppy with the footer of a fixed VHD", as: "disk.vfd", file: floppy(atEnd(footer)), want: []fixture.Write{atEnd(footer)}, also: isA("vfd")},
		{
			name: "floppy that is a child of a VHD", as: "disk.vfd", more: sib, also: isA("vfd"),
			file: floppy(fixture.Write{Data: forgedChild().Bytes()}, atEnd(forgedChild().Bytes()[:512])),
			want: []fixture.Write{{Data: forgedChild().Bytes()}, atEnd(forgedChild().Bytes()[:512])},
		},
		{name: "raw disk without a footer", file: folder.Raw(noise(int(mib))), class: ops.ErrCorrupt, says: "disk.vhd: no format"},
		{name: "VHDX named as a VHD", file: small(), odd: odd, also: isA("vhdx")},
		{name: "VHD named as a VHDX", as: "disk.vhdx", file: smallVHD(), odd: odd, also: isA("vhd")},
	})
}

func TestH29GuestWritesInISO(t *testing.T) {
	footer := fixture.VHD{Size: 8 * mib, Type: 2}.Bytes()[8*mib:]
	iso := make([]byte, 40*2048)
	pvd := iso[16*2048:]
	copy(pvd, "\x01CD001\x01")
	copy(pvd[80:], le32(40))
	copy(pvd[84:], be32(40))
	copy(pvd[120:], []byte{1, 0, 0, 1, 1, 0, 0, 1, 0, 8, 8, 0})
	copy(iso[17*2048:], "\xffCD001\x01")
	copy(iso, "vhdxfile")
	copy(iso[len(iso)-512:], footer)
	rows(t, "disk.iso", []row{{
		name: "identifier in front and footer at the end", file: folder.Raw(iso), want: guest(iso),
		readOnly: "ISO", also: isA("iso"),
	}})
}

func TestH30TypeAgainstStructures(t *testing.T) {
	typed := func(v fixture.VHD, n uint32) fixture.VHD { return patched(v, 60, be32(n), "tail", "copy") }
	sib := folder.Files{"secret.vhd": secret()}
	one := fixture.VHD{Size: mib, Writes: []fixture.Write{{Off: 0, Data: []byte("x")}}}
	asFixed := typed(one, 2)
	rows(t, "disk.vhd", []row{
		{name: "dynamic says fixed", file: typed(smallVHD(), 2), class: ops.ErrCorrupt, says: "vhd: footer: disk of 8388608 bytes in a file with 6311424"},
		{name: "dynamic says fixed, and the file is long enough", file: asFixed, want: guest(asFixed.Bytes()[:mib]), odd: []string{"vhd.length"}},
		{name: "dynamic says differencing", file: typed(smallVHD(), 4), class: ops.ErrCorrupt, says: "type is differencing, but the header names no parent"},
		{name: "differencing says dynamic", file: typed(forgedChild(), 3), more: sib, class: ops.ErrCorrupt, says: "type is dynamic, but the header names parent d15c0102"},
		{name: "fixed says dynamic", file: patched(fixture.VHD{Size: 8 * mib, Type: 2}, 60, be32(3), "tail"), class: ops.ErrCorrupt, says: "vhd: footer: dynamic header at 0xffffffffffffffff"},
		{name: "fixed says differencing", file: patched(fixture.VHD{Size: 8 * mib, Type: 2}, 60, be32(4), "tail"), class: ops.ErrCorrupt, says: "vhd: footer: dynamic header at 0xffffffffffffffff"},
	})
}

// What a guest of a fixed VHD writes into its first sectors is its content and
// nothing else, also where the footer at the end is damaged.
func TestH31ForgedFooterInSectorZero(t *testing.T) {
	dynamic, child := smallVHD().Bytes(), forgedChild().Bytes()
	own := fixture.VHD{Size: 8 * mib, Type: 2}.Bytes()[8*mib:]
	fixed := func(b []byte) fixture.VHD { return fixture.VHD{Size: 8 * mib, Type: 2, Writes: guest(b)} }
	sib := folder.Files{"secret.vhd": secret()}
	rows(t, "disk.vhd", []row{
		{name: "of a dynamic disk", file: fixed(dynamic), want: guest(dynamic), also: isA("vhd")},
		{name: "of a differencing disk", file: fixed(child), more: sib, want: guest(child), also: isA("vhd")},
		{name: "copy alone", file: fixed(child[:512]), want: guest(child[:512])},
		{
			name: "of a differencing disk, checksum at the end wrong", file: broken(fixed(child), "tail"), more: sib,
			want: guest(child), odd: []string{"vhd.footer.checksum"}, readOnly: "checksum",
		},
		{name: "of a fixed disk, none at the end", file: folder.Raw(fixed(own).Bytes()[:8*mib]), class: ops.ErrCorrupt, says: "vhd: footer: cookie"},
	})
}

// Two formats at once: the extension and the end of the file decide, see
// TestH29GuestWritesHeaders; nothing shows a disk of both.
func TestH05TwoFormats(t *testing.T) {
	both := append(small().Bytes(), fixture.VHD{Size: 7 * mib, Type: 2}.Bytes()[7*mib:]...)
	rows(t, "disk", []row{
		{name: "as .vhdx", as: "disk.vhdx", file: folder.Raw(both), also: isA("vhdx")},
		{name: "as .vhd", as: "disk.vhd", file: folder.Raw(both), want: guest(both[:7*mib]), also: isA("vhd")},
	})
}
