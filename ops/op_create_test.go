package ops_test

import (
	"bytes"
	"context"
	"errors"
	iofs "io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vfd"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// makingWorld has every format.
func makingWorld(t *testing.T) *world {
	w := newWorld(t)
	o := w.options()
	o.Formats = []*ops.Format{vhd.Format, vhdx.Format, vhdx.SetFormat, iso.Format, vfd.Format}
	w.lib = ops.NewLibrary(o)
	return w
}

// ask writes a request to the control file of an operation.
func (w *world) ask(name, image, request string) ops.Answer {
	w.Helper()
	o := op(w.T, name)
	args, err := o.Parse(request)
	if err != nil {
		return o.Refuse(err)
	}
	return o.Do(context.Background(), &ops.Request{Library: w.lib, Image: w.lib.Top(image), Args: args})
}

// hostNames are all names below a folder of the host.
func (w *world) hostNames(dir string) []string {
	list, err := w.host.Dir(dir).List(".")
	require.NoError(w, err)
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name)
	}
	return names
}

func (w *world) found(name string) *ops.Found {
	w.Helper()
	f, err := w.lib.Inspect(w.lib.Top(name))
	require.NoError(w, err)
	require.NoError(w, f.Err)
	return f
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

func TestCreate(t *testing.T) {
	for _, tt := range []struct {
		request           string
		typ               ops.Type
		size              int64
		block             uint32
		logical, physical uint32
		fileSize          int64 // 0: not looked at
	}{
		{"path=a.vhdx size=5G", ops.Dynamic, 5 * gib, 32 * mib, 512, 4096, 4 * mib},
		{"a.vhdx size=40G type=dynamic format=vhdx", ops.Dynamic, 40 * gib, 32 * mib, 512, 4096, 4 * mib},
		{`{"Path": "a.vhdx", "MaxInternalSize": 5368709120, "Type": 3, "Format": 3, "BlockSize": 0}`, ops.Dynamic, 5 * gib, 32 * mib, 512, 4096, 4 * mib},
		{"path=a.vhdx size=10M type=fixed", ops.Fixed, 10 * mib, 0, 512, 4096, 14 * mib},
		{"path=a.avhdx size=1G block=1M sector=4096", ops.Dynamic, gib, mib, 4096, 4096, 0},
		{"path=a.vhdx size=1G block=256M physical=512", ops.Dynamic, gib, 256 * mib, 512, 512, 0},
		{"path=a.vhdx size=64T", ops.Dynamic, 64 << 40, 32 * mib, 512, 4096, 0},
		{"path=a.vhdx size=3145729", ops.Dynamic, 3*mib + 512, 32 * mib, 512, 4096, 0},
		{"path=a.vhdx size=3145729 sector=4096", ops.Dynamic, 3*mib + 4096, 32 * mib, 4096, 4096, 0},
		{"path=a.vhd size=10M type=fixed", ops.Fixed, 10 * mib, 0, 512, 512, 10486272},
		{"path=a.vhd size=2040G", ops.Dynamic, 2040 * gib, 2 * mib, 512, 512, 0},
		{"path=/vms/sub/a.vhd size=3M block=512K format=2", ops.Dynamic, 3 * mib, 512 << 10, 512, 512, 0},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := makingWorld(t)
			w.image("/vms/sub/x.txt", fakeImage{})
			a := w.ask("create", ".", tt.request)
			require.NoError(t, a.Err)
			require.Equal(t, "CreateVirtualHardDisk", a.Operation)
			path := field(a, "Path").(string)
			f := w.found(path[len("/vms/"):])
			require.Equal(t, tt.typ, f.Info.Type)
			require.Equal(t, tt.size, f.Size)
			if tt.block != 0 {
				require.Equal(t, tt.block, f.Info.BlockSize)
			}
			require.Equal(t, []uint32{tt.logical, tt.physical}, []uint32{f.Info.LogicalSector, f.Info.PhysicalSector})
			if tt.fileSize != 0 {
				require.Equal(t, tt.fileSize, f.Stat.Size)
			}
			require.EqualValues(t, 0o600, f.Stat.Mode)
			require.Empty(t, f.Info.Anomalies)
			require.NotContains(t, w.hostNames("/vms"), ops.StateDir, "nothing is left")
			require.NoError(t, w.do("check", path[len("/vms/"):]).Err)
		})
	}
}

func TestCreateTakesTheDisksID(t *testing.T) {
	w := makingWorld(t)
	for _, name := range []string{"a.vhd", "a.vhdx"} {
		require.NoError(t, w.ask("create", ".", "size=3M id={0123ABCD-0000-4000-8000-000000000001} path="+name).Err)
		require.Equal(t, "0123abcd-0000-4000-8000-000000000001", w.found(name).Info.DiskID.String())
	}
}

