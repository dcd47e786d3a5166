package merge

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// stage is a host with 1.vhdx <- 2.vhdx <- 3.vhdx and what a row adds.
type stage struct {
	*testing.T
	s    *scene
	host *sim.Host
	lib  *ops.Library
	busy map[ops.FileID]bool // below a loop device
}

func newStage(t *testing.T) *stage {
	tt := terms{format: vhdx.Format, sector: 512, depth: 3, source: 2}
	g := &stage{T: t, s: tt.scene(9), busy: map[ops.FileID]bool{}}
	g.host = g.s.lay()
	g.lib = g.library()
	t.Cleanup(func() { require.NoError(t, g.lib.Close()) })
	return g
}

func (g *stage) library() *ops.Library {
	return ops.NewLibrary(ops.LibraryOptions{
		Top: g.host.Dir("/vms"), Formats: []*ops.Format{vhdx.Format, vhdx.SetFormat, vhd.Format},
		BeforeWrite: func(id ops.FileID) error {
			if g.busy[id] {
				return ops.Errorf(ops.ErrBusy, ops.StatusOwned, "loop device /dev/loop7 lies on the file")
			}
			return nil
		},
	})
}

// open opens an image in a program until the row ends.
func (g *stage) open(lib *ops.Library, name string, a ops.Access) *ops.Handle {
	g.Helper()
	h, err := lib.Open(lib.Top(name), a)
	require.NoError(g, err)
	g.Cleanup(func() { _ = h.Close() })
	return h
}

// other is another program.
func (g *stage) other() *ops.Library {
	lib := g.library()
	g.Cleanup(func() { require.NoError(g, lib.Close()) })
	return lib
}

func (g *stage) child(name, parent string, parentID byte) {
	v := fixture.VHDX{Size: 7 << 19, BlockSize: mib, Parent: &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", fmt.Sprintf("{%s}", ops.GUID(guid(parentID)))}, {"relative_path", `.\` + parent}}}}
	g.host.Put("/vms/"+name, v.Bytes())
}

// breakOff begins a merge and cancels it while bytes move.
func (g *stage) breakOff(request string) {
	g.Helper()
	ctx, stop := context.WithCancel(g.Context())
	a := mergeCtx(ctx, g.lib, "/vms/3.vhdx", request, func(int64, int64) { stop() })
	require.ErrorIs(g, a.Err, context.Canceled)
	require.Equal(g, "ECANCELED", ops.Errno(a.Err))
}

// setOf is a VHD set with this active disk.
func setOf(leaf string) []byte {
	b := make([]byte, 0x41000)
	copy(b, "vhdsetv1")
	for i, c := range leaf {
		b[0x40000+2*i] = byte(c)
	}
	le := binary.LittleEndian
	for i, at := range []int{0x10000, 0x20000} {
		h := b[at : at+4096]
		copy(h, "shdr")
		le.PutUint64(h[8:], uint64(i+1))
		le.PutUint32(h[16:], 1)
		le.PutUint32(h[24:], 7)
		le.PutUint32(h[28:], 0x40000)
		le.PutUint32(h[32:], uint32(2*len(leaf)))
		le.PutUint32(h[20:], crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli)))
	}
	return b
}

