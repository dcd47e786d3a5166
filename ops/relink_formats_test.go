package ops_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/vhdx"
)

// changingWorld has the real formats that can do what is asked here.
func changingWorld(t *testing.T) *world {
	w := newWorld(t)
	o := w.options()
	o.Formats = []*ops.Format{vhdx.Format, fakeSet()}
	w.lib = ops.NewLibrary(o)
	return w
}

// windowsChild records its parent as Windows does, by paths of another machine.
func windowsChild(size int64, writes ...fixture.Write) []byte {
	return fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: fixture.MustGUID(guid(2)), Writes: writes,
		Parent: &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", "{" + guid(1) + "}"},
			{"relative_path", `..\vms\base.vhdx`},
			{"volume_path", `\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\vms\base.vhdx`},
			{"absolute_win32_path", `\\?\D:\vms\base.vhdx`},
		}}}.Bytes()
}

// Children of a child that gets another parent do not notice: its own id stays.
// The chain reads as it did when the parent's bytes are the same.
func TestRelinkingKeepsTheChildsID(t *testing.T) {
	w := changingWorld(t)
	model := fixtureChain(w, "vhdx", 3, 512)
	w.host.Dir("/vms/moved")
	require.NoError(t, w.dirs["/vms"].Rename("1.vhdx", "moved/root.vhdx"))
	b, err := w.host.ReadFile("/vms/moved/root.vhdx")
	require.NoError(t, err)
	h := w.open("moved/root.vhdx", ops.Read)
	require.NoError(t, h.Close())
	id := w.found("2.vhdx").Info.LinkID
	require.NoError(t, w.ask("set-parent", "2.vhdx", "moved/root.vhdx").Err)
	require.Equal(t, id, w.found("2.vhdx").Info.LinkID)
	got, err := w.read("3.vhdx")
	require.NoError(t, err)
	require.True(t, bytes.Equal(model, got))
	after, err := w.host.ReadFile("/vms/moved/root.vhdx")
	require.NoError(t, err)
	require.True(t, bytes.Equal(b, after), "the parent is not touched")
	links, err := w.lib.ChainOf(w.lib.Top("3.vhdx"))
	require.NoError(t, err)
	require.Equal(t, ops.RuleRelative, links[2].Rule)
	a := w.ask("check", "3.vhdx", "run")
	require.NoError(t, a.Err)
}

// What Windows wrote comes back as Windows wrote it.
func TestUndoPutsBackWhatWindowsWrote(t *testing.T) {
	w := changingWorld(t)
	w.put("/vms/c.avhdx", windowsChild(8<<20))
	w.put("/vms/sub/base.vhdx", fixture.VHDX{Size: 8 << 20, BlockSize: 1 << 20, DataWriteGUID: fixture.MustGUID(guid(1))}.Bytes())
	before := w.found("c.avhdx").Info.Parent
	require.Len(t, before.Paths, 3)
	require.NoError(t, w.ask("set-parent", "c.avhdx", "sub/base.vhdx").Err)
	require.Len(t, w.found("c.avhdx").Info.Parent.Paths, 2)
	require.NoError(t, w.ask("set-parent", "c.avhdx", "undo=true").Err)
	require.Equal(t, before, w.found("c.avhdx").Info.Parent)
}

// Each setting of a real image, and what does not change with it.
func TestSetOfRealImages(t *testing.T) {
	w := changingWorld(t)
	model := fixtureChain(w, "vhdx", 2, 512)
	for _, request := range []string{"physical=512", "id=" + guid(99), "physical=4096"} {
		before := w.found("1.vhdx").Info
		require.NoError(t, w.ask("set", "1.vhdx", request).Err)
		after := w.found("1.vhdx").Info
		require.Equal(t, before.LinkID, after.LinkID)
		require.NotEqual(t, []any{before.PhysicalSector, before.DiskID}, []any{after.PhysicalSector, after.DiskID}, request)
		got, err := w.read("2.vhdx")
		require.NoError(t, err)
		require.True(t, bytes.Equal(model, got))
		require.NoError(t, w.ask("check", "2.vhdx", "run").Err)
	}
}

// After a power cut at any moment a child of a real format has the old link or the
// new one, whole, and the new one can be undone.
func TestRelinkingCrashes(t *testing.T) {
	w := changingWorld(t)
	w.put("/vms/c.avhdx", windowsChild(3<<20, fixture.Write{Off: 1 << 20, Data: bytes.Repeat([]byte("c"), 512)}))
	w.put("/vms/new.vhdx", fixture.VHDX{Size: 3 << 20, BlockSize: 1 << 20, DataWriteGUID: fixture.MustGUID(guid(7))}.Bytes())
	start := w.host.Clone()
	w.host.Record()
	require.NoError(t, w.ask("set-parent", "c.avhdx", "new.vhdx ignoreidmismatch=true").Err)
	r := crash.Recording{Base: start, Events: w.host.Events()}
	counts := map[string]int{}
	err := r.Each(1, func(s *crash.State) error {
		h, err := s.Host()
		if err != nil {
			return err
		}
		c := worldOn(t, h)
		o := c.options()
		o.Formats = []*ops.Format{vhdx.Format}
		c.lib = ops.NewLibrary(o)
		id := c.found("c.avhdx").Info.Parent.IDs[0].String()
		counts[id]++
		require.Equal(t, guid(2), c.found("c.avhdx").Info.LinkID.String())
		a := c.ask("set-parent", "c.avhdx", "undo=true")
		require.Equal(t, id == guid(7), a.Err == nil, "%v: %s", a.Err, s)
		require.Equal(t, guid(1), c.found("c.avhdx").Info.Parent.IDs[0].String())
		return nil
	})
	require.NoError(t, err)
	require.Len(t, counts, 2, "%v", counts)
	require.NotZero(t, counts[guid(1)])
	require.NotZero(t, counts[guid(7)])
}
