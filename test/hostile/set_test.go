package hostile

import (
	"hash/crc32"
	"testing"

	"vhdfs/ops"
	"vhdfs/test/hostile/folder"
)

// set is a VHD set whose active disk has this name; change may damage either
// header before its checksum is made.
func set(leaf string, change func(header []byte)) folder.Raw {
	b := make([]byte, 0x41000)
	copy(b, "vhdsetv1")
	name := text16(leaf)
	copy(b[0x40000:], name)
	for i, at := range []int{0x10000, 0x20000} {
		h := b[at : at+4096]
		copy(h, "shdr")
		copy(h[8:], le64(uint64(i+1)))
		copy(h[16:], le32(1))
		copy(h[24:], le32(7))
		copy(h[28:], le32(0x40000))
		copy(h[32:], le32(uint32(len(name))))
		if change != nil {
			change(h)
		}
		copy(h[20:], le32(crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli))))
	}
	return b
}

func field(at int, v uint32) func([]byte) {
	return func(h []byte) { copy(h[at:], le32(v)) }
}

// A set names a disk in its own folder and nothing else.
func TestH32SetsThatLeadOutside(t *testing.T) {
	leaf := folder.Files{"leaf.avhdx": rootX(2), "sub/leaf.avhdx": rootX(3)}
	family := []row{
		{name: "as it should be", file: set("leaf.avhdx", nil), more: leaf},
		{name: "in another case", file: set("LEAF.AVHDX", nil), more: leaf},
	}
	for _, c := range []struct {
		name, leaf string
		class      error
		says       string
	}{
		{"above the folder", `..\outside\p.avhdx`, ops.ErrCorrupt, `active disk "..\\outside\\p.avhdx"`},
		{"below the folder", `sub\leaf.avhdx`, ops.ErrCorrupt, `active disk "sub\\leaf.avhdx"`},
		{"with slashes", `sub/leaf.avhdx`, ops.ErrCorrupt, `active disk "sub/leaf.avhdx"`},
		{"from a root", `\leaf.avhdx`, ops.ErrCorrupt, `active disk "\\leaf.avhdx"`},
		{"on a drive", `C:\leaf.avhdx`, ops.ErrCorrupt, `active disk "C:\\leaf.avhdx"`},
		{"of a host path", "/etc/shadow", ops.ErrCorrupt, `active disk "/etc/shadow"`},
		{"a URL", "file:///etc/shadow", ops.ErrCorrupt, `active disk "file:///etc/shadow"`},
		{"dots", "..", ops.ErrCorrupt, `".."`},
		{"a dot", ".", ops.ErrCorrupt, `"."`},
		{"nothing", "", ops.ErrCorrupt, "vhds: "},
		{"NUL inside", "leaf.avhdx\x00.txt", ops.ErrCorrupt, `"leaf.avhdx\x00.txt"`},
		{"a name that is not there", "gone.avhdx", ops.ErrParentMissing, `active disk "gone.avhdx"`},
		{"itself", "disk.vhds", ops.ErrCorrupt, `"disk.vhds"`},
	} {
		family = append(family, row{name: c.name, file: set(c.leaf, nil), more: leaf, class: c.class, says: c.says})
	}
	family = append(family,
		row{name: "another set", file: set("b.vhds", nil), more: folder.Files{"b.vhds": set("leaf.avhdx", nil), "leaf.avhdx": rootX(2)}, class: ops.ErrCorrupt, says: `"b.vhds"`},
		row{name: "a VHD", file: set("leaf.avhdx", nil), more: folder.Files{"leaf.avhdx": rootV(2)}, class: ops.ErrCorrupt, says: `active disk "leaf.avhdx"...is a vhd`},
		row{name: "text", file: set("leaf.avhdx", nil), more: folder.Files{"leaf.avhdx": folder.Raw(canary)}, class: ops.ErrCorrupt, says: "leaf.avhdx"},
		row{name: "a link to outside", file: set("leaf.avhdx", nil), more: folder.Files{"leaf.avhdx": folder.Link("/etc/passwd")}, class: ops.ErrForbidden, says: "leaf.avhdx"},
	)
	rows(t, "disk.vhds", family)
}

func TestH40DamagedSets(t *testing.T) {
	leaf := folder.Files{"leaf.avhdx": rootX(2)}
	both := set("leaf.avhdx", nil)
	both[0x10014] ^= 1
	both[0x20014] ^= 1
	one := set("leaf.avhdx", nil)
	one[0x20014] ^= 1
	var family []row
	for _, c := range []struct {
		name string
		file folder.Raw
		says string
	}{
		{"identifier", append(folder.Raw("VHDSETV1"), set("leaf.avhdx", nil)[8:]...), `vhds: identifier "VHDSETV1"`},
		{"both headers", both, "vhds: ...checksum"},
		{"signature of both", set("leaf.avhdx", field(0, 0)), `vhds: ...signature "\x00\x00\x00\x00"`},
		{"name past the end", set("leaf.avhdx", field(28, 0x41000)), "vhds: ...0x41000"},
		{"name at 2^32-2", set("leaf.avhdx", field(28, 1<<32-2)), "vhds: ...0xfffffffe"},
		{"name of no bytes", set("leaf.avhdx", field(32, 0)), "vhds: ...0"},
		{"name of odd bytes", set("leaf.avhdx", field(32, 19)), "vhds: ...19"},
		{"name of 512 bytes", set("leaf.avhdx", field(32, 512)), "vhds: ...512"},
		{"name of 2^32-2 bytes", set("leaf.avhdx", field(32, 1<<32-2)), "vhds: ...4294967294"},
		{"cut in header 1", set("leaf.avhdx", nil)[:0x10100], "vhds: ...0x10100"},
		{"cut before the name", set("leaf.avhdx", nil)[:0x40000], "vhds: ...0x40000"},
	} {
		family = append(family, row{name: c.name, file: c.file, more: leaf, class: ops.ErrCorrupt, says: c.says})
	}
	family = append(family, row{name: "one header", file: one, more: leaf, odd: []string{"vhds.header"}})
	rows(t, "disk.vhds", family)
}
