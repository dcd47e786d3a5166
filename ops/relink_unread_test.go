package ops_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/view"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
)

// damage overwrites bytes of the parent locator of a VHDX, from at on.
func damage(at int64, b []byte) func() []byte {
	return func() []byte {
		file := windowsChild("vhdx", 3<<20, ofChild)
		i := bytes.Index(file, locatorItem())
		copy(file[i+int(at):], b)
		return file
	}
}

var ofChild = fixture.Write{Off: 1 << 20, Data: bytes.Repeat([]byte("c"), 512)}

// locatorItem is how the item begins: its type, and 4 entries.
func locatorItem() []byte {
	id := make([]byte, 20)
	fixture.PutGUID(id, fixture.MustGUID("b04aefb7-d19e-4a81-b789-25b8e9445913"))
	id[18] = 4
	return id
}

func text16(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return b
}

// unreadable are children of new.vhdx that do not say so any more.
var unreadable = []struct {
	name  string
	file  func() []byte
	says  string
	knows bool // the id is left
}{
	{"type", damage(0, bytes.Repeat([]byte{0xee}, 16)), "type eeeeeeee-eeee-eeee-eeee-eeeeeeeeeeee is not known", false},
	{"table", damage(18, []byte{0xff, 0xff}), "parent locator: 65535 entries in ", false},
	{"key out of range", damage(20, []byte{0, 0, 0, 0x80}), "parent locator entry 0: key lies outside", false},
	{"value out of range", damage(20+12+4, []byte{0, 0, 0, 0x80}), "parent locator entry 1: value lies outside", true},
	{"UTF-16", damage(20+4*12, []byte{0, 0xd8}), "parent locator entry 0: key is not UTF-16", false},
	{"no linkage", damage(20+4*12, text16("q")), "parent locator: no parent_linkage", false},
	{"linkage no id", damage(20+4*12+28, text16("(")), "is not a GUID", false},
}

// Nobody reads through a record that cannot be read, and everybody says why.
// set-parent takes no parent unasked, and writes nothing until it is; then the chain
// reads again.
func TestUnreadableLinks(t *testing.T) {
	for _, tt := range unreadable {
		t.Run(tt.name, func(t *testing.T) {
			w := realWorld(t)
			w.put("/vms/c.vhdx", tt.file())
			w.put("/vms/new.vhdx", root("vhdx", 3<<20, 1))
			before, changes := w.file("/vms/c.vhdx"), w.host.Changes()

			_, err := w.read("c.vhdx")
			require.Equal(t, "EUCLEAN", ops.Errno(err))
			require.ErrorContains(t, err, tt.says)
			require.Contains(t, ops.Sentence(err), "set-parent records it again")
			_, err = w.lib.Open(w.lib.Top("c.vhdx"), ops.Write)
			require.ErrorContains(t, err, tt.says)
			w.namesUnread(tt.says)
			if !tt.knows {
				a := w.ask("set-parent", "c.vhdx", "new.vhdx")
				require.Equal(t, "ESTALE", ops.Errno(a.Err))
				require.ErrorContains(t, a.Err, "cannot be told: vhdx: parent locator")
				e := evidence(a)
				require.Empty(t, e.StoredIdentifiers)
				require.False(t, e.IdentifierMatches)
				require.Contains(t, e.Against[0], "no id is recorded")
			}
			require.NoError(t, w.ask("set-parent", "c.vhdx", "new.vhdx ignoreidmismatch=true dryrun=true").Err)
			require.ErrorIs(t, w.ask("set-parent", "c.vhdx", "undo=true").Err, ops.ErrUsage)
			require.Error(t, w.ask("resize", "c.vhdx", "4M").Err)
			require.Error(t, w.ask("merge", "c.vhdx", "1").Err)
			require.Equal(t, changes, w.host.Changes(), "nothing is written")

			w.mend(tt.knows, before)
			a := w.ask("set-parent", "c.vhdx", "undo=true")
			require.ErrorIs(t, a.Err, ops.ErrUsage)
			require.ErrorContains(t, a.Err, "its bytes are in /vms/.vhdfs-state/c.vhdx.undo")
			require.NoError(t, w.found("c.vhdx").Info.Parent.Err)
		})
	}
}

