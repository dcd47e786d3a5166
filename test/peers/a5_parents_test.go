package peers

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/fixture"
	"vhdfs/test/hostile/folder"
)

var inParent = []fixture.Write{fill(0, 4096, 'p'), fill(size-512, 512, 'p')}

func parentX(n byte) fixture.VHDX {
	return fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: id(n), Writes: inParent}
}

func parentV(n byte) fixture.VHD { return fixture.VHD{Size: size, UUID: id(n), Writes: inParent} }

// Parents are found as Windows finds them, and where a folder was moved to
// Linux as people expect: peers look for the base name beside the child at best.
func TestA5_11ParentIsFound(t *testing.T) {
	for _, tt := range []struct {
		path string // recorded
		at   string // where the parent is; the child is vms/c
		rule ops.Rule
	}{
		{`.\p.EXT`, "vms/p.EXT", ops.RuleRelative},
		{`p.EXT`, "vms/p.EXT", ops.RuleRelative},
		{`..\base\p.EXT`, "base/p.EXT", ops.RuleRelative},
		{`../base/p.EXT`, "base/p.EXT", ops.RuleRelative},
		{`..\base/p.EXT`, "base/p.EXT", ops.RuleRelative},
		{`..\..\images\base\p.EXT`, "base/p.EXT", ops.RuleRelative},
		{`.\my disks (1)\a  b.EXT`, "vms/my disks (1)/a  b.EXT", ops.RuleRelative},
		{".\\\U0001f4be\u00fc.EXT", "vms/\U0001f4be\u00fc.EXT", ops.RuleRelative},
		{`..\gone\p.EXT`, "vms/p.EXT", ops.RuleName},
		{`C:\gone\p.EXT`, "vms/p.EXT", ops.RuleName},
		{`.\P.EXT`, "vms/p.EXT", ops.RuleFolded},
		{`..\BASE\P.EXT`, "Base/p.EXT", ops.RuleFolded},
		{".\\\u00dcBER.EXT", "vms/\u00fcber.EXT", ops.RuleFolded},
		{`C:\Hyper-V\Base\p.EXT`, "base/p.EXT", ops.RuleSuffix},
		{`D:\base\p.EXT`, "base/p.EXT", ops.RuleSuffix},
		{`\\?\C:\x\y\base\p.EXT`, "base/p.EXT", ops.RuleSuffix},
		{`\\server\share\base\p.EXT`, "base/p.EXT", ops.RuleSuffix},
		{`\\?\UNC\server\share\base\p.EXT`, "share/base/p.EXT", ops.RuleSuffix},
		{`\\?\Volume{01234567-89ab-4cde-8f01-23456789abcd}\base\p.EXT`, "base/p.EXT", ops.RuleSuffix},
		{`/srv/other/base/p.EXT`, "base/p.EXT", ops.RuleSuffix},
		{`file:///srv/other/base/p.EXT`, "base/p.EXT", ops.RuleSuffix},
		{`file://./p.EXT`, "vms/p.EXT", ops.RuleRelative},
		{`file:///C:/x/base/a%20b.EXT`, "base/a b.EXT", ops.RuleSuffix},
		{`.\renamed-since.EXT`, "elsewhere/q.EXT", ops.RuleID},
	} {
		for _, ext := range []string{"vhdx", "vhd"} {
			t.Run(ext+" "+tt.path, func(t *testing.T) {
				folder.Watch(t)
				path, at := withExt(tt.path, ext), withExt(tt.at, ext)
				files := folder.Files{"vms/readme.txt": folder.Raw{}}
				if ext == "vhdx" {
					files[at] = parentX(1)
					files["vms/c.vhdx"] = fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(1, "absolute_win32_path", path)}
				} else {
					files[at] = parentV(1)
					files["vms/c.vhd"] = fixture.VHD{Size: size, Type: 4, UUID: id(2), Parent: &fixture.VHDParent{
						UUID: id(1), Locators: []fixture.VHDLocator{{Code: "W2ku", Path: path}},
					}}
				}
				dir := folder.Make(t, files)
				folder.Untouched(t, dir)
				l := folder.Open(t, dir)
				chain, err := l.ChainOf(l.Top("vms/c." + ext))
				require.NoError(t, err)
				require.NoError(t, chain[len(chain)-1].Err)
				require.Len(t, chain, 2)
				require.Equal(t, filepath.Join(dir, at), chain[1].Ref.Path())
				require.Equal(t, tt.rule, chain[1].Rule)
				same(t, model(size, inParent), content(t, dir, "vms/c."+ext))
			})
		}
	}
}

