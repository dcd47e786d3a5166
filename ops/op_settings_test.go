package ops_test

import (
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// settable is a world with a child and its parent, and one image of each other
// kind.
func settable(t *testing.T) *world {
	w := newWorld(t)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Disk: guid(10), Physical: 4096})
	c := recorded("p.vhdx")
	c.Disk, c.Physical = guid(10), 4096
	w.image("/vms/c.avhdx", c)
	w.image("/vms/big.vhdx", fakeImage{ID: guid(4), Sector: 4096, Physical: 4096})
	w.image("/vms/v.vhd", fakeImage{Magic: "fakev", ID: guid(5), Disk: guid(5), Physical: 512})
	w.image("/vms/other.vhdx", fakeImage{ID: guid(2)})
	w.put("/vms/s.vhds", []byte("set:leaf.avhdx"))
	w.image("/vms/leaf.avhdx", fakeImage{ID: guid(6), Disk: guid(11), Physical: 4096})
	return w
}

func TestSet(t *testing.T) {
	for _, tt := range []struct {
		image, request string
		file           string // where the change is
		want           fakeImage
		old, new       string
	}{
		{"c.avhdx", "physical=512", "/vms/c.avhdx", fakeImage{Physical: 512, Disk: guid(10)}, "4096", "512"},
		{"c.avhdx", "VirtualDiskId={" + guid(77) + "}", "/vms/c.avhdx", fakeImage{Physical: 4096, Disk: guid(77)}, guid(10), guid(77)},
		{"p.vhdx", `{"VirtualDiskId":"` + guid(77) + `"}`, "/vms/p.vhdx", fakeImage{Physical: 4096, Disk: guid(77)}, guid(10), guid(77)},
		{"s.vhds", "id=" + guid(77), "/vms/leaf.avhdx", fakeImage{Physical: 4096, Disk: guid(77)}, guid(11), guid(77)},
	} {
		t.Run(tt.image+" "+tt.request, func(t *testing.T) {
			w := settable(t)
			before := w.stored(tt.file)
			dry := w.host.Changes()
			require.NoError(t, w.ask("set", tt.image, dried(tt.request)).Err)
			require.Equal(t, dry, w.host.Changes())
			a := w.ask("set", tt.image, tt.request)
			require.NoError(t, a.Err)
			require.Equal(t, "SetVirtualHardDiskSettingData", a.Operation)
			require.Equal(t, true, field(a, "Changed"))
			after := w.stored(tt.file)
			require.Equal(t, []any{tt.want.Physical, tt.want.Disk}, []any{after.Physical, after.Disk})
			require.Equal(t, []any{before.ID, before.Parent, before.Paths}, []any{after.ID, after.Parent, after.Paths})
			b, err := w.host.ReadFile(field(a, "UndoRecord").(string))
			require.NoError(t, err)
			var rec struct{ Operation, Property, Old, New string }
			require.NoError(t, json.Unmarshal(b, &rec))
			require.Equal(t, []string{"set", tt.old, tt.new}, []string{rec.Operation, rec.Old, rec.New})
			_, err = w.read("c.avhdx")
			require.NoError(t, err, "the link holds")
		})
	}
}

// dried asks for the plan of a request.
func dried(request string) string {
	if object, ok := strings.CutSuffix(request, "}"); ok && request[0] == '{' {
		return object + `,"DryRun":true}`
	}
	return request + " dryrun=true"
}

// A value that the image has already is a success that writes nothing.
func TestSetToTheSame(t *testing.T) {
	for _, tt := range [][2]string{
		{"c.avhdx", "physical=4K"}, {"c.avhdx", "id=" + guid(10)}, {"c.avhdx", "parent=p.vhdx"}, {"c.avhdx", "parent=/vms/p.vhdx"},
		{"v.vhd", "physical=512"}, {"v.vhd", "id=" + guid(5)},
	} {
		w := settable(t)
		before := w.host.Changes()
		a := w.ask("set", tt[0], tt[1])
		require.NoError(t, a.Err, tt)
		require.Equal(t, false, field(a, "Changed"))
		require.Equal(t, before, w.host.Changes())
	}
}

func TestSetParentPath(t *testing.T) {
	w := settable(t)
	require.NoError(t, w.dirs["/vms"].Rename("p.vhdx", "moved.vhdx"))
	w.host.Dir("/vms/sub")
	w.image("/vms/sub/twin.vhdx", fakeImage{ID: guid(1)})
	require.NoError(t, w.ask("set", "c.avhdx", "parent=sub/twin.vhdx").Err)
	require.Equal(t, fakePath{ops.PathRelative, `.\sub\twin.vhdx`}, w.stored("/vms/c.avhdx").Paths[0])
	require.NoError(t, w.ask("set-parent", "c.avhdx", "undo=true").Err, "it is a change of the parent like any other")
}

