package ops_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// realOn is a world of the real formats with what a crash left.
func realOn(t *testing.T, h *sim.Host) *world {
	w := worldOn(t, h)
	o := w.options()
	o.Formats = []*ops.Format{vhd.Format, vhdx.Format}
	w.lib = ops.NewLibrary(o)
	return w
}

// windowsChild records its parent as Windows does, by paths of another machine.
func windowsChild(ext string, size int64, writes ...fixture.Write) []byte {
	if ext == "vhd" {
		return fixture.VHD{Size: size, Type: 4, UUID: fixture.MustGUID(guid(2)), Writes: writes,
			Parent: &fixture.VHDParent{UUID: fixture.MustGUID(guid(1)), Timestamp: 700_000_000, Name: `D:\vms\base.vhd`, Locators: []fixture.VHDLocator{
				{Code: "W2ru", Path: `..\vms\base.vhd`}, {Code: "W2ku", Path: `D:\vms\base.vhd`}}}}.Bytes()
	}
	return fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: fixture.MustGUID(guid(2)), Writes: writes,
		Parent: &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", "{" + guid(1) + "}"},
			{"relative_path", `..\vms\base.vhdx`},
			{"volume_path", `\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\vms\base.vhdx`},
			{"absolute_win32_path", `\\?\D:\vms\base.vhdx`},
		}}}.Bytes()
}

func root(ext string, size int64, id int) []byte {
	if ext == "vhd" {
		return fixture.VHD{Size: size, UUID: fixture.MustGUID(guid(id))}.Bytes()
	}
	return fixture.VHDX{Size: size, BlockSize: 1 << 20, DataWriteGUID: fixture.MustGUID(guid(id))}.Bytes()
}

func eachDisk(t *testing.T, f func(t *testing.T, ext string)) {
	for _, ext := range []string{"vhd", "vhdx"} {
		t.Run(ext, func(t *testing.T) { f(t, ext) })
	}
}

// Children of a child that gets another parent do not notice: its own id stays.
// The chain reads as it did when the parent's bytes are the same.
func TestRelinkingKeepsTheChildsID(t *testing.T) {
	eachDisk(t, func(t *testing.T, ext string) {
		w := realWorld(t)
		model := fixtureChain(w, ext, 3, 512)
		moved := "/vms/moved/root." + ext
		w.host.Dir("/vms/moved")
		require.NoError(t, w.dirs["/vms"].Rename("1."+ext, "moved/root."+ext))
		b, err := w.host.ReadFile(moved)
		require.NoError(t, err)
		id := w.found("2." + ext).Info.LinkID
		require.NoError(t, w.ask("set-parent", "2."+ext, "moved/root."+ext).Err)
		require.Equal(t, id, w.found("2."+ext).Info.LinkID)
		got, err := w.read("3." + ext)
		require.NoError(t, err)
		require.True(t, bytes.Equal(model, got))
		after, err := w.host.ReadFile(moved)
		require.NoError(t, err)
		require.True(t, bytes.Equal(b, after), "the parent is not touched")
		links, err := w.lib.ChainOf(w.lib.Top("3." + ext))
		require.NoError(t, err)
		require.Equal(t, ops.RuleRelative, links[2].Rule)
		require.Empty(t, links[1].Warnings)
		require.NoError(t, w.ask("check", "3."+ext, "run").Err)
	})
}

// What Windows wrote comes back as Windows wrote it.
func TestUndoPutsBackWhatWindowsWrote(t *testing.T) {
	eachDisk(t, func(t *testing.T, ext string) {
		w := realWorld(t)
		w.put("/vms/c."+ext, windowsChild(ext, 8<<20))
		w.put("/vms/sub/new."+ext, root(ext, 8<<20, 1))
		before := w.found("c." + ext).Info.Parent
		require.Len(t, before.Paths, 3)
		require.NoError(t, w.ask("set-parent", "c."+ext, "sub/new."+ext).Err)
		now := w.found("c." + ext).Info.Parent
		require.NotEqual(t, before, now)
		if ext == "vhd" {
			require.WithinDuration(t, w.found("sub/new.vhd").Stat.Mtime, now.Timestamp, time.Second)
		}
		require.NoError(t, w.ask("set-parent", "c."+ext, "undo=true").Err)
		require.Equal(t, before, w.found("c."+ext).Info.Parent)
	})
}

// Each setting of a real image, and what does not change with it.
func TestSetOfRealImages(t *testing.T) {
	w := realWorld(t)
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
	fixtureChain(w, "vhd", 2, 512)
	for _, request := range []string{"physical=4096", "id=" + guid(99)} {
		a := w.ask("set", "2.vhd", request)
		require.Equal(t, uint32(32770), a.ReturnValue())
		require.Equal(t, ops.StatusWrongType, ops.StatusOf(a.Err))
	}
}

// After a power cut at any moment a child of a real format has the old link or the
// new one, whole, and the new one can be undone.
func TestRelinkingCrashes(t *testing.T) {
	eachDisk(t, func(t *testing.T, ext string) {
		w := realWorld(t)
		name := "c." + ext
		w.put("/vms/"+name, windowsChild(ext, 3<<20, fixture.Write{Off: 1 << 20, Data: bytes.Repeat([]byte("c"), 512)}))
		w.put("/vms/new."+ext, root(ext, 3<<20, 7))
		link := w.found(name).Info.LinkID
		start := w.host.Clone()
		w.host.Record()
		require.NoError(t, w.ask("set-parent", name, "new."+ext+" ignoreidmismatch=true").Err)
		r := crash.Recording{Base: start, Events: w.host.Events()}
		counts := map[string]int{}
		err := r.Each(1, func(s *crash.State) error {
			h, err := s.Host()
			if err != nil {
				return err
			}
			c := realOn(t, h)
			id := c.found(name).Info.Parent.IDs[0].String()
			counts[id]++
			require.Equal(t, link, c.found(name).Info.LinkID)
			a := c.ask("set-parent", name, "undo=true")
			require.Equal(t, id == guid(7), a.Err == nil, "%v: %s", a.Err, s)
			require.Equal(t, guid(1), c.found(name).Info.Parent.IDs[0].String())
			return nil
		})
		require.NoError(t, err)
		require.Len(t, counts, 2, "%v", counts)
		require.NotZero(t, counts[guid(1)])
		require.NotZero(t, counts[guid(7)])
	})
}