func TestCreateChild(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		t.Run(ext, func(t *testing.T) {
			w := makingWorld(t)
			want := fixtureChain(w, ext, 2, 512)
			w.put("/vms/sub/keep.txt", nil)
			require.NoError(t, w.ask("create", ".", "path=sub/c."+ext+" parent=2."+ext).Err)
			c, p := w.found("sub/c."+ext), w.found("2."+ext)
			require.Equal(t, ops.Differencing, c.Info.Type)
			require.Equal(t, p.Size, c.Size)
			require.EqualValues(t, 2*mib, c.Info.BlockSize)
			require.Equal(t, []ops.GUID{p.Info.LinkID}, c.Info.Parent.IDs)
			paths := map[ops.PathKind]string{}
			for _, r := range c.Info.Parent.Paths {
				paths[r.Kind] = r.Path
			}
			require.Equal(t, `..\2.`+ext, paths[ops.PathRelative])
			require.Equal(t, `\vms\2.`+ext, paths[ops.PathAbsolute])
			if ext == "vhdx" {
				require.Equal(t, p.Info.DiskID, c.Info.DiskID)
			}
			require.True(t, bytes.Equal(want, readAll(t, w, "sub/c."+ext)))
			links, err := w.lib.ChainOf(w.lib.Top("sub/c." + ext))
			require.NoError(t, err)
			require.Len(t, links, 3)
			require.Equal(t, ops.RuleRelative, links[1].Rule)
			require.Empty(t, links[0].Warnings)
			_, err = w.lib.Open(w.lib.Top("2."+ext), ops.Write)
			require.ErrorIs(t, err, ops.ErrReadOnly, "the parent is frozen at once")
		})
	}
}

func readAll(t *testing.T, w *world, name string) []byte {
	t.Helper()
	h := w.open(name, ops.Read)
	b := make([]byte, h.Size())
	_, err := h.ReadAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	return b
}

// A child of a VHDX may be larger; its end reads as zeros.
func TestCreateLargerChild(t *testing.T) {
	w := makingWorld(t)
	want := fixtureChain(w, "vhdx", 1, 512)
	require.NoError(t, w.ask("create", ".", "path=c.vhdx parent=1.vhdx size=9M block=1M").Err)
	require.EqualValues(t, mib, w.found("c.vhdx").Info.BlockSize)
	require.True(t, bytes.Equal(append(want, make([]byte, mib)...), readAll(t, w, "c.vhdx")))
}

