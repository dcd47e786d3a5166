package ops_test

import (
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

func TestImageNames(t *testing.T) {
	w := newWorld(t)
	for name, want := range map[string]bool{
		"a.vhdx": true, "a.VHDX": true, "a.AvHdX": true, "a.vhd": true, "a.vhds": true, "x.y.vhd": true,
		"a": false, "vhdx": false, "a.vhdx.rct": false, "a.rct": false, "a.mrt": false, "a.vct": false, "a.vmrs": false,
		"a.txt": false, "a.vhdx~": false, "a.vhdx ": false,
	} {
		require.Equal(t, want, w.lib.IsImageName(name), name)
	}
}

func TestList(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/b.vhdx", parent)
	w.put("/vms/a.VHD", nil)
	w.put("/vms/notes.txt", nil)
	w.put("/vms/b.vhdx.rct", nil)
	w.host.Special("/vms/fifo.vhdx")
	w.host.Dir("/vms/sub")
	w.host.Dir("/vms/.vhdfs-state")
	before := len(w.host.Opened())
	list, err := w.lib.List(".")
	require.NoError(t, err)
	require.Equal(t, []ops.DirEntry{
		{Name: "a.VHD", IsRegular: true}, {Name: "b.vhdx", IsRegular: true}, {Name: "sub", IsDir: true},
	}, list)
	require.Len(t, w.host.Opened(), before)
}

func TestInspect(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/a.vhdx", fakeImage{ID: guid(3), Size: 1024})
	w.image("/vms/odd.vhd", fakeImage{ID: guid(4)})
	w.image("/vms/broken.vhdx", fakeImage{Broken: "header 2"})
	w.put("/vms/text.vhdx", []byte("some text"))
	w.put("/vms/empty.vhdx", nil)
	w.host.Special("/vms/fifo.vhdx")
	w.host.Freeze()
	look := func(name string) *ops.Found {
		found, err := w.lib.Inspect(w.lib.Top(name))
		require.NoError(t, err)
		return found
	}
	a := look("a.vhdx")
	require.NoError(t, a.Err)
	require.EqualValues(t, 1024, a.Size)
	require.Equal(t, "fakex", a.Format.Name)
	require.Equal(t, a.Ref, a.Leaf)
	require.Empty(t, a.Info.Anomalies)
	require.Equal(t, "image.extension", look("odd.vhd").Info.Anomalies[0].Name)
	require.ErrorIs(t, look("broken.vhdx").Err, ops.ErrCorrupt)
	require.Equal(t, "fakex", look("broken.vhdx").Format.Name)
	for _, name := range []string{"text.vhdx", "empty.vhdx"} {
		require.Nil(t, look(name).Format)
		require.Equal(t, ops.StatusFormatUnknown, ops.StatusOf(look(name).Err))
	}
	_, err := w.lib.Inspect(w.lib.Top("gone.vhdx"))
	require.ErrorContains(t, err, "no such file")
	_, err = w.lib.Inspect(w.lib.Top("fifo.vhdx"))
	require.ErrorIs(t, err, ops.ErrForbidden)
	require.Zero(t, w.host.Refused())
}

// What was looked at is opened again only after a change.
func TestInspectRemembers(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/a.vhdx", fakeImage{ID: guid(3)})
	opens := func(name string) int {
		before := len(w.host.Opened())
		found, err := w.lib.Inspect(w.lib.Top(name))
		require.NoError(t, err)
		require.Equal(t, name, found.Ref.Name)
		return len(w.host.Opened()) - before
	}
	require.Equal(t, 1, opens("a.vhdx"))
	require.Equal(t, 0, opens("a.vhdx"))
	require.NoError(t, w.dirs["/vms"].Rename("a.vhdx", "b.vhdx"))
	require.Equal(t, 0, opens("b.vhdx"), "a new name is not a change")
	require.NoError(t, w.dirs["/vms"].Rename("b.vhdx", "b.vhd"))
	require.Equal(t, 1, opens("b.vhd"), "a new extension is")

	f, err := w.dirs["/vms"].Open("b.vhd", ops.Write)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0}, fakeData)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, 1, opens("b.vhd"))
}