func withExt(s, ext string) string {
	if n := len(s) - len("EXT"); n > 0 && s[n:] == "EXT" {
		return s[:n] + ext
	}
	return s
}

// Two copies of a parent: none is taken by id, both are named. By path the
// recorded one is.
func TestA5_11TwoWithOneID(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{
		"vm1/p.vhdx": parentX(1), "vm2/p.vhdx": parentX(1),
		"lost/c.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(1, "relative_path", `.\gone.vhdx`)},
		"vm2/c.vhdx":  fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(1, "relative_path", `.\p.vhdx`)},
	})
	l := folder.Open(t, dir)
	_, err := l.Open(l.Top("lost/c.vhdx"), ops.Read)
	require.ErrorIs(t, err, ops.ErrParentMissing)
	require.ErrorContains(t, err, filepath.Join(dir, "vm1/p.vhdx"))
	require.ErrorContains(t, err, filepath.Join(dir, "vm2/p.vhdx"))
	chain, err := l.ChainOf(l.Top("vm2/c.vhdx"))
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "vm2/p.vhdx"), chain[1].Ref.Path())
}

// Two names of one file are one candidate.
func TestA5_11OneFileByTwoNames(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{
		"a/p.vhdx": parentX(1), "b/x.txt": folder.Raw{},
		"c.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(1, "relative_path", `.\gone.vhdx`)},
	})
	require.NoError(t, os.Link(filepath.Join(dir, "a/p.vhdx"), filepath.Join(dir, "b/q.vhdx")))
	same(t, model(size, inParent), content(t, dir, "c.vhdx"))
}

// The process's own directory has nothing to do with relative paths.
func TestA5_11RelativeToTheChild(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{
		"vms/c.vhd": fixture.VHD{Size: size, Type: 4, UUID: id(2), Parent: linkedV(1, "p.vhd")},
		"vms/p.vhd": parentV(1), "p.vhd": parentV(3),
	})
	t.Chdir(dir)
	same(t, model(size, inParent), content(t, dir, "vms/c.vhd"))
}

// Folders that the operator named: parents there are found by path and by id in
// one for searching, and by path alone in one that is allowed.
func TestA5_11OtherFolders(t *testing.T) {
	for _, tt := range []struct {
		name, path string
		search     bool
		found      bool
	}{
		{"search, by id", `.\gone.vhdx`, true, true},
		{"search, by path", `..\other\p.vhdx`, true, true},
		{"allowed, by path", `..\other\p.vhdx`, false, true},
		{"allowed, by id", `.\gone.vhdx`, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			folder.Watch(t)
			dir := folder.Make(t, folder.Files{"c.vhdx": fixture.VHDX{Size: size, BlockSize: 1 << 20, Parent: linked(1, "relative_path", tt.path)}})
			other := filepath.Join(filepath.Dir(dir), "other")
			require.NoError(t, os.Mkdir(other, 0o755))
			folder.Add(t, other, folder.Files{"p.vhdx": parentX(1)})
			top, err := host.OpenDir(dir)
			require.NoError(t, err)
			more, err := host.OpenDir(other)
			require.NoError(t, err)
			o := ops.LibraryOptions{Top: top, Formats: folder.Formats()}
			if tt.search {
				o.Search = []ops.Dir{more}
			} else {
				o.Allow = []ops.Dir{more}
			}
			l := ops.NewLibrary(o)
			h, err := l.Open(l.Top("c.vhdx"), ops.Read)
			if !tt.found {
				require.ErrorIs(t, err, ops.ErrParentMissing)
			} else {
				require.NoError(t, err)
				p := make([]byte, 4096)
				_, err = h.ReadAt(p, 0)
				require.NoError(t, err)
				same(t, inParent[0].Data, p)
				require.NoError(t, h.Close())
			}
			require.NoError(t, l.Close())
			require.NoError(t, more.Close())
			require.NoError(t, top.Close())
		})
	}
}
