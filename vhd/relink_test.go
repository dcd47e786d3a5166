package vhd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
)

func otherParent() ops.CreateParent {
	return ops.CreateParent{LinkID: ops.GUID{8, 8}, NextID: ops.GUID{9}, Timestamp: now, Relative: "../other/q.vhd", Absolute: "/vm/other/q.vhd"}
}

func relinkTests() map[string]changeTest {
	long := parent()
	long.Locators = append(long.Locators, fixture.VHDLocator{Code: "MacX", Path: "file://./p.vhd"}, fixture.VHDLocator{Code: "Wi2r", Path: `.\p.vhd`})
	data := []fixture.Write{{Off: 4096, Data: pattern(1024, 1)}, {Off: 20 << 10, Data: pattern(512, 2)}}
	list := map[string]changeTest{}
	for name, v := range map[string]fixture.VHD{
		"aligned":   {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: long, Writes: data},
		"no gap":    {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: long, Writes: data, Unaligned: true},
		"empty":     {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent()},
		"no tail":   {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent(), Writes: data, NoTail: true},
		"no copy":   {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent(), Writes: data, NoCopy: true},
		"no record": {Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: &fixture.VHDParent{UUID: [16]byte{1}}, Writes: data},
	} {
		list[name] = changeTest{
			image: v, changes: true,
			change: func(g *crash.Guest) error {
				if err := g.Write(8192, 512); err != nil { // not flushed: may last or not
					return err
				}
				return g.Writer.(ops.Relinker).SetParent(otherParent())
			},
			twice: func(w ops.Writer) error { return w.(ops.Relinker).SetParent(otherParent()) },
		}
	}
	return list
}

func TestSetParent(t *testing.T) {
	for name, c := range relinkTests() {
		t.Run(name, func(t *testing.T) {
			h := disk(c.image.Bytes())
			before := mustOpen(t, image(t, h))
			edit(t, h, func(w ops.Writer) {
				for range 5 {
					require.NoError(t, c.twice(w))
				}
			})
			b := image(t, h)
			require.LessOrEqual(t, len(b), len(c.image.Bytes())+2*blockAlignment, "room is used again")
			l := mustOpen(t, b)
			require.Equal(t, &ops.Parent{
				IDs: []ops.GUID{{8, 8}}, Timestamp: now,
				Paths: []ops.ParentPath{
					{Kind: ops.PathRelative, Path: `..\other\q.vhd`}, {Kind: ops.PathAbsolute, Path: `\vm\other\q.vhd`}, {Kind: ops.PathName, Path: "q.vhd"},
				},
			}, l.Info().Parent)
			require.Equal(t, before.Info().LinkID, l.Info().LinkID)
			require.Empty(t, l.Info().Anomalies)
			require.Empty(t, findings(t, l))
			require.Equal(t, be64(512), b[16:24], "T28: header at 512")
			require.Equal(t, b[:512], b[len(b)-512:], "T28: equal footers")
			for i := 2; i < numLocators; i++ {
				require.Equal(t, make([]byte, locatorSize), b[512+576+i*locatorSize:][:locatorSize], "no path leads to the old parent")
			}
			got, err := readLayer(l, 0, l.Size(), 0xee)
			require.NoError(t, err)
			require.True(t, bytes.Equal(model(c.image, 0xee), got))
		})
	}
}

func TestSetParentInPlace(t *testing.T) {
	h := disk(fixture.VHD{Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent()}.Bytes())
	edit(t, h, func(w ops.Writer) {
		r := w.(ops.Relinker)
		require.NoError(t, r.SetParent(otherParent()))
		require.Equal(t, []ops.GUID{{8, 8}}, w.Info().Parent.IDs)
		write(t, w, 0, 7, 1)
		p := otherParent()
		p.Relative, p.LinkID = "", ops.GUID{6}
		require.NoError(t, r.SetParent(p))
		write(t, w, 8192, 8, 1)
	})
	l := mustOpen(t, image(t, h))
	require.Equal(t, []ops.ParentPath{{Kind: ops.PathAbsolute, Path: `\vm\other\q.vhd`}, {Kind: ops.PathName, Path: "q.vhd"}}, l.Info().Parent.Paths)
	require.Empty(t, findings(t, l))
	got, err := readLayer(l, 8192, 512, 0)
	require.NoError(t, err)
	require.Equal(t, pattern(512, 8), got)
}