// A failure of the host is not remembered.
func TestInspectForgetsHostErrors(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/a.vhdx", fakeImage{ID: guid(3)})
	w.host.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpRead {
			return fmt.Errorf("cable")
		}
		return nil
	})
	found, err := w.lib.Inspect(w.lib.Top("a.vhdx"))
	require.NoError(t, err)
	require.ErrorContains(t, found.Err, "cable")
	w.host.SetFault(nil)
	found, err = w.lib.Inspect(w.lib.Top("a.vhdx"))
	require.NoError(t, err)
	require.NoError(t, found.Err)
}

// An image that is open for writing is asked, not its file.
func TestInspectOfWriter(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/a.vhdx", fakeImage{ID: guid(3)})
	h := w.open("a.vhdx", ops.Write)
	_, err := h.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	reader := w.open("a.vhdx", ops.Read)
	info, before := reader.Info(), len(w.host.Opened())
	look := func() int {
		found, err := w.lib.Inspect(w.lib.Top("a.vhdx"))
		require.NoError(t, err)
		require.NoError(t, found.Err)
		require.Equal(t, info, found.Info)
		return len(w.host.Opened()) - before
	}
	require.Zero(t, look())
	require.NoError(t, h.Close())
	require.Zero(t, look(), "a reader keeps the session of the writer open")
	require.NoError(t, reader.Close())
	require.Equal(t, 1, look())
}

func TestChildrenAndGraph(t *testing.T) {
	w := newWorld(t)
	child := func(path string, id, parent int, stored string) {
		w.image(path, fakeImage{ID: guid(id), Parent: []string{guid(parent)}, Paths: []fakePath{{ops.PathRelative, stored}}})
	}
	w.image("/vms/base.vhdx", fakeImage{ID: guid(1)})
	child("/vms/a.avhdx", 2, 1, "base.vhdx")
	child("/vms/sub/b.avhdx", 3, 1, `C:\base.vhdx`)
	child("/search/c.avhdx", 4, 1, `C:\base.vhdx`)
	child("/vms/a2.avhdx", 5, 2, "a.avhdx")
	child("/vms/orphan.avhdx", 6, 77, "gone.vhdx")
	child("/vms/stale.avhdx", 7, 78, "base.vhdx")
	w.image("/vms/twin.vhdx", fakeImage{ID: guid(6)})
	w.put("/vms/junk.vhdx", []byte("junk"))
	require.NoError(t, w.host.Link("/vms/base.vhdx", "/vms/sub/link.vhdx"))
	w.host.Symlink(".", "/vms/loop")

	kids, err := w.lib.Children(w.lib.Top("base.vhdx"))
	require.NoError(t, err)
	require.Equal(t, []string{"/vms/a.avhdx", "/vms/sub/b.avhdx", "/search/c.avhdx"}, paths(kids))
	kids, err = w.lib.Children(w.lib.Top("junk.vhdx"))
	require.NoError(t, err)
	require.Empty(t, kids)

	g, err := w.lib.Graph()
	require.NoError(t, err)
	nodes := map[string]ops.GraphNode{}
	for _, n := range g.Images {
		nodes[n.Ref.Path()] = n
	}
	require.Len(t, nodes, 9)
	require.Equal(t, []string{"/vms/a.avhdx", "/vms/sub/b.avhdx", "/search/c.avhdx"}, nodes["/vms/base.vhdx"].Children)
	require.Equal(t, nodes["/vms/base.vhdx"].Children, nodes["/vms/sub/link.vhdx"].Children)
	require.Empty(t, nodes["/vms/base.vhdx"].SameID, "a hard link is the same file")
	require.Equal(t, "/vms/base.vhdx", nodes["/vms/a.avhdx"].Parent)
	require.Equal(t, ops.RuleRelative, nodes["/vms/a.avhdx"].Rule)
	require.Equal(t, ops.RuleSuffix, nodes["/vms/sub/b.avhdx"].Rule)
	require.ErrorIs(t, nodes["/vms/orphan.avhdx"].Err, ops.ErrParentMissing)
	require.ErrorIs(t, nodes["/vms/stale.avhdx"].Err, ops.ErrParentMismatch)
	require.Equal(t, []string{"/vms/twin.vhdx"}, nodes["/vms/orphan.avhdx"].SameID)
	require.ErrorIs(t, nodes["/vms/junk.vhdx"].Found.Err, ops.ErrCorrupt)
	require.Equal(t, 3, nodes["/vms/a2.avhdx"].Depth)
	require.NoError(t, nodes["/vms/a2.avhdx"].ChainErr)
}