// file is all of a file of the host.
func (w *world) file(path string) []byte {
	b, err := w.host.ReadFile(path)
	require.NoError(w, err)
	return b
}

// namesUnread asks that chain.json, graph.json and check name what is wrong, once.
func (w *world) namesUnread(says string) {
	w.Helper()
	links, err := w.lib.ChainOf(w.lib.Top("c.vhdx"))
	require.NoError(w, err)
	link := view.NewChain(links).Images[0].Parent
	require.Equal(w, "EUCLEAN", link.Errno)
	require.Contains(w, link.Error, says)
	require.False(w, link.Holds)
	g, err := w.lib.Graph()
	require.NoError(w, err)
	require.Equal(w, []string{"/vms/c.vhdx"}, view.NewGraph(g).UnreadableLinks)
	a := w.ask("check", "c.vhdx", "run")
	require.Equal(w, "EUCLEAN", ops.Errno(a.Err))
	found := field(a, "Images").([]ops.Report)[0].Anomalies
	require.Len(w, found, 1)
	require.Equal(w, "vhdx.locator.unreadable", found[0].Name)
	require.Contains(w, found[0].Text, says)
}

// mend records new.vhdx as the parent of c.vhdx.
func (w *world) mend(knows bool, before []byte) {
	w.Helper()
	request := "new.vhdx ignoreidmismatch=true"
	if knows {
		request = "new.vhdx"
	}
	a := w.ask("set-parent", "c.vhdx", request)
	require.NoError(w, a.Err)
	require.Equal(w, knows, evidence(a) == nil, "the evidence is missing, and the answer says so")
	got, err := w.read("c.vhdx")
	require.NoError(w, err)
	require.Equal(w, ofChild.Data, got[ofChild.Off:][:len(ofChild.Data)])
	require.NoError(w, w.ask("check", "c.vhdx", "run").Err)
	var rec struct {
		Before struct{ Error string }
		Unread []byte
	}
	require.NoError(w, json.Unmarshal(bytes.TrimSpace(w.file("/vms/.vhdfs-state/c.vhdx.undo")), &rec))
	require.NotEmpty(w, rec.Before.Error)
	at := 2<<20 + fixture.VHDXItemLocator
	require.Equal(w, before[at:][:len(rec.Unread)], rec.Unread)
	require.Greater(w, len(rec.Unread), 20)
}

// A VHD whose paths are all gone reads by its id. set-parent records them again; the
// header that led to them stays in the undo record, and the id and time come back.
func TestUnreadablePaths(t *testing.T) {
	at := func(off int64, b ...byte) fixture.VHDPatch {
		return fixture.VHDPatch{Part: "header", Off: off, Data: b, Repair: true}
	}
	for name, patches := range map[string][]fixture.VHDPatch{
		"lengths":             {at(576+8, 0xff), at(576+24+8, 0xff)},
		"offsets":             {at(576+16, 0x7f), at(576+24+16, 0x7f)},
		"offsets and no name": {at(576+16, 0x7f), at(576+24+16, 0x7f), at(64, make([]byte, 512)...)},
	} {
		t.Run(name, func(t *testing.T) {
			w := realWorld(t)
			w.put("/vms/sub/new.vhd", root("vhd", 3<<20, 1))
			v := fixture.VHD{Size: 3 << 20, Type: 4, UUID: fixture.MustGUID(guid(2)), Writes: []fixture.Write{ofChild}, Patches: patches,
				Parent: &fixture.VHDParent{UUID: fixture.MustGUID(guid(1)), Name: "base.vhd", Locators: []fixture.VHDLocator{
					{Code: "W2ru", Path: `.\base.vhd`}, {Code: "W2ku", Path: `D:\base.vhd`}}}}
			w.put("/vms/c.vhd", v.Bytes())
			before := w.file("/vms/c.vhd")
			require.Len(t, w.found("c.vhd").Info.Anomalies, 2)
			_, err := w.read("c.vhd")
			require.NoError(t, err, "found by its id")

			require.NoError(t, w.ask("set-parent", "c.vhd", "sub/new.vhd").Err)
			links, err := w.lib.ChainOf(w.lib.Top("c.vhd"))
			require.NoError(t, err)
			require.Equal(t, ops.RuleRelative, links[1].Rule)
			require.Empty(t, w.found("c.vhd").Info.Anomalies)
			require.NoError(t, w.ask("check", "c.vhd", "run").Err)
			var rec struct{ Unread []byte }
			require.NoError(t, json.Unmarshal(bytes.TrimSpace(w.file("/vms/.vhdfs-state/c.vhd.undo")), &rec))
			require.Equal(t, before[512:1536], rec.Unread)
		})
	}
}

