package ops_test

import (
	"bytes"
	"context"
	"errors"
	iofs "io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

func TestConvert(t *testing.T) {
	for _, tt := range []struct {
		source, request string
		typ             ops.Type
		block           uint32
	}{
		{"3.vhdx", "path=n.vhdx", ops.Dynamic, 32 * mib},
		{"3.vhdx", "n.vhdx block=1M", ops.Dynamic, mib},
		{"3.vhdx", "path=n.vhdx type=fixed", ops.Fixed, 0},
		{"3.vhdx", "path=n.vhd", ops.Dynamic, 2 * mib},
		{"3.vhdx", "path=n.vhd block=512K sector=4096", ops.Dynamic, 512 << 10},
		{"3.vhdx", "path=n.vhd type=fixed format=vhd", ops.Fixed, 0},
		{"3.vhdx", "path=n.raw", 0, 0},
		{"3.vhdx", "path=n.bin format=raw", 0, 0},
		{"3.vhdx", "path=n.vhdx parent=2.vhdx", ops.Differencing, 2 * mib},
		{"3.vhdx", "path=n.vhdx parent=1.vhdx type=4 block=1M", ops.Differencing, mib},
		{"3.vhdx", "path=n.vhdx parent=3.vhdx", ops.Differencing, 2 * mib},
		{"1.vhdx", "path=n.vhdx parent=3.vhdx", ops.Differencing, 2 * mib},
		{"3.vhdx", "path=n.vhd parent=1.vhd", ops.Differencing, 2 * mib},
		{"3.vhd", "path=n.vhdx", ops.Dynamic, 32 * mib},
		{"3.vhd", "path=n.vhd", ops.Dynamic, 2 * mib},
		{"3.vhd", "path=n.raw", 0, 0},
		{"3.vhd", "path=n.vhd parent=1.vhd", ops.Differencing, 2 * mib},
		{"1.vhd", "path=n.vhdx type=fixed", ops.Fixed, 0},
	} {
		t.Run(tt.source+" "+tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 3, 512)
			fixtureChain(w, "vhd", 3, 512)
			want := readAll(t, w, tt.source)
			source, err := w.host.ReadFile("/vms/" + tt.source)
			require.NoError(t, err)
			a := w.ask("convert", tt.source, tt.request)
			require.NoError(t, a.Err)
			require.Equal(t, "ConvertVirtualHardDisk", a.Operation)
			after, err := w.host.ReadFile("/vms/" + tt.source)
			require.NoError(t, err)
			require.True(t, bytes.Equal(source, after), "the source stays as it was")
			name := field(a, "Path").(string)[len("/vms/"):]
			if tt.typ == 0 {
				raw, err := w.host.ReadFile("/vms/" + name)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, raw))
				return
			}
			f := w.found(name)
			require.Equal(t, tt.typ, f.Info.Type)
			if tt.block != 0 {
				require.Equal(t, tt.block, f.Info.BlockSize)
			}
			require.Empty(t, f.Info.Anomalies)
			require.True(t, bytes.Equal(want, readAll(t, w, name)))
			require.NoError(t, w.do("check", name).Err)
			require.NotContains(t, w.hostNames("/vms"), ops.StateDir)
		})
	}
}

// Sectors of 4096 bytes stay; a VHD cannot have them.
func TestConvertKeepsSectors(t *testing.T) {
	w := makingWorld(t)
	want := fixtureChain(w, "vhdx", 2, 4096)
	require.NoError(t, w.ask("convert", "2.vhdx", "path=n.vhdx sector=512").Err)
	require.EqualValues(t, 4096, w.found("n.vhdx").Info.LogicalSector)
	require.True(t, bytes.Equal(want, readAll(t, w, "n.vhdx")))
	a := w.ask("convert", "2.vhdx", "path=n.vhd")
	require.ErrorIs(t, a.Err, ops.ErrUsage)
	require.ErrorContains(t, a.Err, "sectors of 4096/0")
}

