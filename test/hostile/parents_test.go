package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

// idOf is an id that a number stands for.
func idOf(n int) [16]byte {
	return [16]byte{0xa0, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, byte(n >> 8), byte(n)}
}

// rootX is a VHDX with the id of n and base in it.
func rootX(n int) fixture.VHDX {
	v := small()
	v.DataWriteGUID = idOf(n)
	return v
}

// childX is a VHDX with the id of n whose parent has the id of of, recorded
// under these keys and values.
func childX(n, of int, kv ...string) fixture.VHDX {
	l := &fixture.Locator{Entries: [][2]string{{"parent_linkage", fixture.GUIDText(idOf(of))}}}
	for i := 0; i < len(kv); i += 2 {
		l.Entries = append(l.Entries, [2]string{kv[i], kv[i+1]})
	}
	return fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, DataWriteGUID: idOf(n), Parent: l}
}

func rootV(n int) fixture.VHD {
	v := smallVHD()
	v.UUID = idOf(n)
	return v
}

// childV is childX in VHD: codes and paths, "" for the name in the header.
func childV(n, of int, kv ...string) fixture.VHD {
	p := &fixture.VHDParent{UUID: idOf(of)}
	for i := 0; i < len(kv); i += 2 {
		if kv[i] == "" {
			p.Name = kv[i+1]
			continue
		}
		p.Locators = append(p.Locators, fixture.VHDLocator{Code: kv[i], Path: kv[i+1]})
	}
	return fixture.VHD{Size: 8 * mib, Type: 4, UUID: idOf(n), Parent: p}
}

func TestH34SpecialFiles(t *testing.T) {
	special := map[string]folder.Maker{
		"fifo":          folder.Func(func(p string) error { return mkfifo(p) }),
		"socket":        folder.Func(listenOn),
		"directory":     folder.Func(func(p string) error { return os.Mkdir(p, 0o755) }),
		"link to proc":  folder.Link("/proc/self/mem"),
		"link to zero":  folder.Link("/dev/zero"),
		"link to a tty": folder.Link("/dev/tty"),
	}
	var x, v []row
	for name, m := range special {
		x = append(x, row{
			name: name, file: childX(1, 2, "relative_path", `.\p.vhdx`), more: folder.Files{"p.vhdx": m},
			class: ops.ErrParentMissing, says: "parent of ...disk.vhdx: no image with id a0010203-0405-4607-8809-0a0b0c0d0002",
		})
		v = append(v, row{
			name: name, file: childV(1, 2, "W2ru", `.\p.vhd`), more: folder.Files{"p.vhd": m},
			class: ops.ErrParentMissing, says: "parent of ...disk.vhd: no image with id a0010203-0405-4607-8809-0a0b0c0d0002",
		})
	}
	rows(t, "disk.vhdx", x)
	rows(t, "disk.vhd", v)
}

// The same files under an image's own name.
func TestH34SpecialFilesAsImages(t *testing.T) {
	for name, m := range map[string]folder.Maker{
		"fifo.vhdx": folder.Func(mkfifo), "socket.vhd": folder.Func(listenOn),
		"zero.vfd": folder.Link("/dev/zero"), "mem.iso": folder.Link("/proc/self/mem"),
		"directory.vhdx": folder.Func(func(p string) error { return os.Mkdir(p, 0o755) }),
	} {
		t.Run(name, func(t *testing.T) {
			folder.Watch(t)
			dir := folder.Make(t, folder.Files{name: m})
			l := folder.Open(t, dir)
			list, err := l.List(".")
			require.NoError(t, err)
			for _, e := range list {
				require.True(t, e.IsDir, "%s is listed", e.Name)
			}
			_, err = l.Inspect(l.Top(name))
			require.ErrorIs(t, err, ops.ErrForbidden)
			_, err = l.Open(l.Top(name), ops.Read)
			require.ErrorIs(t, err, ops.ErrForbidden)
		})
	}
}

