package ops_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/iso"
	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// Child and Parent are the two ends of the first link that does not hold, from the
// leaf up.
func TestValidate(t *testing.T) {
	missing := func(w *world) { require.NoError(w, w.dirs["/vms"].Remove("1.vhdx")) }
	junk := func(name string) func(*world) {
		return func(w *world) {
			require.NoError(w, w.dirs["/vms"].Remove(name))
			w.put("/vms/"+name, append([]byte("vhdxfile"), make([]byte, 100<<10)...))
		}
	}
	other := func(w *world) {
		missing(w)
		w.put("/vms/1.vhdx", (&fixture.VHDX{Size: 8 << 20, DataWriteGUID: fixture.MustGUID(guid(9))}).Bytes())
	}
	set := func(w *world) { w.put("/vms/s.vhds", []byte("set:3.vhdx")) }
	for _, tt := range []struct {
		name          string
		image         string
		harm          func(*world)
		class         error
		child, parent any
	}{
		{"sound chain", "3.vhdx", func(*world) {}, nil, nil, nil},
		{"sound parent of a broken child", "1.vhdx", junk("3.vhdx"), nil, nil, nil},
		{"missing root", "3.vhdx", missing, ops.ErrParentMissing, "/vms/2.vhdx", `.\1.vhdx`},
		{"another root", "3.vhdx", other, ops.ErrParentMismatch, "/vms/2.vhdx", `.\1.vhdx`},
		{"damaged itself", "3.vhdx", junk("3.vhdx"), ops.ErrCorrupt, "/vms/3.vhdx", ""},
		{"a set", "s.vhds", set, nil, nil, nil},
		{"a set with a missing root", "s.vhds", func(w *world) { set(w); missing(w) }, ops.ErrParentMissing, "/vms/2.vhdx", `.\1.vhdx`},
		{"a set without its disk", "s.vhds", func(w *world) { set(w); require.NoError(w, w.dirs["/vms"].Remove("3.vhdx")) }, ops.ErrParentMissing, "/vms/s.vhds", "/vms/3.vhdx"},
		{"a set with a damaged disk", "s.vhds", func(w *world) { set(w); junk("3.vhdx")(w) }, ops.ErrCorrupt, "/vms/s.vhds", "/vms/3.vhdx"},
		{"a set that leads outside", "s.vhds", func(w *world) { w.put("/vms/s.vhds", []byte(`set:..\3.vhdx`)) }, ops.ErrCorrupt, "/vms/s.vhds", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := realWorld(t)
			o := w.options()
			o.Formats = []*ops.Format{vhd.Format, vhdx.Format, fakeSet()}
			w.lib = ops.NewLibrary(o)
			fixtureChain(w, "vhdx", 3, 512)
			tt.harm(w)
			before := w.host.Changes()
			a := w.do("validate", tt.image)
			require.Equal(t, "ValidateVirtualHardDisk", a.Operation)
			require.ErrorIs(t, a.Err, tt.class)
			require.Equal(t, tt.child, field(a, "Child"))
			require.Equal(t, tt.parent, field(a, "Parent"))
			require.Equal(t, before, w.host.Changes())
		})
	}
}

// An entry of a block table that cannot be used is found wherever in the chain.
func TestValidateLooksAtTheBlockTables(t *testing.T) {
	w := newWorld(t)
	w.line(3)
	require.NoError(t, w.dirs["/vms"].Remove("1.vhdx"))
	w.image("/vms/1.vhdx", fakeImage{ID: guid(1), Findings: []string{"entry 5", "entry 6"}})
	a := w.do("validate", "3.vhdx")
	require.ErrorIs(t, a.Err, ops.ErrCorrupt)
	require.ErrorContains(t, a.Err, "fake.finding: head: entry 5")
	require.Equal(t, []any{"/vms/2.vhdx", "/vms/1.vhdx"}, []any{field(a, "Child"), field(a, "Parent")})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	a = op(t, "validate").Do(ctx, &ops.Request{Library: w.lib, Image: w.lib.Top("3.vhdx")})
	require.ErrorIs(t, a.Err, context.Canceled)
}

// The rules that the service has for an ISO: whole sectors, room for a descriptor,
// a volume identifier.
func TestValidateISO(t *testing.T) {
	disc := func(size int, id string) []byte {
		b := make([]byte, size)
		if size > 16*2048+6 {
			copy(b[16*2048:], "\x01"+id)
		}
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		err  string
	}{
		{"sound", disc(40*2048, "CD001"), ""},
		{"not whole sectors", disc(40*2048+1, "CD001"), "iso.size"},
		{"no volume identifier", disc(40*2048, "XX001"), "no volume identifier of ISO 9660 or UDF"},
		{"too small", disc(16*2048+512, "CD001"), "no volume identifier"},
		{"empty", nil, "no volume identifier"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			o := w.options()
			o.Formats = []*ops.Format{iso.Format}
			w.lib = ops.NewLibrary(o)
			w.put("/vms/a.iso", tt.b)
			a := w.do("validate", "a.iso")
			if tt.err == "" {
				require.NoError(t, a.Err)
				return
			}
			require.ErrorIs(t, a.Err, ops.ErrCorrupt)
			require.ErrorContains(t, a.Err, tt.err)
			require.Equal(t, "/vms/a.iso", field(a, "Child"))
		})
	}
}

// The host's trouble is not the image's.
func TestValidateTellsTheHostsTroubleFromTheImages(t *testing.T) {
	w := newWorld(t)
	w.line(2)
	w.failOpens("/vms/1.vhdx", 1000)
	a := w.do("validate", "2.vhdx")
	require.Error(t, a.Err)
	require.False(t, errors.Is(a.Err, ops.ErrCorrupt))
	w.host.SetFault(nil)
}

// Bytes that nothing vouches for are served with the anomaly named, and are not
// valid.
func TestValidateRefusesAFooterWithAWrongChecksum(t *testing.T) {
	w := realWorld(t)
	v := fixture.VHD{Size: 4 << 20, Type: 2}
	b := v.Bytes()
	b[len(b)-512+60] ^= 0xff // cylinders, or what is near them
	w.put("/vms/a.vhd", b)
	_, err := w.read("a.vhd")
	require.NoError(t, err)
	a := w.do("validate", "a.vhd")
	require.ErrorIs(t, a.Err, ops.ErrCorrupt)
	require.ErrorContains(t, a.Err, "vhd.footer.checksum")
}
