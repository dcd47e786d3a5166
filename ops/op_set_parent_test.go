package ops_test

import (
	"bytes"
	"encoding/json"
	"errors"
	iofs "io/fs"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

const undoFile = "/vms/.vhdfs-state/c.avhdx.undo"

// stray is a world with a child whose parent is not where it is recorded, nor
// found by its id: it is in no folder that is searched.
func stray(t *testing.T) *world {
	w := newWorld(t)
	im := recorded(`..\gone\p.vhdx`)
	im.blocks = map[int64]byte{1: 'c'}
	w.image("/vms/sub/x.txt", fakeImage{})
	w.image("/vms/c.avhdx", im)
	return w
}

func evidence(a ops.Answer) *ops.Evidence {
	e, _ := field(a, "Evidence").(*ops.Evidence)
	return e
}

// The paths are those of where the parent is now, seen from the child; ids of the
// child itself stay.
func TestSetParentRecordsWhereTheParentIs(t *testing.T) {
	for _, tt := range []struct {
		request            string
		at                 string
		relative, absolute string
	}{
		{"sub/new.vhdx", "/vms/sub/new.vhdx", `.\sub\new.vhdx`, `\vms\sub\new.vhdx`},
		{"parent=new.vhdx", "/vms/new.vhdx", `.\new.vhdx`, `\vms\new.vhdx`},
		{"ParentPath=/vms/./new.vhdx", "/vms/new.vhdx", `.\new.vhdx`, `\vms\new.vhdx`},
		{`{"ParentPath":"/allow/new.vhdx","LeafPath":null}`, "/allow/new.vhdx", `..\allow\new.vhdx`, `\allow\new.vhdx`},
		{"parent=/allow/new.vhdx leaf=/vms/leaf.avhdx", "/allow/new.vhdx", `..\allow\new.vhdx`, `\allow\new.vhdx`},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := stray(t)
			leaf := recorded("c.avhdx")
			leaf.Parent, leaf.ID = []string{guid(100)}, guid(200)
			w.image("/vms/leaf.avhdx", leaf)
			w.image(tt.at, parent)
			a := w.ask("set-parent", "c.avhdx", tt.request)
			require.NoError(t, a.Err)
			require.Equal(t, "SetParentVirtualHardDisk", a.Operation)
			require.Nil(t, evidence(a), "nothing to decide")
			require.Nil(t, field(a, "Warnings"))
			im := w.stored("/vms/c.avhdx")
			require.Equal(t, guid(100), im.ID)
			require.Equal(t, []string{guid(1)}, im.Parent)
			require.Equal(t, []fakePath{{ops.PathRelative, tt.relative}, {ops.PathAbsolute, tt.absolute}}, im.Paths)
			b, err := w.read("leaf.avhdx")
			require.NoError(t, err)
			require.Equal(t, []byte{'c', 7}, []byte{b[512], b[3*512]})
			links, err := w.lib.ChainOf(w.lib.Top("leaf.avhdx"))
			require.NoError(t, err)
			require.Len(t, links, 3)
			require.Equal(t, ops.RuleRelative, links[2].Rule)
			require.Equal(t, undoFile, field(a, "UndoRecord"))
		})
	}
}