// What is refused, with which numbers and words, before anything has changed.
func TestGuards(t *testing.T) {
	for _, tt := range []struct {
		name    string
		image   string // "": 3.vhdx
		request string
		set     func(g *stage)
		errno   string
		number  uint32
		text    string
	}{
		{"no parent", "1.vhdx", "1", nil, "EOPNOTSUPP", 32770, "/vms/1.vhdx is a dynamic disk: it has no parent that it could be merged into"},
		{"unknown argument", "", "to=1.vhdx", nil, "EINVAL", 32773, `unknown argument "to"`},
		{"two destinations", "", "into=1.vhdx 2.vhdx", nil, "EINVAL", 32773, `argument "into" is given twice`},
		{"not there", "", "into=4.vhdx", nil, "ENOENT", 32779, "4.vhdx"},
		{"itself", "", "3.vhdx", nil, "EINVAL", 32773, `into="3.vhdx" is no parent of /vms/3.vhdx, however far above`},
		{"a child", "2.vhdx", "3.vhdx", nil, "EINVAL", 32773, `into="3.vhdx" is no parent of /vms/2.vhdx`},
		{"a path that goes up", "", "into=../1.vhdx", nil, "EINVAL", 32773, `has no ".."`},
		{"outside", "", "into=/etc/passwd", nil, "EPERM", 32769, "outside of the folders"},
		{"a parent that is gone", "", "1", func(g *stage) { require.NoError(g, g.host.Dir("/vms").Remove("1.vhdx")) }, "ENOLINK", 32779, "parent of /vms/2.vhdx"},
		{"another child of the destination", "", "1.vhdx", func(g *stage) { g.child("x.vhdx", "1.vhdx", 1) }, "EROFS", 32768,
			"/vms/1.vhdx is also the parent of /vms/x.vhdx, which the merge would break; force=true goes on all the same"},
		{"another child of a disk between", "", "1.vhdx", func(g *stage) { g.child("x.vhdx", "2.vhdx", 2) }, "EROFS", 32768, "/vms/2.vhdx is also the parent of /vms/x.vhdx"},
		{"a symbolic link", "link.vhdx", "1", func(g *stage) { g.host.Symlink("3.vhdx", "/vms/link.vhdx") }, "EPERM", 32769, "symbolic link"},
		{"below a loop device", "", "1.vhdx", func(g *stage) {
			st, err := g.host.Dir("/vms").Stat("1.vhdx")
			require.NoError(g, err)
			g.busy[st.ID] = true
		}, "EBUSY", 32774, "loop device /dev/loop7"},
		{"the destination is open", "", "1.vhdx", func(g *stage) { g.open(g.lib, "1.vhdx", ops.Read) }, "EBUSY", 32774, "/vms/1.vhdx is open"},
		{"a disk between is open", "", "1.vhdx", func(g *stage) { g.open(g.lib, "2.vhdx", ops.Read) }, "EBUSY", 32774, "/vms/2.vhdx is open"},
		{"a source with children is open", "2.vhdx", "1", func(g *stage) { g.open(g.lib, "2.vhdx", ops.Read) }, "EBUSY", 32774, "/vms/2.vhdx is open"},
		{"another program reads the destination", "", "1.vhdx", func(g *stage) { g.open(g.other(), "1.vhdx", ops.Read) }, "EBUSY", 32774, "1.vhdx is locked"},
		{"another program reads a child", "2.vhdx", "1", func(g *stage) { g.open(g.other(), "3.vhdx", ops.Read) }, "EBUSY", 32774, "is locked"},
		{"an operation runs on the source", "", "1", func(g *stage) {
			o, err := g.lib.Operate(g.lib.Top("3.vhdx"), ops.Terms{Name: "work", Quiet: true})
			require.NoError(g, err)
			g.Cleanup(func() { _ = o.Close() })
		}, "EBUSY", 32774, "/vms/3.vhdx: work runs on it"},
		{"an operation runs on the destination", "", "1.vhdx", func(g *stage) {
			o, err := g.lib.Operate(g.lib.Top("1.vhdx"), ops.Terms{Name: "work", Quiet: true})
			require.NoError(g, err)
			g.Cleanup(func() { _ = o.Close() })
		}, "EBUSY", 32774, "/vms/1.vhdx: work runs on it"},
		{"belongs to a set", "", "1.vhdx", func(g *stage) { g.host.Put("/vms/s.vhds", setOf("3.vhdx")) }, "EOPNOTSUPP", 32770, "belongs to the set /vms/s.vhds"},
		{"another destination than that of a merge that was broken off", "", "2.vhdx", func(g *stage) { g.breakOff("1.vhdx") }, "EBUSY", 32774,
			"the merge of /vms/3.vhdx into /vms/1.vhdx is not finished, and this is another one"},
		{"other terms than those of a merge that was broken off", "", "keep=true", func(g *stage) { g.breakOff("1.vhdx keep=no") }, "EINVAL", 32773, "keep=true: the merge was begun with keep=false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newStage(t)
				if tt.set != nil {
					tt.set(g)
				}
				if tt.image == "" {
					tt.image = "3.vhdx"
				}
				before := g.host.Changes()
				for _, dry := range []string{"", " dryrun=true"} {
					a := merge(g.lib, "/vms/"+tt.image, tt.request+dry)
					require.Error(t, a.Err)
					require.Equal(t, tt.errno, ops.Errno(a.Err), "%v", a.Err)
					require.Equal(t, tt.number, a.ReturnValue())
					require.Contains(t, a.Sentence(), tt.text)
				}
				require.Equal(t, before, g.host.Changes(), "something was changed")
			})
		})
	}
}

