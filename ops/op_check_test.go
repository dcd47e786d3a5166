package ops_test

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// op is an operation of the table.
func op(t *testing.T, name string) *ops.Op {
	t.Helper()
	i := slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == name })
	require.GreaterOrEqual(t, i, 0, name)
	return ops.All[i]
}

func (w *world) do(name, image string) ops.Answer {
	w.Helper()
	return op(w.T, name).Do(context.Background(), &ops.Request{Library: w.lib, Image: w.lib.Top(image)})
}

func field(a ops.Answer, name string) any {
	for _, f := range a.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

func reports(a ops.Answer) []ops.Report { return field(a, "Images").([]ops.Report) }

func names(r ops.Report) []string {
	list := []string{}
	for _, a := range r.Anomalies {
		list = append(list, a.Name)
	}
	return list
}

func TestCheckOfASoundChain(t *testing.T) {
	w := realWorld(t)
	fixtureChain(w, "vhdx", 3, 512)
	before := w.host.Changes()
	a := w.do("check", "3.vhdx")
	require.NoError(t, a.Err)
	require.Len(t, reports(a), 3)
	for i, name := range []string{"/vms/3.vhdx", "/vms/2.vhdx", "/vms/1.vhdx"} {
		require.Equal(t, name, reports(a)[i].Path)
		require.Equal(t, "vhdx", reports(a)[i].Format)
		require.Zero(t, reports(a)[i].Errors+reports(a)[i].Warnings, "%v", reports(a)[i])
	}
	require.Equal(t, before, w.host.Changes(), "nothing is written")
}

// Two blocks at one place: nothing of that stops a reader, so that only a look at
// the table finds it.
func TestCheckFindsWhatOpeningDoesNot(t *testing.T) {
	w := realWorld(t)
	v := fixture.VHDX{Size: 8 << 20, BlockSize: 1 << 20, Writes: []fixture.Write{{Off: 0, Data: make([]byte, 512)}}}
	m, err := v.Build()
	require.NoError(t, err)
	v.Entries = map[int64]uint64{3: uint64(m.Blocks[0]) | 6}
	w.put("/vms/a.vhdx", v.Bytes())
	_, err = w.read("a.vhdx")
	require.NoError(t, err)
	a := w.do("validate", "a.vhdx")
	require.ErrorContains(t, a.Err, "vhdx.bat.overlap: bat entry 3")
	require.Equal(t, "/vms/a.vhdx", field(a, "Child"))
	a = w.do("check", "a.vhdx")
	require.ErrorIs(t, a.Err, ops.ErrCorrupt)
	require.ErrorContains(t, a.Err, "1 findings in 1 images")
	require.Equal(t, []string{"vhdx.bat.overlap"}, names(reports(a)[0]))
	require.Equal(t, 1, reports(a)[0].Errors)
}

func TestCheckListsNoMoreThanAPersonReads(t *testing.T) {
	w := realWorld(t)
	v := fixture.VHDX{Size: 2 << 30, BlockSize: 1 << 20, Entries: map[int64]uint64{}}
	for i := range int64(1500) {
		v.Entries[i] = 5 // no such state
	}
	w.put("/vms/a.vhdx", v.Bytes())
	a := w.do("check", "a.vhdx")
	require.ErrorContains(t, a.Err, "1500 findings")
	require.Equal(t, 1500, reports(a)[0].Errors)
	require.Len(t, reports(a)[0].Anomalies, 1000)
}

func TestCheckOfABrokenChainStillReports(t *testing.T) {
	w := realWorld(t)
	fixtureChain(w, "vhd", 3, 512)
	require.NoError(t, w.dirs["/vms"].Remove("1.vhd"))
	a := w.do("check", "3.vhd")
	require.ErrorIs(t, a.Err, ops.ErrCorrupt)
	require.Len(t, reports(a), 2)
	require.Empty(t, names(reports(a)[0]))
	require.Equal(t, []string{"chain.parent.missing"}, names(reports(a)[1]))
}

func TestCheckOfWhatIsNoImage(t *testing.T) {
	w := realWorld(t)
	w.put("/vms/a.vhdx", bytes.Repeat([]byte("junk"), 10_000))
	a := w.do("check", "a.vhdx")
	require.ErrorIs(t, a.Err, ops.ErrCorrupt)
	require.Equal(t, []string{"image.open"}, names(reports(a)[0]))
	require.Equal(t, "", reports(a)[0].Format)
}

func TestCheckCanBeCancelled(t *testing.T) {
	w := realWorld(t)
	fixtureChain(w, "vhdx", 1, 512)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	a := op(t, "check").Do(ctx, &ops.Request{Library: w.lib, Image: w.lib.Top("1.vhdx")})
	require.ErrorIs(t, a.Err, context.Canceled)
}

// A failing disk is not a finding about the image.
func TestCheckTellsTheHostsTroubleFromTheImages(t *testing.T) {
	w := realWorld(t)
	fixtureChain(w, "vhdx", 1, 512)
	require.NoError(t, w.do("check", "1.vhdx").Err)
	w.failOpens("/vms/1.vhdx", 1)
	a := w.do("check", "1.vhdx")
	require.Error(t, a.Err)
	require.NotErrorIs(t, a.Err, ops.ErrCorrupt)
	w.host.SetFault(func(sim.Call) error { return nil })
}

func TestOpenLayerOfASetIsItsLeaf(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/leaf.avhdx", fakeImage{ID: guid(1), blocks: map[int64]byte{0: 'x'}})
	w.put("/vms/a.vhds", []byte("set:leaf.avhdx"))
	l, err := w.lib.OpenLayer(w.lib.Top("a.vhds"))
	require.NoError(t, err)
	b := make([]byte, 512)
	n, k, err := l.ReadRun(b, 0)
	require.NoError(t, err)
	require.Equal(t, 512, n)
	require.Equal(t, ops.Data, k)
	require.Equal(t, byte('x'), b[0])
	require.NoError(t, l.Close())
}