func TestCreateRefuses(t *testing.T) {
	for _, tt := range []struct {
		request string
		class   error
		text    string
	}{
		{"size=1G", ops.ErrUsage, "path is required"},
		{"path=n.vhdx", ops.ErrUsage, "size is required"},
		{"path=n.vhdx size=0", ops.ErrUsage, "size is required"},
		{"path=n.vhdx size=1", ops.ErrUsage, "size: 512 bytes, want at least 3145728"},
		{"path=n.vhd size=3145215", ops.ErrUsage, "size: 3145216 bytes, want at least"},
		{"path=n.vhdx size=+1G", ops.ErrUsage, "relative: true"},
		{"path=n.vhdx size=9223372036854775807", ops.ErrUsage, "more than any image holds"},
		{"path=n.vhdx size=70368744177665", ops.ErrUsage, "up to 64 TiB"},
		{"path=n.vhd size=2190433320961", ops.ErrUsage, "2040 GiB"},
		{"path=n.vhdx size=1G block=3M", ops.ErrUsage, "block size 3145728"},
		{"path=n.vhdx size=1G block=512K", ops.ErrUsage, "block size 524288"},
		{"path=n.vhdx size=1G block=512M", ops.ErrUsage, "block size 536870912"},
		{"path=n.vhdx size=1G block=8G", ops.ErrUsage, "block: 8589934592 bytes"},
		{"path=n.vhd size=1G block=1M", ops.ErrUsage, "block size 1048576"},
		{"path=n.vhd size=1G type=fixed block=2M", ops.ErrUsage, "block=2097152: a fixed image has no blocks"},
		{"path=n.vhdx size=1G type=fixed block=2M", ops.ErrUsage, "block=2097152: a fixed image has no blocks"},
		{"path=n.vhdx size=1G sector=1024", ops.ErrUsage, "logical sector size 1024"},
		{"path=n.vhdx size=1G physical=520", ops.ErrUsage, "physical sector size 520"},
		{"path=n.vhd size=1G sector=4096", ops.ErrUsage, "sectors of 4096/0"},
		{"path=n.vhd size=1G physical=4096", ops.ErrUsage, "sectors of 512/4096"},
		{"path=n.vhdx size=1G type=sparse", ops.ErrUsage, `type="sparse"`},
		{"path=n.vhdx size=1G type=5", ops.ErrUsage, `type="5"`},
		{"path=n.vhdx size=1G format=vhd", ops.ErrUsage, `format=vhd: not with the extension ".vhdx"`},
		{"path=n.vhd size=1G format=3", ops.ErrUsage, `format=vhdx: not with the extension ".vhd"`},
		{"path=n.qcow2 size=1G", ops.ErrUsage, `no format has the extension ".qcow2"`},
		{"path=n size=1G format=vhdx", ops.ErrUsage, `not with the extension ""`},
		{"path=n.img size=1G", ops.ErrUsage, "want a disk in .vhd"},
		{"path=n.vfd size=1440K", ops.ErrUsage, "want a disk in .vhd"},
		{"path=n.iso size=1G", errors.ErrUnsupported, "makes no iso images"},
		{"path=n.vhdx size=1G id=1", ops.ErrUsage, `id="1"`},
		{"path=n.vhdx size=1G id=00000000-0000-0000-0000-000000000000", ops.ErrUsage, "not all zeros"},
		{"path=n.vhdx size=1G colour=red", ops.ErrUsage, `unknown argument "colour"`},
		{"path=../n.vhdx size=1G", ops.ErrUsage, `has no ".."`},
		{"path=sub/.vhdfs-state/n.vhdx size=1G", ops.ErrUsage, "files of vhdfs itself"},
		{"path=n.vhdx/ size=1G", ops.ErrUsage, "path of a file"},
		{"path=/other/n.vhdx size=1G", ops.ErrForbidden, "outside of the folders"},
		{"path=/search/n.vhdx size=1G", ops.ErrForbidden, "outside of the folders"},
		{"path=none/n.vhdx size=1G", iofs.ErrNotExist, "none"},
		{"path=1.vhdx size=1G", iofs.ErrExist, "nothing is ever overwritten"},
		{"path=n.vhdx size=1G type=differencing", ops.ErrUsage, "a differencing image has a parent"},
		{"path=n.vhdx type=fixed parent=1.vhdx", ops.ErrUsage, "no other has"},
		{"path=n.vhdx parent=none.vhdx", iofs.ErrNotExist, "none.vhdx"},
		{"path=n.vhdx parent=/other/p.vhdx", ops.ErrForbidden, "outside of the folders"},
		{"path=n.vhdx parent=../p.vhdx", ops.ErrUsage, `parent="../p.vhdx"`},
		{"path=n.vhd parent=1.vhdx", ops.ErrUsage, "a vhdx cannot be the parent of a vhd"},
		{"path=n.vhdx parent=1.vhd", ops.ErrUsage, "a vhd cannot be the parent of a vhdx"},
		{"path=n.vhdx parent=1.vhdx size=4M", ops.ErrUsage, "a child is not smaller"},
		{"path=n.vhd parent=1.vhd size=9M", ops.ErrUsage, "of a VHD as large"},
		{"path=n.vhdx parent=1.vhdx sector=4096", ops.ErrUsage, "has sectors of 512 bytes"},
		{"path=n.vhdx parent=orphan.vhdx", ops.ErrParentMissing, "gone.vhdx"},
		{"path=n.vhdx parent=bad.vhdx", ops.ErrCorrupt, "bad.vhdx"},
		{"path=n.vhdx source=1.vhdx size=4M", ops.ErrUsage, "the source has 8388608 bytes"},
		{"path=n.vhdx source=none.raw", iofs.ErrNotExist, "none.raw"},
		{"path=n.vhdx source=../x.raw", ops.ErrUsage, `source="../x.raw"`},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 1, 512)
			fixtureChain(w, "vhd", 1, 512)
			w.put("/vms/bad.vhdx", []byte("vhdxfile"))
			w.put("/vms/orphan.vhdx", fixture.VHDX{Size: 8 * mib, Parent: &fixture.Locator{Entries: [][2]string{
				{"parent_linkage", "{ba000000-0000-0000-0000-000000000001}"}, {"relative_path", `.\gone.vhdx`}}}}.Bytes())
			w.put("/vms/sub/x.txt", nil)
			before := w.hostNames("/vms")
			a := w.ask("create", ".", tt.request)
			require.ErrorIs(t, a.Err, tt.class)
			require.ErrorContains(t, a.Err, tt.text)
			require.Equal(t, before, w.hostNames("/vms"))
			require.Equal(t, []string{"x.txt"}, w.hostNames("/vms/sub"))
		})
	}
}