// What is a hole of the source, or zeros in its data, takes no space in the copy.
func TestConvertLeavesZerosOut(t *testing.T) {
	w := makingWorld(t)
	w.put("/vms/s.vhdx", fixture.VHDX{Size: 64 * mib, BlockSize: mib, Writes: []fixture.Write{
		{Off: 0, Data: bytes.Repeat([]byte{1}, 4096)}, {Off: 40 * mib, Data: make([]byte, 8*mib)}}}.Bytes())
	for _, tt := range []struct {
		request string
		most    int64
	}{{"path=n.vhdx block=1M", 6 * mib}, {"path=n.vhd", 3 * mib}, {"path=n.raw", mib}} {
		require.NoError(t, w.ask("convert", "s.vhdx", tt.request).Err)
	}
	require.LessOrEqual(t, w.found("n.vhdx").Stat.Size, int64(6*mib))
	require.LessOrEqual(t, w.found("n.vhd").Stat.Size, int64(3*mib))
	st, err := w.host.Dir("/vms").Stat("n.raw")
	require.NoError(t, err)
	require.EqualValues(t, 64*mib, st.Size)
	require.LessOrEqual(t, st.Blocks*512, int64(mib))
}

// Zeros in the source where the parent has data are stored.
func TestConvertToAChildKeepsZeros(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		w := makingWorld(t)
		fixtureChain(w, ext, 1, 512)
		require.NoError(t, w.ask("create", ".", "path=zero."+ext+" size=8M").Err)
		require.NoError(t, w.ask("convert", "zero."+ext, "path=n."+ext+" parent=1."+ext).Err)
		require.True(t, bytes.Equal(make([]byte, 8*mib), readAll(t, w, "n."+ext)))
	}
}

func TestConvertFloppyAndGrow(t *testing.T) {
	w := makingWorld(t)
	floppy := bytes.Repeat([]byte("floppy! "), 1440<<10/8)
	w.put("/vms/f.vfd", floppy)
	require.NoError(t, w.ask("convert", "f.vfd", "path=n.vhdx size=4M").Err)
	require.True(t, bytes.Equal(append(bytes.Clone(floppy), make([]byte, 4*mib-len(floppy))...), readAll(t, w, "n.vhdx")))
	require.NoError(t, w.ask("convert", "f.vfd", "path=n.vfd").Err)
	require.True(t, bytes.Equal(floppy, readAll(t, w, "n.vfd")))
	a := w.ask("convert", "n.vhdx", "path=m.vfd")
	require.ErrorIs(t, a.Err, ops.ErrUsage)
	require.ErrorContains(t, a.Err, "size 4194304")
}

func TestCreateFromSource(t *testing.T) {
	w := makingWorld(t)
	want := fixtureChain(w, "vhdx", 2, 512)
	w.put("/vms/s.raw", want)
	w.put("/vms/odd.bin", want[:4*mib+100])
	for _, request := range []string{"path=a.vhdx source=s.raw", "path=b.vhd source=2.vhdx type=fixed", "path=c.vhdx source=s.raw sector=4096"} {
		require.NoError(t, w.ask("create", ".", request).Err)
	}
	for _, name := range []string{"a.vhdx", "b.vhd", "c.vhdx"} {
		require.True(t, bytes.Equal(want, readAll(t, w, name)), name)
	}
	require.NoError(t, w.ask("create", ".", "path=d.vhd source=odd.bin").Err)
	require.True(t, bytes.Equal(append(bytes.Clone(want[:4*mib+100]), make([]byte, 412)...), readAll(t, w, "d.vhd")))
}