// What is wrong is named, nothing is written: no undo record either.
func TestSetParentRefuses(t *testing.T) {
	usage := ops.ErrUsage
	for _, tt := range []struct {
		name    string
		image   string
		request string
		class   error
		status  ops.StatusCode
		errno   string
		code    uint32
		text    string
	}{
		{"nothing said", "c.avhdx", "ignoreidmismatch=true", usage, 0, "EINVAL", 32773, "parent is required"},
		{"another id", "c.avhdx", "other.vhdx", ops.ErrParentMismatch, 0xC03A000E, "ESTALE", 32775,
			"/vms/other.vhdx has id 00000002-0000-4000-8000-000000000000, recorded in /vms/c.avhdx is 00000001-0000-4000-8000-000000000000"},
		{"no parent at all", "p.vhdx", "other.vhdx", errors.ErrUnsupported, 0xC03A001B, "EOPNOTSUPP", 32770, "/vms/p.vhdx: a dynamic image has no parent"},
		{"not there", "c.avhdx", "none.vhdx", iofs.ErrNotExist, 0, "ENOENT", 32779, `parent="none.vhdx"`},
		{"no image", "c.avhdx", "junk.vhdx", ops.ErrCorrupt, 0xC03A0004, "EUCLEAN", 32768, "no format knows this file"},
		{"damaged", "c.avhdx", "broken.vhdx", ops.ErrCorrupt, 0xC03A0008, "EUCLEAN", 32768, "fake: torn"},
		{"a set", "c.avhdx", "a.vhds", ops.ErrCorrupt, 0xC03A001B, "EUCLEAN", 32768, "a set where a disk is needed"},
		{"itself", "c.avhdx", "c.avhdx", ops.ErrCycle, 0xC03A0018, "ELOOP", 32787, "/vms/c.avhdx cannot be its own parent"},
		{"its child", "c.avhdx", "leaf.avhdx ignoreidmismatch=1", ops.ErrCycle, 0xC03A0018, "ELOOP", 32787, "/vms/leaf.avhdx reads through /vms/c.avhdx"},
		{"another family", "c.avhdx", "p.vhd ignoreidmismatch=1", usage, 0xC03A001B, "EINVAL", 32773, "a fakev image cannot be the parent of a fakex image"},
		{"other sectors", "c.avhdx", "big.vhdx ignoreidmismatch=1", usage, 0xC03A001D, "EINVAL", 32773, "/vms/big.vhdx has logical sectors of 4096 bytes, /vms/c.avhdx of 512"},
		{"a VHD of another size", "v.avhd", "w.vhd", usage, 0xC03A0017, "EINVAL", 32773, "the disk of /vms/w.vhd has 8192 bytes, that of /vms/v.avhd 4096"},
		{"no id", "c.avhdx", "noid.vhdx ignoreidmismatch=1", usage, 0xC03A000E, "EINVAL", 32773, "/vms/noid.vhdx has no id that could be recorded"},
		{"elsewhere", "c.avhdx", "/other/p.vhdx", ops.ErrForbidden, 0, "EPERM", 32769, `parent="/other/p.vhdx": outside of the folders`},
		{"upwards", "c.avhdx", "../other/p.vhdx", usage, 0, "EINVAL", 32773, `a path in a request has no ".."`},
		{"a symbolic link", "c.avhdx", "link.vhdx", ops.ErrForbidden, 0, "EPERM", 32769, "link.vhdx"},
		{"a leaf of another", "c.avhdx", "p.vhdx leaf=2.vhdx", usage, 0, "EINVAL", 32773, "/vms/2.vhdx does not read through /vms/c.avhdx"},
		{"no leaf", "c.avhdx", "p.vhdx leaf=none.vhdx", iofs.ErrNotExist, 0, "ENOENT", 32779, `leaf="none.vhdx"`},
		{"too long a chain", "c.avhdx", "256.vhdx ignoreidmismatch=1", ops.ErrCycle, 0xC03A0018, "ELOOP", 32787, "more than 256 images"},
		{"too long a chain below", "c.avhdx", "255.vhdx leaf=leaf.avhdx ignoreidmismatch=1", ops.ErrCycle, 0xC03A0018, "ELOOP", 32787, "chain of /vms/leaf.avhdx: more than 256 images"},
		{"unknown word", "c.avhdx", "p.vhdx force=true", usage, 0, "EINVAL", 32773, `unknown argument "force"`},
		{"two parents", "c.avhdx", "p.vhdx parent=p.vhdx", usage, 0, "EINVAL", 32773, `argument "parent" is given twice`},
		{"undo beside a parent", "c.avhdx", "p.vhdx undo=true", usage, 0, "EINVAL", 32773, "takes no parent"},
		{"nothing to undo", "c.avhdx", "undo=true", usage, 0, "EINVAL", 32773, undoFile + " holds no change of the parent"},
		{"a child that says no", "ro.avhdx", "p.vhdx", ops.ErrReadOnly, 0, "EROFS", 32768, "/vms/ro.avhdx: its footer differs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := stray(t)
			w.refused(tt.name)
			before := w.host.Changes()
			a := w.ask("set-parent", tt.image, tt.request)
			require.ErrorIs(t, a.Err, tt.class)
			require.Equal(t, tt.errno, ops.Errno(a.Err), a.Sentence())
			require.Equal(t, tt.code, a.ReturnValue())
			require.Equal(t, tt.status, ops.StatusOf(a.Err))
			require.ErrorContains(t, a.Err, tt.text)
			require.Equal(t, before, w.host.Changes(), "nothing is written")
		})
	}
}