func TestSetParentStates(t *testing.T) {
	for name, c := range relinkTests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := c.states(t)
			require.NoError(t, err)
			require.NoError(t, c.damaged(t))
			t.Logf("%d states, %d failed calls", n, c.faults(t))
		})
	}
}

func TestSetParentNeedsItsSyncs(t *testing.T) {
	for _, label := range []string{"vhd.header", "vhd.switch.copy", "vhd.switch.end"} {
		t.Run(label, func(t *testing.T) { relinkTests()["aligned"].needs(t, label) })
	}
}

func TestSetParentRefuses(t *testing.T) {
	child := fixture.VHD{Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent()}
	for _, tt := range []struct {
		name  string
		v     fixture.VHD
		p     ops.CreateParent
		class error
		text  string
	}{
		{"dynamic", fixture.VHD{Size: 32 << 10, BlockSize: 4096}, otherParent(), errors.ErrUnsupported, "a dynamic disk has no parent"},
		{"no id", child, ops.CreateParent{Relative: "./p"}, ops.ErrUsage, "no id"},
		{"no path", child, ops.CreateParent{LinkID: ops.GUID{1}}, ops.ErrUsage, "no path"},
		{"long path", child, ops.CreateParent{LinkID: ops.GUID{1}, Relative: strings.Repeat("p", 40000)}, ops.ErrUsage, "path of 80000 bytes"},
		{"overlap", fixture.VHD{Size: 32 << 10, BlockSize: 4096, Type: 4, Parent: parent(), Blocks: []int64{0}, BAT: map[int64]uint32{3: 15, 4: 15}}, otherParent(), ops.ErrCorrupt, "bat entry 3: block at 0x1e00 overlaps"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := disk(tt.v.Bytes())
			before := image(t, h)
			edit(t, h, func(w ops.Writer) {
				err := w.(ops.Relinker).SetParent(tt.p)
				require.ErrorIs(t, err, tt.class)
				require.ErrorContains(t, err, tt.text)
			})
			require.True(t, bytes.Equal(before, image(t, h)))
		})
	}
}

// Other readers find the new parent.
func TestPeersReadTheNewParent(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"old.vhd", "new.vhd"} {
		base := fixture.VHD{Size: 9 << 20, Writes: someWrites()}
		if name == "new.vhd" {
			base.UUID = [16]byte{5, 5, 5}
			base.Writes[0].Data = pattern(700, 9)
		}
		require.NoError(t, base.WriteFile(filepath.Join(dir, name)))
	}
	st, err := os.Stat(filepath.Join(dir, "new.vhd"))
	require.NoError(t, err)
	child := fixture.VHD{Size: 9 << 20, Type: 4, Writes: []fixture.Write{{Off: 4 << 20, Data: pattern(512, 4)}}, Parent: &fixture.VHDParent{
		UUID: fixture.VHDUUID, Name: "old.vhd", Locators: []fixture.VHDLocator{{Code: "W2ru", Path: `.\old.vhd`}},
	}}
	require.NoError(t, child.WriteFile(filepath.Join(dir, "c.vhd")))
	w := openIn(t, dir, "c.vhd", ops.Write).(ops.Writer)
	require.NoError(t, w.(ops.Relinker).SetParent(ops.CreateParent{
		LinkID: ops.GUID{5, 5, 5}, Timestamp: st.ModTime(), Relative: "./new.vhd", Absolute: filepath.Join(dir, "new.vhd"),
	}))
	require.NoError(t, w.Close())
	require.Contains(t, string(run(t, dir, "vhdiinfo", "c.vhd")), "new.vhd")
	out := run(t, dir, "7z", "e", "-so", "-tvhd", "c.vhd")
	require.True(t, bytes.Contains(out, pattern(700, 9)), "the new parent's bytes")
	require.True(t, bytes.Contains(out, pattern(512, 4)), "the child's own")
}