func TestConvertRefuses(t *testing.T) {
	for _, tt := range []struct {
		request string
		class   error
		text    string
	}{
		{"run", ops.ErrUsage, `no format has the extension ""`},
		{"path=n.vhd format=vhdx", ops.ErrUsage, `not with the extension ".vhd"`},
		{"path=n.vhd format=raw", ops.ErrUsage, `not with the extension ".vhd"`},
		{"path=n.bin", ops.ErrUsage, "name one with format="},
		{"path=n.iso", errors.ErrUnsupported, "makes no iso images"},
		{"path=n.raw type=dynamic", ops.ErrUsage, "the file is the disk"},
		{"path=n.raw block=1M", ops.ErrUsage, "the file is the disk"},
		{"path=n.raw parent=1.vhdx", ops.ErrUsage, "the file is the disk"},
		{"path=n.vfd", ops.ErrUsage, "size 8388608"},
		{"path=n.vhdx size=4M", ops.ErrUsage, "the source has 8388608 bytes"},
		{"path=n.vhdx block=3M", ops.ErrUsage, "block size 3145728"},
		{"path=n.vhdx type=differencing", ops.ErrUsage, "a differencing image has a parent"},
		{"path=n.vhdx type=fixed parent=1.vhdx", ops.ErrUsage, "no other has"},
		{"path=n.vhd parent=1.vhdx", ops.ErrUsage, "a vhdx cannot be the parent of a vhd"},
		{"path=1.vhdx", iofs.ErrExist, "nothing is ever overwritten"},
		{"path=2.vhdx", iofs.ErrExist, "nothing is ever overwritten"},
		{"path=../n.vhdx", ops.ErrUsage, `has no ".."`},
		{"path=/other/n.vhdx", ops.ErrForbidden, "outside"},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 2, 512)
			before := w.hostNames("/vms")
			a := w.ask("convert", "2.vhdx", tt.request)
			require.ErrorIs(t, a.Err, tt.class)
			require.ErrorContains(t, a.Err, tt.text)
			require.Equal(t, before, w.hostNames("/vms"))
		})
	}
}

func TestConvertOfAnImageInUse(t *testing.T) {
	w := makingWorld(t)
	fixtureChain(w, "vhdx", 2, 512)
	h := w.open("2.vhdx", ops.Write)
	a := w.ask("convert", "2.vhdx", "path=n.vhdx")
	require.ErrorIs(t, a.Err, ops.ErrBusy)
	require.ErrorContains(t, a.Err, "2.vhdx is open for writing")
	require.NoError(t, h.Close())
	// Nor does a writer come while it is copied.
	o := op(t, "convert")
	args, err := o.Parse("path=n.vhdx")
	require.NoError(t, err)
	var all, during error = nil, errors.New("no progress was told")
	var last int64
	a = o.Do(context.Background(), &ops.Request{Library: w.lib, Image: w.lib.Top("2.vhdx"), Args: args, Progress: func(done, of int64) {
		if last == 0 {
			_, during = w.lib.Open(w.lib.Top("2.vhdx"), ops.Write)
		}
		if done < last || of != 8*mib {
			all = errors.New("progress goes back")
		}
		last = done
	}})
	require.NoError(t, a.Err)
	require.NoError(t, all)
	require.EqualValues(t, 8*mib, last)
	require.ErrorIs(t, during, ops.ErrBusy)
	h = w.open("2.vhdx", ops.Write)
	require.NoError(t, h.Close())
}

func TestConvertStops(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *world, cancel func())
		want error
	}{
		{"cancelled", func(_ *world, cancel func()) { cancel() }, context.Canceled},
		{"host is full", func(w *world, _ func()) {
			w.host.SetFault(func(c sim.Call) error {
				if c.Op == sim.OpWrite {
					return syscall.ENOSPC
				}
				return nil
			})
		}, syscall.ENOSPC},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 1, 512)
			before := w.hostNames("/vms")
			ctx, cancel := context.WithCancel(context.Background())
			o := op(t, "convert")
			args, err := o.Parse("path=n.vhdx block=1M")
			require.NoError(t, err)
			a := o.Do(ctx, &ops.Request{Library: w.lib, Image: w.lib.Top("1.vhdx"), Args: args,
				Progress: func(int64, int64) { tt.do(w, cancel) }})
			require.ErrorIs(t, a.Err, tt.want)
			require.Equal(t, before, w.hostNames("/vms"))
			h := w.open("1.vhdx", ops.Write)
			require.NoError(t, h.Close())
		})
	}
}