// refused stores what the requests of TestSetParentRefuses name.
func (w *world) refused(name string) {
	if strings.Contains(name, "long") || name == "a leaf of another" {
		w.line(256)
	}
	ro, noID := recorded("none"), fakeImage{ID: "00000000-0000-0000-0000-000000000000"}
	ro.ReadOnly = "its footer differs"
	leaf := fakeImage{ID: guid(200), Parent: []string{guid(100)}, Paths: []fakePath{{ops.PathRelative, "c.avhdx"}}}
	for path, im := range map[string]fakeImage{
		"/vms/p.vhdx": parent, "/vms/other.vhdx": {ID: guid(2)}, "/vms/broken.vhdx": {ID: guid(3), Broken: "torn"},
		"/vms/leaf.avhdx": leaf, "/vms/p.vhd": {Magic: "fakev", ID: guid(1)}, "/vms/big.vhdx": {ID: guid(4), Sector: 4096},
		"/vms/v.avhd": {Magic: "fakev", ID: guid(5), Parent: []string{guid(6)}, Size: 4096}, "/vms/w.vhd": {Magic: "fakev", ID: guid(6), Size: 8192},
		"/vms/noid.vhdx": noID, "/other/p.vhdx": parent, "/vms/ro.avhdx": ro,
	} {
		if name != "another id" || path != "/vms/p.vhdx" {
			w.image(path, im)
		}
	}
	w.put("/vms/junk.vhdx", bytes.Repeat([]byte("junk"), 5000))
	w.put("/vms/a.vhds", []byte("set:p.vhdx"))
	w.host.Symlink("p.vhdx", "/vms/link.vhdx")
}

// With the mismatch ignored the child gets the parent's id, and the answer says
// what spoke for and against it.
func TestSetParentIgnoresAMismatch(t *testing.T) {
	w := stray(t)
	w.image("/vms/new.vhdx", fakeImage{ID: guid(7), blocks: map[int64]byte{1: 'c', 3: 9}})
	a := w.ask("set-parent", "c.avhdx", "new.vhdx")
	require.ErrorIs(t, a.Err, ops.ErrParentMismatch)
	refused := evidence(a)
	require.False(t, refused.IdentifierMatches)
	require.Equal(t, &ops.Samples{Places: 1, Same: 1}, refused.WithChild)
	require.Contains(t, strings.Join(refused.For, "\n"), "both disks have the same size")
	require.Contains(t, strings.Join(refused.For, "\n"), "of 1 places that the image holds, the file has the same bytes at 1")
	require.Contains(t, strings.Join(refused.Against, "\n"), "the id is "+guid(7)+", recorded is "+guid(1))

	a = w.ask("set-parent", "c.avhdx", "new.vhdx ignoreidmismatch=true")
	require.NoError(t, a.Err)
	require.Equal(t, refused, evidence(a))
	require.Equal(t, []string{guid(7)}, w.stored("/vms/c.avhdx").Parent)
	b, err := w.read("c.avhdx")
	require.NoError(t, err)
	require.Equal(t, []byte{'c', 9}, []byte{b[512], b[3*512]})
}