func TestSetRefuses(t *testing.T) {
	for _, tt := range []struct {
		image, request string
		errno          string
		code           uint32
		status         ops.StatusCode
		text           string
	}{
		{"c.avhdx", "dryrun=true", "EINVAL", 32773, 0, "one of parent, physical and id is required"},
		{"c.avhdx", "1", "EINVAL", 32773, 0, `"1" needs a name in front`},
		{"c.avhdx", "physical=512 id=" + guid(7), "EINVAL", 32773, 0, "PhysicalSectorSize and VirtualDiskId at once"},
		{"c.avhdx", "parent=p.vhdx physical=512 id=" + guid(7), "EINVAL", 32773, 0, "ParentPath and PhysicalSectorSize and VirtualDiskId at once"},
		{"c.avhdx", "physical=1024", "EINVAL", 32773, 0xC03A001D, "physical: 1024 bytes (relative: false), want 512 or 4096"},
		{"c.avhdx", "physical=+512", "EINVAL", 32773, 0xC03A001D, "relative: true"},
		{"c.avhdx", "physical=0", "EINVAL", 32773, 0xC03A001D, "physical: 0 bytes"},
		{"big.vhdx", "physical=512", "EINVAL", 32773, 0xC03A001D, "physical: 512 bytes, but logical sectors have 4096"},
		{"v.vhd", "physical=4096", "EOPNOTSUPP", 32770, 0xC03A001B, "PhysicalSectorSize of /vms/v.vhd: that of a fakev cannot be changed"},
		{"v.vhd", "id=" + guid(7), "EOPNOTSUPP", 32770, 0xC03A001B, "VirtualDiskId of /vms/v.vhd: that of a fakev cannot be changed"},
		{"c.avhdx", "id=00000000-0000-0000-0000-000000000000", "EINVAL", 32773, 0, "want a GUID that is not all zeros"},
		{"c.avhdx", "id=123", "EINVAL", 32773, 0, `id="123": bad argument`},
		{"c.avhdx", "parent=other.vhdx", "ESTALE", 32775, 0xC03A000E, "/vms/other.vhdx has id"},
		{"c.avhdx", "parent=other.vhdx ignoreidmismatch=true", "EINVAL", 32773, 0, `unknown argument "ignoreidmismatch"`},
		{"p.vhdx", "parent=other.vhdx", "EOPNOTSUPP", 32770, 0xC03A001B, "a dynamic image has no parent"},
		{"leaf.avhdx", "physical=512", "EOPNOTSUPP", 32770, 0xC03A001C, "belongs to the set /vms/s.vhds"},
		{"c.avhdx", "size=1G", "EINVAL", 32773, 0, `unknown argument "size"`},
	} {
		t.Run(tt.image+" "+tt.request, func(t *testing.T) {
			w := settable(t)
			before := w.host.Changes()
			a := w.ask("set", tt.image, tt.request)
			require.Error(t, a.Err)
			require.Equal(t, tt.errno, ops.Errno(a.Err), a.Sentence())
			require.Equal(t, tt.code, a.ReturnValue())
			require.Equal(t, tt.status, ops.StatusOf(a.Err))
			require.ErrorContains(t, a.Err, tt.text)
			require.Equal(t, before, w.host.Changes(), "nothing is written")
		})
	}
}

// Without a record of the old value nothing is changed.
func TestSetNeedsItsUndoRecord(t *testing.T) {
	for _, label := range []string{"undo.record", "undo.folder", "undo.name"} {
		w := settable(t)
		before := w.stored("/vms/c.avhdx")
		w.host.SetFault(func(c sim.Call) error {
			if c.Label == label {
				return syscall.ENOSPC
			}
			return nil
		})
		a := w.ask("set", "c.avhdx", "physical=512")
		require.ErrorIs(t, a.Err, syscall.ENOSPC)
		require.ErrorContains(t, a.Err, undoFile)
		require.Equal(t, before, w.stored("/vms/c.avhdx"))
		w.host.SetFault(nil)
	}
}

// A format that does not have the capability says so before anything is written.
func TestChangesThatAFormatCannotMake(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	for _, f := range o.Formats[:2] {
		open := f.Open
		f.Open = func(file ops.File, oo ops.OpenOptions) (ops.Layer, error) {
			l, err := open(file, oo)
			if w, ok := l.(*fakeWriter); ok {
				return struct{ ops.Writer }{w}, err
			}
			return l, err
		}
	}
	w.lib = ops.NewLibrary(o)
	w.image("/vms/p.vhdx", fakeImage{ID: guid(1), Findings: []string{"mend me"}})
	w.image("/vms/c.avhdx", recorded("p.vhdx"))
	before := w.host.Changes()
	for name, request := range map[string]string{"set-parent": "p.vhdx", "set": "physical=512"} {
		a := w.ask(name, "c.avhdx", request)
		require.ErrorIs(t, a.Err, errors.ErrUnsupported, name)
		require.Equal(t, uint32(32770), a.ReturnValue())
	}
	a := w.ask("check", "p.vhdx", "repair=true")
	require.ErrorIs(t, a.Err, errors.ErrUnsupported)
	require.Equal(t, before, w.host.Changes())
}