func TestH35ParentIsNoImage(t *testing.T) {
	text := folder.Raw(canary + strings.Repeat("\nsecret", 100))
	quiet := func(t *testing.T, s *folder.Sight) {
		t.Helper()
		require.NotContains(t, ops.Sentence(s.Err), "CANARY")
		for _, link := range s.Chain {
			for _, c := range link.Passed {
				require.NotContains(t, fmt.Sprint(c), "CANARY")
			}
		}
	}
	var family []row
	for name, file := range map[string]folder.Maker{
		"text": text, "empty": folder.Raw{}, "zeros": folder.Raw(make([]byte, mib)), "noise": folder.Raw(noise(int(mib))),
		"the identifier and text": folder.Raw("vhdxfile" + canary),
		"a cut image":             folder.Raw(rootX(2).Bytes()[:3*mib]),
		"a VHD with the right id": rootV(2),
	} {
		r := row{
			name: name, file: childX(1, 2, "relative_path", `.\p.vhdx`), more: folder.Files{"p.vhdx": file},
			class: ops.ErrParentMissing, says: "disk.vhdx", also: quiet,
		}
		if strings.HasPrefix(name, "the ident") || strings.HasPrefix(name, "a cut") {
			r.class, r.says = ops.ErrCorrupt, "parent of ...disk.vhdx cannot be read: ...vhdx: "
		}
		family = append(family, r)
	}
	for _, name := range []string{"shadow", "id_rsa", "p.txt", "p.vfd"} {
		family = append(family, row{
			name: "text named " + name, file: childX(1, 2, "relative_path", `.\`+name), more: folder.Files{name: text},
			class: ops.ErrParentMissing, says: "disk.vhdx", also: quiet,
		})
	}
	rows(t, "disk.vhdx", family)
	rows(t, "disk.vhd", []row{
		{name: "VHD, text", file: childV(1, 2, "W2ru", `.\p.vhd`), more: folder.Files{"p.vhd": text}, class: ops.ErrParentMissing, says: "disk.vhd", also: quiet},
		{name: "VHD, a VHDX with the right id", file: childV(1, 2, "W2ru", `.\p.vhd`), more: folder.Files{"p.vhd": rootX(2)}, class: ops.ErrParentMissing, says: "disk.vhd", also: quiet},
		{
			name: "VHD, a raw disk without id, as of blktap",
			file: func() fixture.VHD { v := childV(1, 2, "MacX", "file://./p.vhd"); v.Parent.UUID = [16]byte{}; return v }(),
			more: folder.Files{"p.vhd": text}, class: errUnsupported, says: "vhd: the parent has no id", also: quiet,
		},
	})
}

func TestH36Cycles(t *testing.T) {
	rows(t, "disk.vhdx", []row{
		{name: "its own parent", file: childX(1, 1, "relative_path", `.\disk.vhdx`), class: ops.ErrCycle, says: "disk.vhdx is in its own chain"},
		{
			name: "two", file: childX(1, 2, "relative_path", `.\b.vhdx`), more: folder.Files{"b.vhdx": childX(2, 1, "relative_path", `.\disk.vhdx`)},
			class: ops.ErrCycle, says: "disk.vhdx is in its own chain",
		},
		{
			name: "two, by other spellings", file: childX(1, 2, "relative_path", `SUB\..\B.VHDX`), more: folder.Files{
				"sub/x.txt": folder.Raw{}, "b.vhdx": childX(2, 1, "absolute_win32_path", `C:\elsewhere\DISK.vhdx`)},
			class: ops.ErrCycle, says: "is in its own chain",
		},
		{
			name: "three, entered from outside", file: childX(9, 1, "relative_path", `.\a.vhdx`), more: folder.Files{
				"a.vhdx": childX(1, 2, "relative_path", `.\b.vhdx`),
				"b.vhdx": childX(2, 3, "relative_path", `.\sub\c.vhdx`), "sub/c.vhdx": childX(3, 1, "relative_path", `..\a.vhdx`)},
			class: ops.ErrCycle, says: "a.vhdx is in its own chain",
		},
		{name: "its own parent, found by id", file: childX(1, 1), class: ops.ErrCycle, says: "is in its own chain"},
	})
	rows(t, "disk.vhd", []row{
		{name: "VHD, its own parent", file: childV(1, 1, "W2ru", `.\disk.vhd`), class: ops.ErrCycle, says: "disk.vhd is in its own chain"},
		{
			name: "VHD, two", file: childV(1, 2, "MacX", "file://./b.vhd"), more: folder.Files{"b.vhd": childV(2, 1, "", "disk.vhd")},
			class: ops.ErrCycle, says: "is in its own chain",
		},
	})
}

// Another name of the same file is the same file.
func TestH36CycleOverHardLinks(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{"a.vhdx": childX(1, 1, "relative_path", `.\b.vhdx`)})
	require.NoError(t, os.Link(filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "b.vhdx")))
	l := folder.Open(t, dir)
	s, h := folder.See(l, "a.vhdx")
	require.Nil(t, h)
	require.ErrorIs(t, s.Err, ops.ErrCycle)
	says(t, s.Err, "b.vhdx is in its own chain")
}

func TestH37Depth(t *testing.T) {
	chain := func(n int) folder.Files {
		files := folder.Files{"0.vhd": fixture.VHD{Size: mib, BlockSize: 512 << 10, UUID: idOf(0), Writes: guest([]byte("the root"))}}
		for i := 1; i < n; i++ {
			v := childV(i, i-1, "W2ru", fmt.Sprintf(`.\%d.vhd`, i-1))
			v.Size, v.BlockSize = mib, 512<<10
			files[fmt.Sprintf("%d.vhd", i)] = v
		}
		return files
	}
	t.Run("256", func(t *testing.T) {
		folder.Watch(t)
		l := folder.Open(t, folder.Make(t, chain(256)))
		s, h := folder.See(l, "255.vhd")
		require.NoError(t, s.Err)
		require.Len(t, s.Chain, 256)
		require.NoError(t, s.Read(h))
		require.Empty(t, s.Bad)
		require.Equal(t, "the root", string(s.Data[:8]))
	})
	for _, n := range []int{257, 10_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			folder.Watch(t)
			dir := folder.Make(t, chain(n))
			l := folder.Open(t, dir)
			fds, before := openFiles(t), allocated()
			s, h := folder.See(l, fmt.Sprintf("%d.vhd", n-1))
			require.Nil(t, h)
			require.ErrorIs(t, s.Err, ops.ErrCycle)
			says(t, s.Err, "more than 256 images")
			require.Less(t, allocated()-before, uint64(openBudget))
			require.Equal(t, fds, openFiles(t))
		})
	}
}

func TestH38WrongID(t *testing.T) {
	two := childX(1, 9, "relative_path", `.\p.vhdx`)
	two.Parent.Entries = append(two.Parent.Entries, [2]string{"parent_linkage2", strings.ToUpper(fixture.GUIDText(idOf(2)))})
	bad := childX(1, 2, "relative_path", `.\p.vhdx`)
	bad.Parent.Entries[0][1] = "{not-an-id}"
	old := childV(1, 2, "W2ru", `.\p.vhd`)
	old.Parent.Timestamp = 12345
	parent := folder.Files{"p.vhdx": rootX(2)}
	rows(t, "disk.vhdx", []row{
		{
			name: "VHDX", file: childX(1, 3, "relative_path", `.\p.vhdx`), more: parent, class: ops.ErrParentMismatch,
			says: "p.vhdx has id a0010203-0405-4607-8809-0a0b0c0d0002, recorded is a0010203-0405-4607-8809-0a0b0c0d0003",
		},
		{
			name: "of the grandparent", file: childX(1, 2, "relative_path", `.\p.vhdx`), more: folder.Files{
				"p.vhdx": childX(2, 4, "relative_path", `.\g.vhdx`), "g.vhdx": rootX(5)},
			class: ops.ErrParentMismatch, says: "g.vhdx has id a0010203-0405-4607-8809-0a0b0c0d0005, recorded is a0010203-0405-4607-8809-0a0b0c0d0004",
		},
		{name: "the second id is right, in upper case", file: two, more: parent},
		{name: "linkage is no id", file: bad, more: parent, class: ops.ErrCorrupt, says: `vhdx: parent locator: parent_linkage "{not-an-id}"`},
		{name: "linkage of zeros", file: childX(1, 2, "parent_linkage2", "{00000000-0000-0000-0000-000000000000}", "relative_path", `.\p.vhdx`), more: parent},
	})
	rows(t, "disk.vhd", []row{
		{
			name: "VHD", file: childV(1, 3, "W2ru", `.\p.vhd`), more: folder.Files{"p.vhd": rootV(2)}, class: ops.ErrParentMismatch,
			says: "p.vhd has id a0010203-0405-4607-8809-0a0b0c0d0002, recorded is a0010203-0405-4607-8809-0a0b0c0d0003",
		},
		{name: "VHD, another time stamp only", file: old, more: folder.Files{"p.vhd": rootV(2)}, also: func(t *testing.T, s *folder.Sight) {
			t.Helper()
			require.Contains(t, fmt.Sprint(s.Chain[0].Warnings), "2000-01-01T03:25:45Z")
		}},
		{name: "VHD, the wrong one by path and the right one by name", file: childV(1, 2, "W2ru", `.\sub\p.vhd`), more: folder.Files{"sub/p.vhd": rootV(3), "p.vhd": rootV(2)}},
	})
}

func TestH39ParentOfOtherMeasure(t *testing.T) {
	sized := func(n int64, sector uint32) folder.Files {
		v := fixture.VHDX{Size: n, BlockSize: 2 << 20, LogicalSector: sector, DataWriteGUID: idOf(2), Writes: base[:1]}
		return folder.Files{"p.vhdx": v}
	}
	four := childX(1, 2, "relative_path", `.\p.vhdx`)
	four.LogicalSector = 4096
	x := func(name string, more folder.Files) row {
		return row{name: name, file: childX(1, 2, "relative_path", `.\p.vhdx`), more: more, want: base[:1]}
	}
	wrong := x("sectors of 4096", sized(8*mib, 4096))
	wrong.class, wrong.says = ops.ErrCorrupt, "p.vhdx has logical sectors of 4096 bytes, the child of 512"
	rows(t, "disk.vhdx", []row{
		x("smaller", sized(mib, 512)), x("of one sector", sized(512, 512)), x("larger", sized(64*mib, 512)), x("of 64 TiB", sized(64*tib, 512)), wrong,
		{name: "the child has sectors of 4096", file: four, more: sized(8*mib, 512), class: ops.ErrCorrupt, says: "logical sectors of 512 bytes, the child of 4096"},
		{name: "both have", file: four, more: sized(8*mib, 4096), want: base[:1]},
	})
	v := func(n int64, block uint32) folder.Files {
		return folder.Files{"p.vhd": fixture.VHD{Size: n, BlockSize: block, UUID: idOf(2), Writes: base[:1]}}
	}
	var family []row
	for name, more := range map[string]folder.Files{
		"VHD, smaller": v(mib, 512<<10), "VHD, larger": v(64*mib, 2<<20), "VHD, other blocks": v(8*mib, 512<<10),
		"VHD, fixed": {"p.vhd": fixture.VHD{Size: 8 * mib, Type: 2, UUID: idOf(2), Writes: base[:1]}},
	} {
		family = append(family, row{name: name, file: childV(1, 2, "W2ru", `.\p.vhd`), more: more, want: base[:1]})
	}
	rows(t, "disk.vhd", family)
}