// While a merge is broken off, what it is about can be used as far as that is
// right, and is kept from everything else.
func TestBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newStage(t)
		g.breakOff("1.vhdx")
		for _, lib := range []*ops.Library{g.lib, g.other()} {
			for name, role := range map[string]string{"1.vhdx": "destination", "2.vhdx": "between", "3.vhdx": "source"} {
				p, err := lib.MergePending(lib.Top(name))
				require.NoError(t, err)
				require.Equal(t, role, p.Role)
				require.Equal(t, []string{"/vms/3.vhdx", "/vms/1.vhdx"}, []string{p.Source, p.Destination})
				require.False(t, p.Moved)
				_, err = lib.Open(lib.Top(name), ops.Write)
				if role == "source" {
					require.NoError(t, err)
					continue
				}
				require.ErrorIs(t, err, ops.ErrBusy)
				require.ErrorContains(t, err, "the merge of /vms/3.vhdx into /vms/1.vhdx is not finished: run merge on /vms/3.vhdx again")
			}
			_, err := lib.Operate(lib.Top("3.vhdx"), ops.Terms{Name: "work", Quiet: true})
			require.ErrorIs(t, err, ops.ErrBusy)
			require.NoError(t, lib.Close())
		}
		for _, request := range []string{"path=c.vhdx parent=3.vhdx", "path=c.vhdx parent=2.vhdx", "path=c.vhdx source=3.vhdx"} {
			lib := g.library()
			op := operation("create")
			args, err := op.Parse(request)
			require.NoError(t, err)
			a := op.Do(t.Context(), &ops.Request{Library: lib, Image: lib.Top("."), Args: args})
			require.ErrorIs(t, a.Err, ops.ErrBusy, request)
			require.NoError(t, lib.Close())
		}
	})
}

// Between two parts of a merge the leaf goes on: what is written then is in the
// destination in the end.
func TestWrittenBetween(t *testing.T) {
	g := newStage(t)
	g.breakOff("1.vhdx")
	w := g.open(g.lib, "3.vhdx", ops.Write)
	want := g.s.line[2].reads()
	data := []byte(strings.Repeat("new!", 2048))
	_, err := w.WriteAt(data, 4096)
	require.NoError(t, err)
	require.NoError(t, w.Zero(mib, mib, true))
	require.NoError(t, w.Close())
	copy(want[4096:], data)
	clear(want[mib : 2*mib])
	a := merge(g.lib, "/vms/3.vhdx", "1")
	require.NoError(t, a.Err)
	got, err := read(g.lib, "/vms/1.vhdx")
	require.NoError(t, err)
	require.NoError(t, same(got, want))
}

// A merge goes on from any of its files.
func TestResumedFromBetween(t *testing.T) {
	g := newStage(t)
	g.breakOff("1.vhdx")
	a := merge(g.lib, "/vms/2.vhdx", "1")
	require.NoError(t, a.Err)
	g.s.source, g.s.dest = 2, 0
	require.NoError(t, g.s.over(g.host))
}