func TestCreateChildOfAnImageInUse(t *testing.T) {
	w := makingWorld(t)
	fixtureChain(w, "vhdx", 1, 512)
	h := w.open("1.vhdx", ops.Write)
	a := w.ask("create", ".", "path=n.vhdx parent=1.vhdx")
	require.ErrorIs(t, a.Err, ops.ErrBusy)
	require.ErrorContains(t, a.Err, "1.vhdx is open for writing")
	require.NoError(t, h.Close())
	reader := w.open("1.vhdx", ops.Read)
	require.NoError(t, w.ask("create", ".", "path=n.vhdx parent=1.vhdx").Err)
	require.NoError(t, reader.Close())
}

// What fails under way leaves nothing behind.
func TestCreateRemovesItsTemporary(t *testing.T) {
	for _, call := range []sim.Op{sim.OpWrite, sim.OpSync, sim.OpTruncate, sim.OpRename, sim.OpCreate, sim.OpLock} {
		t.Run(call.String(), func(t *testing.T) {
			w := makingWorld(t)
			w.host.SetFault(func(c sim.Call) error {
				if c.Op == call {
					return syscall.ENOSPC
				}
				return nil
			})
			a := w.ask("create", ".", "path=n.vhdx size=1G")
			require.ErrorIs(t, a.Err, syscall.ENOSPC)
			require.Empty(t, w.hostNames("/vms"))
		})
	}
}

// The file gets its name when it is durable, and the name is made durable.
func TestOrderOfMaking(t *testing.T) {
	for _, tt := range []struct{ op, request string }{
		{"create", "path=n.vhdx size=1G"},
		{"create", "path=n.vhd size=1G"},
		{"create-floppy", "path=n.vfd"},
		{"convert", "path=n.vhdx"},
		{"convert", "path=n.vhdx parent=1.vhdx"},
		{"convert", "path=n.vhd type=fixed"},
		{"convert", "path=n.raw"},
	} {
		t.Run(tt.op+" "+tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 2, 512)
			w.host.Record()
			require.NoError(t, w.ask(tt.op, "2.vhdx", tt.request).Err)
			inOrder(t, w.host.Events())
		})
	}
}

func inOrder(t *testing.T, events []sim.Event) {
	t.Helper()
	unsynced, renamed, named := false, false, false
	for _, e := range events {
		switch e.Op {
		case sim.OpWrite, sim.OpTruncate:
			require.False(t, renamed, "nothing is written after the rename")
			unsynced = true
		case sim.OpSync:
			unsynced = false
		case sim.OpRename:
			require.False(t, unsynced, "a rename of what is not durable")
			renamed = true
		case sim.OpSyncDir:
			named = renamed
		}
	}
	require.True(t, renamed)
	require.True(t, named, "the folder is synced")
}

func TestCreateFloppy(t *testing.T) {
	for _, tt := range []struct {
		request string
		size    int64
		class   error
		text    string
	}{
		{"a.vfd", 1474560, nil, ""},
		{"path=a.vfd", 1474560, nil, ""},
		{"path=a.vfd size=720K", 737280, nil, ""},
		{"path=a.vfd size=1200K", 1228800, nil, ""},
		{"path=a.vfd size=2880K", 2949120, nil, ""},
		{"path=a.vfd size=1441K", 0, ops.ErrUsage, "size 1475584"},
		{"path=a.vfd size=+720K", 0, ops.ErrUsage, "relative: true"},
		{"path=a.vfd size=1G", 0, ops.ErrUsage, "size: 1073741824 bytes"},
		{"path=a.img", 0, ops.ErrUsage, "a floppy has the extension .vfd"},
		{"path=a.vhd", 0, ops.ErrUsage, "a floppy has the extension .vfd"},
		{"path=x.vfd", 0, iofs.ErrExist, "nothing is ever overwritten"},
		{"run", 0, ops.ErrUsage, "path=\"run\""},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := makingWorld(t)
			w.put("/vms/x.vfd", make([]byte, 737280))
			a := w.ask("create-floppy", ".", tt.request)
			if tt.class != nil {
				require.ErrorIs(t, a.Err, tt.class)
				require.ErrorContains(t, a.Err, tt.text)
				require.Equal(t, []string{"x.vfd"}, w.hostNames("/vms"))
				return
			}
			require.NoError(t, a.Err)
			b, err := w.host.ReadFile("/vms/a.vfd")
			require.NoError(t, err)
			require.True(t, bytes.Equal(make([]byte, tt.size), b))
		})
	}
}