// A link may hold and lead to one that does not, or round in a circle; a parent
// outside the folders that are scanned is asked for its own.
func TestGraphFollowsChains(t *testing.T) {
	w := newWorld(t)
	child := func(path string, id, parent int, stored string) {
		w.image(path, fakeImage{ID: guid(id), Parent: []string{guid(parent)}, Paths: []fakePath{{ops.PathRelative, stored}}})
	}
	child("/vms/orphan.avhdx", 2, 77, "gone.vhdx")
	child("/vms/below.avhdx", 3, 2, "orphan.avhdx")
	child("/vms/one.avhdx", 4, 5, "two.avhdx")
	child("/vms/two.avhdx", 5, 4, "one.avhdx")
	child("/vms/into.avhdx", 6, 5, "two.avhdx")
	child("/allow/far.avhdx", 8, 78, "gone.vhdx")
	w.image("/vms/far.avhdx", fakeImage{ID: guid(9), Parent: []string{guid(8)}, Paths: []fakePath{{ops.PathAbsolute, "/allow/far.avhdx"}}})
	w.put("/vms/s.vhds", []byte("set:below.avhdx"))
	g, err := w.lib.Graph()
	require.NoError(t, err)
	for _, n := range g.Images {
		want, depth := error(ops.ErrParentMissing), 2
		switch n.Ref.Name {
		case "orphan.avhdx":
			depth = 1
		case "one.avhdx", "two.avhdx":
			want = ops.ErrCycle
		case "into.avhdx":
			want, depth = ops.ErrCycle, 3
		}
		require.ErrorIs(t, n.ChainErr, want, n.Ref.Name)
		require.Equal(t, depth, n.Depth, n.Ref.Name)
		require.Equal(t, n.Ref.Name == "orphan.avhdx", n.Err != nil, n.Ref.Name)
	}
}

// Where a parent is not found, the files that may be it are named, and none that
// cannot be.
func TestLikelyParents(t *testing.T) {
	w := newWorld(t)
	im := func(id int, disk string, parents ...string) fakeImage {
		return fakeImage{ID: guid(id), Disk: disk, Parent: parents}
	}
	own := recorded(`C:\vms\Base.vhdx`)
	own.Disk = guid(50)
	w.image("/vms/c.avhdx", own)
	w.image("/vms/written.vhdx", im(2, guid(50)))
	w.image("/search/BASE.vhdx", im(3, guid(60)))
	w.image("/vms/base.vhdx", im(4, guid(50)))
	w.image("/vms/brother.avhdx", im(5, guid(50), guid(1)))
	w.image("/vms/child.avhdx", im(6, guid(50), guid(100)))
	w.image("/vms/stranger.vhdx", im(7, guid(70)))
	big := im(8, guid(50))
	big.Sector = 4096
	w.image("/vms/big.vhdx", big)
	links, err := w.lib.ChainOf(w.lib.Top("c.avhdx"))
	require.NoError(t, err)
	require.ErrorIs(t, links[0].Err, ops.ErrParentMismatch)
	got := map[string][]string{}
	for _, y := range links[0].Likely {
		got[y.Found.Ref.Path()] = y.Why
	}
	require.Equal(t, map[string][]string{
		"/vms/base.vhdx":    {"the same VirtualDiskId", "a recorded name", "the same size"},
		"/vms/written.vhdx": {"the same VirtualDiskId", "the same size"},
		"/search/BASE.vhdx": {"a recorded name", "the same size"},
	}, got)
	require.Equal(t, "/vms/base.vhdx", links[0].Likely[0].Found.Ref.Path())
	require.NoError(t, w.ask("set-parent", "c.avhdx", "base.vhdx ignoreidmismatch=true").Err)
	links, err = w.lib.ChainOf(w.lib.Top("c.avhdx"))
	require.NoError(t, err)
	require.Empty(t, links[0].Likely)
	require.Equal(t, undoFile, links[0].Found.UndoRecord())
	require.Empty(t, links[1].Found.UndoRecord())
}

func paths(refs []ops.Ref) []string {
	var list []string
	for _, r := range refs {
		list = append(list, r.Path())
	}
	return list
}