// A source that gets another name between two parts is still the source.
func TestRenamedBetween(t *testing.T) {
	g := newStage(t)
	g.breakOff("1.vhdx")
	require.NoError(t, g.host.Dir("/vms").Rename("3.vhdx", "9.vhdx"))
	lib := g.other()
	got, err := read(lib, "/vms/9.vhdx")
	require.NoError(t, err)
	require.NoError(t, same(got, g.s.line[2].reads()))
	_, err = read(lib, "/vms/1.vhdx")
	require.ErrorIs(t, err, ops.ErrBusy)
	a := merge(lib, "/vms/9.vhdx", "1")
	require.NoError(t, a.Err)
	require.False(t, exists(g.host, "/vms/9.vhdx"))
	g.s.source, g.s.dest = 2, 0
	require.NoError(t, g.s.over(g.host))
}

// With force the merge goes on; the other child is broken, and says so.
func TestForce(t *testing.T) {
	g := newStage(t)
	g.child("x.vhdx", "1.vhdx", 1)
	before, err := g.host.ReadFile("/vms/x.vhdx")
	require.NoError(t, err)
	a := merge(g.lib, "/vms/3.vhdx", "1.vhdx force=true")
	require.NoError(t, a.Err)
	require.NoError(t, g.s.over(g.host))
	_, err = read(g.lib, "/vms/x.vhdx")
	require.ErrorIs(t, err, ops.ErrParentMismatch)
	after, err := g.host.ReadFile("/vms/x.vhdx")
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// A dry run says what would be done, and changes nothing.
func TestPlan(t *testing.T) {
	tt := terms{format: vhdx.Format, sector: 512, depth: 4, source: 2, dest: 0, fork: true}
	s := tt.scene(3)
	s.line[0].writes, s.line[1].writes, s.line[1].zeros = nil, nil, nil
	s.line[2].writes, s.line[2].zeros = []fixture.Write{{Off: 512, Data: []byte(strings.Repeat("x", 1024))}}, nil
	h := s.lay()
	h.Freeze()
	lib := library(h)
	a := merge(lib, "/vms/3.vhdx", "into=1.vhdx dryrun=true")
	require.NoError(t, a.Err)
	require.Zero(t, h.Refused())
	require.Equal(t, ops.Fields{
		{Name: "DryRun", Value: true},
		{Name: "Changes", Value: []string{"/vms/1.vhdx", "/vms/4.vhdx", "/vms/other.vhdx"}},
		{Name: "Removes", Value: []string{"/vms/3.vhdx", "/vms/2.vhdx"}},
		{Name: "BytesToMove", Value: int64(1024)}, {Name: "SpaceNeeded", Value: int64(5120)}, {Name: "SpaceFree", Value: nil},
		{Name: "SizeAfter", Value: int64(7 << 19)},
		{Name: "Path", Value: "/vms/1.vhdx"}, {Name: "Reparents", Value: []string{"/vms/4.vhdx", "/vms/other.vhdx"}}, {Name: "Resumes", Value: false},
	}, a.Fields)
	require.NoError(t, lib.Close())
}

// The answer says what was done.
func TestAnswer(t *testing.T) {
	tt := terms{format: vhdx.Format, sector: 512, depth: 4, source: 2, dest: 0}
	s := tt.scene(3)
	h := s.lay()
	lib := library(h)
	a := merge(lib, "/vms/3.vhdx", "into=/vms/1.vhdx")
	require.NoError(t, a.Err)
	require.Equal(t, "MergeVirtualHardDisk", a.Operation)
	require.Equal(t, "/vms/1.vhdx", a.Fields[0].Value)
	require.Equal(t, ops.Field{Name: "Reparented", Value: []string{"/vms/4.vhdx"}}, a.Fields[2])
	require.Equal(t, ops.Field{Name: "Removed", Value: []string{"/vms/3.vhdx", "/vms/2.vhdx"}}, a.Fields[3])
	require.NoError(t, lib.Close())
}