// Where the present parent is there, the new one is compared with it: where they
// differ, forcing it would tear the disk.
func TestEvidenceOfThePresentParent(t *testing.T) {
	for _, tt := range []struct {
		name string
		new  fakeImage
		want *ops.Samples
		text string
	}{
		{"a copy", fakeImage{ID: guid(7), Size: 8192, blocks: map[int64]byte{3: 7}}, &ops.Samples{Places: 2, Same: 2}, "it has the bytes of the present parent /vms/p.vhdx at all of 2 places"},
		{"written since", fakeImage{ID: guid(7), Size: 8192, blocks: map[int64]byte{3: 7, 13: 1}}, &ops.Samples{Places: 3, Same: 2, Zeros: 1, Differ: new(int64(13 * 512))}, "it differs from the present parent /vms/p.vhdx at byte 6656 of the disk"},
		{"another disk", fakeImage{ID: guid(7), Size: 16384, blocks: map[int64]byte{3: 8}}, &ops.Samples{Places: 2, Differ: new(int64(3 * 512))}, "the disk has 16384 bytes, the image's 8192"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			c := recorded("p.vhdx")
			c.Size = 8192
			w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Size: 8192, blocks: map[int64]byte{3: 7}})
			w.image("/vms/c.avhdx", c)
			w.image("/vms/new.vhdx", tt.new)
			e := evidence(w.ask("set-parent", "c.avhdx", "new.vhdx"))
			require.Equal(t, tt.want, e.WithPresentParent)
			require.Contains(t, strings.Join(append(e.For, e.Against...), "\n"), tt.text)
		})
	}
}

// A dry request shows what would be recorded, with the evidence, and no more.
func TestSetParentDry(t *testing.T) {
	w := stray(t)
	w.image("/vms/new.vhdx", parent)
	before := w.host.Changes()
	a := w.ask("set-parent", "c.avhdx", "new.vhdx dryrun=true")
	require.NoError(t, a.Err)
	require.Equal(t, before, w.host.Changes())
	require.NotNil(t, evidence(a))
	require.Equal(t, []string{"/vms/c.avhdx", undoFile}, field(a, "Changes"))
	j, err := json.Marshal(field(a, "Recorded"))
	require.NoError(t, err)
	require.JSONEq(t, `{"Identifiers":["`+guid(1)+`"],"Paths":[{"Kind":"relative","Path":"./new.vhdx"},{"Kind":"absolute","Path":"/vms/new.vhdx"}]}`, string(j))
	a = w.ask("set-parent", "c.avhdx", "c.avhdx dryrun=true")
	require.ErrorIs(t, a.Err, ops.ErrCycle)
}

// A parent that somebody writes will have another id: it is not recorded.
func TestSetParentOfAParentThatIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := stray(t)
		w.image("/allow/new.vhdx", parent)
		h, err := w.lib.Open(ops.Ref{Dir: w.dirs["/allow"], Name: "new.vhdx"}, ops.Write)
		require.NoError(t, err)
		a := w.ask("set-parent", "c.avhdx", "/allow/new.vhdx")
		require.ErrorIs(t, a.Err, ops.ErrBusy)
		require.ErrorContains(t, a.Err, "/allow/new.vhdx is open for writing")
		require.NoError(t, h.Close())
		require.NoError(t, w.ask("set-parent", "c.avhdx", "/allow/new.vhdx").Err)
	})
}

// A parent whose own parent is missing can be recorded: a chain is mended in any
// order.
func TestSetParentBelowABrokenLink(t *testing.T) {
	w := stray(t)
	middle := recorded("nowhere.vhdx")
	middle.ID, middle.Parent = guid(1), []string{guid(70)}
	w.image("/allow/m.avhdx", middle)
	a := w.ask("set-parent", "c.avhdx", "/allow/m.avhdx")
	require.NoError(t, a.Err)
	require.Contains(t, field(a, "Warnings").([]string)[0], "the parent's own chain is broken")
}

// The parent of a set's active disk is set by way of the set.
func TestSetParentOfASet(t *testing.T) {
	w := stray(t)
	w.put("/vms/s.vhds", []byte("set:c.avhdx"))
	w.image("/allow/new.vhdx", parent)
	a := w.ask("set-parent", "c.avhdx", "/allow/new.vhdx")
	require.ErrorIs(t, a.Err, errors.ErrUnsupported)
	require.ErrorContains(t, a.Err, "belongs to the set /vms/s.vhds")
	require.NoError(t, w.ask("set-parent", "s.vhds", "/allow/new.vhdx").Err)
	require.Equal(t, `..\allow\new.vhdx`, w.stored("/vms/c.avhdx").Paths[0].Path)
}