// Links are read once: after that a scan opens nothing that did not change.
func TestScanOpensOnce(t *testing.T) {
	w := newWorld(t)
	for i := range 300 {
		w.image("/vms/d"+strconv.Itoa(i%7)+"/"+strconv.Itoa(i)+".vhdx", fakeImage{ID: guid(i + 10)})
	}
	w.image("/vms/one.vhdx", fakeImage{ID: guid(1)})
	opens := func() int {
		before := len(w.host.Opened())
		_, err := w.lib.Children(w.lib.Top("one.vhdx"))
		require.NoError(t, err)
		return len(w.host.Opened()) - before
	}
	require.Equal(t, 301, opens())
	require.Equal(t, 0, opens())
	w.image("/vms/new.vhdx", recorded("one.vhdx"))
	require.Equal(t, 1+1, opens(), "the new one, and its parent as a candidate by path")
}

// Many images are looked at by several goroutines, and stand in the same order; a name
// that goes away meanwhile, and one that cannot be read, are left out.
func TestScanOfManyImages(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1)})
	var want []string
	for i := range 300 {
		name := fmt.Sprintf("%c/%03d.avhdx", 'a'+i%3, i)
		im := recorded(`..\p.vhdx`)
		im.ID = guid(i + 2)
		w.image("/vms/"+name, im)
		want = append(want, "/vms/"+name)
	}
	slices.Sort(want)
	for range 2 { // cold, then warm
		list, err := w.lib.Children(w.lib.Top("p.vhdx"))
		require.NoError(t, err)
		var got []string
		for _, r := range list {
			got = append(got, r.Path())
		}
		require.Equal(t, want, got)
	}
}

// What people are shown of children rests on one scan for a while, and sees what happens
// to folders and what operations change at once.
func TestChildrenShown(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1)})
	w.image("/vms/q.vhdx", fakeImage{ID: guid(1)})
	for i := range 40 {
		w.image(fmt.Sprintf("/vms/sub/%02d.vhdx", i), fakeImage{ID: guid(50 + i)})
	}
	w.image("/vms/a.avhdx", recorded(`.\p.vhdx`))
	shown := func(name string) (list []string) {
		t.Helper()
		exact, err := w.lib.Children(w.lib.Top(name))
		require.NoError(t, err)
		got, err := w.lib.ChildrenShown(w.lib.Top(name))
		require.NoError(t, err)
		require.Equal(t, exact, got)
		for _, r := range got {
			list = append(list, r.Path())
		}
		return list
	}
	_, err := w.lib.ChildrenShown(w.lib.Top("p.vhdx"))
	require.NoError(t, err)
	asked := w.asked("/vms")
	for _, name := range []string{"p.vhdx", "q.vhdx", "a.avhdx", "sub/07.vhdx"} {
		_, err = w.lib.ChildrenShown(w.lib.Top(name))
		require.NoError(t, err)
	}
	require.Less(t, len(asked()), 40, "four questions, and no new scan")
	w.host.SetFault(nil)

	top := w.dirs["/vms"]
	require.Equal(t, []string{"/vms/a.avhdx"}, shown("p.vhdx"))
	im := recorded(`.\p.vhdx`)
	im.ID = guid(101)
	w.image("/vms/b.avhdx", im)
	require.Equal(t, []string{"/vms/a.avhdx", "/vms/b.avhdx"}, shown("p.vhdx"), "a new file")
	require.NoError(t, top.Rename("a.avhdx", "c.avhdx"))
	require.Equal(t, []string{"/vms/b.avhdx", "/vms/c.avhdx"}, shown("p.vhdx"), "another name")
	require.NoError(t, top.Remove("b.avhdx"))
	require.Equal(t, []string{"/vms/c.avhdx"}, shown("p.vhdx"), "a file that is gone")
	require.NoError(t, top.Rename("c.avhdx", "sub/c.avhdx"))
	require.Empty(t, shown("p.vhdx"), "a child that does not find its parent any more")
	require.NoError(t, top.Rename("sub/c.avhdx", "c.avhdx"))
	for _, name := range []string{"q.vhdx", "p.vhdx", "q.vhdx"} { // the first time makes a folder for the undo record
		require.NoError(t, w.ask("set-parent", "c.avhdx", name).Err)
		require.Equal(t, []string{"/vms/c.avhdx"}, shown(name), "an image that was changed in place")
	}
	require.Empty(t, shown("p.vhdx"))
}