// A VHD whose parent is a raw disk, as blktap makes them, says why it does not read. Its
// parent made a fixed VHD is one that can be recorded.
func TestRawParentOfBlktap(t *testing.T) {
	w := realWorld(t)
	v := fixture.VHD{Size: 3 << 20, Type: 4, UUID: fixture.MustGUID(guid(2)), Writes: []fixture.Write{ofChild},
		Parent: &fixture.VHDParent{Name: "base.img", Locators: []fixture.VHDLocator{{Code: "MacX", Path: "file://./base.img"}}}}
	w.put("/vms/c.vhd", v.Bytes())
	raw := bytes.Repeat([]byte("raw "), 3<<20/4)
	w.put("/vms/base.img", raw)
	before, changes := w.file("/vms/c.vhd"), w.host.Changes()

	_, err := w.read("c.vhd")
	require.Equal(t, "EOPNOTSUPP", ops.Errno(err))
	require.ErrorContains(t, err, "the parent has no id")
	require.Contains(t, ops.Sentence(err), "set-parent records it again")
	_, err = w.lib.Open(w.lib.Top("c.vhd"), ops.Write)
	require.ErrorContains(t, err, "the parent has no id")
	require.Error(t, w.ask("merge", "c.vhd", "1").Err)
	found := field(w.ask("check", "c.vhd", "run"), "Images").([]ops.Report)[0].Anomalies
	require.Len(t, found, 1)
	require.Equal(t, "vhd.parent.unidentified", found[0].Name)
	require.ErrorContains(t, w.ask("set-parent", "c.vhd", "base.img ignoreidmismatch=true").Err, "base.img")
	require.Equal(t, changes, w.host.Changes(), "nothing is written")

	require.NoError(t, w.ask("create", "", "path=base.vhd type=fixed source=base.img").Err)
	require.ErrorContains(t, w.ask("set-parent", "c.vhd", "base.vhd").Err, "the parent has no id")
	require.NoError(t, w.ask("set-parent", "c.vhd", "base.vhd ignoreidmismatch=true").Err)
	copy(raw[ofChild.Off:], ofChild.Data)
	got, err := w.read("c.vhd")
	require.NoError(t, err)
	require.True(t, bytes.Equal(raw, got))
	require.NoError(t, w.ask("check", "c.vhd", "run").Err)
	var rec struct{ Unread []byte }
	require.NoError(t, json.Unmarshal(bytes.TrimSpace(w.file("/vms/.vhdfs-state/c.vhd.undo")), &rec))
	require.Equal(t, before[512:1536], rec.Unread)
}

// After a power cut at any moment the link is unreadable as it was, and can be
// mended, or mended; what it was is in the undo record before it is gone.
func TestMendingCrashes(t *testing.T) {
	w := realWorld(t)
	w.put("/vms/c.vhdx", unreadable[0].file())
	w.put("/vms/new.vhdx", root("vhdx", 3<<20, 7))
	start := w.host.Clone()
	w.host.Record()
	require.NoError(t, w.ask("set-parent", "c.vhdx", "new.vhdx ignoreidmismatch=true").Err)
	r := crash.Recording{Base: start, Events: w.host.Events()}
	mended := map[bool]int{}
	err := r.Each(1, func(s *crash.State) error {
		h, err := s.Host()
		if err != nil {
			return err
		}
		c := realOn(t, h)
		_, err = c.read("c.vhdx")
		mended[err == nil]++
		if err == nil {
			require.Contains(t, string(c.file("/vms/.vhdfs-state/c.vhdx.undo")), "Unread", "%s", s)
			return nil
		}
		require.ErrorContains(t, err, unreadable[0].says, "%s", s)
		require.NoError(t, c.ask("set-parent", "c.vhdx", "new.vhdx ignoreidmismatch=true").Err, "%s", s)
		_, err = c.read("c.vhdx")
		return err
	})
	require.NoError(t, err)
	require.NotZero(t, mended[true])
	require.NotZero(t, mended[false])
}
