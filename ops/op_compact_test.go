package ops_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// Modes, with the numbers of a dry run, which are those of the run.
func TestCompactModes(t *testing.T) {
	free := ops.Layout{GPT: true, Free: []ops.Range{{Off: sec, Len: 2*sec + 1}}}
	sectors := map[int64]byte{0: 0, 1: 1, 2: 2, 3: 3, 4: 4}
	for _, tt := range []struct {
		name, image string
		request     string
		mode        string
		dropped     int64
		trimmed     int64
		moved       bool
		kept        []int64 // sectors that are not zeros
	}{
		{"the default of a vhdx", "fakex", "1", "quick", 0, sec / 2, true, []int64{1, 2, 3, 4}},
		{"the default of a vhd", "fakev", "run", "full", 3, sec / 2, true, []int64{3, 4}},
		{"full", "fakex", "mode=full", "full", 3, sec / 2, true, []int64{3, 4}},
		{"full by number", "fakex", "Mode=0", "full", 3, sec / 2, true, []int64{3, 4}},
		{"quick", "fakev", "mode=quick", "quick", 0, sec / 2, true, []int64{1, 2, 3, 4}},
		{"quick by number", "fakev", "mode=1", "quick", 0, sec / 2, true, []int64{1, 2, 3, 4}},
		{"retrim", "fakex", "mode=retrim", "retrim", 0, sec / 2, false, []int64{1, 2, 3, 4}},
		{"retrim by number", "fakex", "mode=2", "retrim", 0, sec / 2, false, []int64{1, 2, 3, 4}},
		{"pretrimmed", "fakex", "mode=PreTrimmed", "pretrimmed", 0, sec / 2, true, []int64{1, 2, 3, 4}},
		{"pretrimmed by number", "fakex", "mode=3", "pretrimmed", 0, sec / 2, true, []int64{1, 2, 3, 4}},
		{"prezeroed", "fakex", "mode=prezeroed", "prezeroed", 1, sec / 2, true, []int64{1, 2, 3, 4}},
		{"prezeroed by number", "fakex", "mode=4", "prezeroed", 1, sec / 2, true, []int64{1, 2, 3, 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _, c := tabled(t, free)
			w.image("/vms/a.vhdx", fakeImage{Magic: tt.image, ID: guid(1), blocks: sectors})
			o, err := w.lib.Operate(w.lib.Top("a.vhdx"), ops.Terms{Name: "prepare", Quiet: true})
			require.NoError(t, err)
			_, err = o.WriteAt(make([]byte, sec), 0) // a sector that holds zeros
			require.NoError(t, errors.Join(err, o.Close()))
			want := map[bool]int64{true: tt.dropped}[tt.moved]
			for _, dry := range []bool{true, false} {
				request := tt.request
				if dry {
					request += " dryrun=true"
				}
				a := w.ask("compact", "a.vhdx", request)
				require.NoError(t, a.Err)
				require.Equal(t, tt.mode, value(a, "Mode"))
				require.Equal(t, tt.dropped, value(a, "BlocksDropped"))
				require.Equal(t, want, value(a, "BlocksMoved"))
				require.Equal(t, tt.trimmed, value(a, "BytesTrimmed"))
				require.Equal(t, want*sec, value(a, "FileSizeBefore").(int64)-value(a, "FileSizeAfter").(int64))
				require.Nil(t, value(a, "Warnings"))
				if dry {
					b, err := w.read("a.vhdx")
					require.NoError(t, err)
					require.Equal(t, byte(1), b[sec], "a dry run")
					require.Equal(t, guid(1), w.found("a.vhdx").Info.LinkID.String())
				}
			}
			b, err := w.read("a.vhdx")
			require.NoError(t, err)
			var kept []int64
			for s := range int64(8) {
				if !bytes.Equal(b[s*sec:(s+1)*sec], make([]byte, sec)) {
					kept = append(kept, s)
				}
			}
			require.Equal(t, tt.kept, kept)
			require.Equal(t, len(tt.kept) < 4, w.found("a.vhdx").Info.LinkID.String() == guid(98), "the id tells of other bytes")
			require.Equal(t, len(tt.kept) < 4, c.asked[len(c.asked)-1] == "replaced")
			require.Equal(t, "launder", c.asked[0])
		})
	}
}

func TestCompactRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, request string
		image         fakeImage
		errno         string
		ret           uint32
		text          string
	}{
		{"an empty request", "\n", fakeImage{}, "EINVAL", 32773, "write 1 or run, or [mode=full|quick|retrim|pretrimmed|prezeroed]"},
		{"a bare mode", "full", fakeImage{}, "EINVAL", 32773, `"full" needs a name in front`},
		{"a bare number", "0", fakeImage{}, "EINVAL", 32773, `"0" needs a name in front`},
		{"no mode", "mode=", fakeImage{}, "EINVAL", 32773, `mode="": bad argument, want full|quick`},
		{"an unknown mode", "mode=5", fakeImage{}, "EINVAL", 32773, `mode="5": bad argument`},
		{"a negative mode", "mode=-1", fakeImage{}, "EINVAL", 32773, `mode="-1": bad argument`},
		{"twice", "mode=0 mode=1", fakeImage{}, "EINVAL", 32773, `argument "mode" is given twice`},
		{"unknown", "level=9", fakeImage{}, "EINVAL", 32773, `unknown argument "level"`},
		{"read-only", "1", fakeImage{ReadOnly: "the log is odd"}, "EROFS", 32768, "/vms/a.vhdx: the log is odd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _, c := tabled(t, ops.Layout{})
			w.image("/vms/a.vhdx", tt.image)
			w.host.Freeze()
			a := w.ask("compact", "a.vhdx", tt.request)
			require.Error(t, a.Err)
			require.Equal(t, tt.errno, ops.Errno(a.Err))
			require.Equal(t, tt.ret, a.ReturnValue())
			require.Contains(t, a.Sentence(), tt.text)
			require.Zero(t, w.host.Refused())
			require.Empty(t, c.asked)
		})
	}
}

// What no ancestor holds can go; over anything else zeros stay, and over an
// ancestor's own zeros they need not.
func TestCompactLooksBelow(t *testing.T) {
	w, _, _ := tabled(t, ops.Layout{})
	w.image("/vms/1.vhdx", fakeImage{ID: guid(1), Size: 6 * sec, blocks: map[int64]byte{0: 1, 4: 4}})
	o, err := w.lib.Operate(w.lib.Top("1.vhdx"), ops.Terms{Name: "prepare"})
	require.NoError(t, err)
	_, err = o.WriteAt(make([]byte, sec), 3*sec) // bytes that are zeros
	require.NoError(t, errors.Join(err, o.Close()))
	w.image("/vms/2.vhdx", fakeImage{ID: guid(2), Parent: []string{guid(1)}, Paths: []fakePath{{ops.PathRelative, `.\1.vhdx`}}, blocks: map[int64]byte{0: 0, 1: 2}})
	w.image("/vms/3.vhdx", fakeImage{ID: guid(3), Parent: []string{guid(2)}, Paths: []fakePath{{ops.PathRelative, `.\2.vhdx`}}})
	h := w.open("3.vhdx", ops.Write)
	_, err = h.WriteAt(make([]byte, 8*sec), 0)
	require.NoError(t, err)
	a := w.ask("compact", "3.vhdx", "mode=prezeroed")
	require.NoError(t, a.Err)
	require.Equal(t, int64(8), value(a, "BlocksDropped"))
	for s, want := range []ops.ChainExtent{
		{Extent: ops.Extent{Kind: ops.Zero}, Depth: 1},             // the parent's zeros
		{Extent: ops.Extent{Kind: ops.Zero}, Depth: 0},             // over the parent's data
		{Extent: ops.Extent{Kind: ops.Zero}, Depth: 2, Hole: true}, // nobody's
		{Extent: ops.Extent{Kind: ops.Data}, Depth: 2},             // the root's bytes, which are zeros
		{Extent: ops.Extent{Kind: ops.Zero}, Depth: 0},             // over the root's data
		{Extent: ops.Extent{Kind: ops.Zero}, Depth: 2, Hole: true},
		{Extent: ops.Extent{Kind: ops.Zero}, Depth: 2, Hole: true}, // past the root's end
		{Extent: ops.Extent{Kind: ops.Zero}, Depth: 2, Hole: true},
	} {
		x, err := h.Extent(int64(s)*sec, sec)
		require.NoError(t, err)
		x.Len, x.Pos = 0, 0
		require.Equal(t, want, x, "sector %d", s)
	}
	b := make([]byte, 8*sec)
	_, err = h.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, make([]byte, 8*sec), b)
}

// An image with children can be compacted, and a child opened meanwhile; what a
// child may use is not given up.
func TestCompactAParent(t *testing.T) {
	free := ops.Layout{GPT: true, Free: []ops.Range{{Off: 0, Len: 8 * sec}}}
	w, tab, _ := tabled(t, free)
	w.line(2)
	before, err := w.read("1.vhdx")
	require.NoError(t, err)
	a := w.ask("compact", "1.vhdx", "mode=full")
	require.NoError(t, a.Err)
	require.Contains(t, value(a, "Warnings").([]string)[0], "or has children")
	require.Zero(t, tab.looks)
	after, err := w.read("1.vhdx")
	require.NoError(t, err)
	require.Equal(t, before, after)

	o, err := w.lib.Operate(w.lib.Top("1.vhdx"), ops.Terms{Name: "work", Quiet: true})
	require.NoError(t, err)
	w.open("2.vhdx", ops.Write)
	require.NoError(t, o.Close())
}

// Space outside of partitions stays as soon as somebody writes the disk, or may
// read it through a child.
func TestCompactLeavesWhatGuestsMayUse(t *testing.T) {
	free := ops.Layout{GPT: true, Free: []ops.Range{{Off: 0, Len: 8 * sec}}}
	image := fakeImage{ID: guid(1), blocks: map[int64]byte{0: 1, 1: 2}}
	t.Run("a writer", func(t *testing.T) {
		w, _, _ := tabled(t, free)
		w.image("/vms/a.vhdx", image)
		w.open("a.vhdx", ops.Write)
		a := w.ask("compact", "a.vhdx", "mode=full")
		require.NoError(t, a.Err)
		require.Equal(t, int64(0), value(a, "BlocksDropped"))
		require.Contains(t, value(a, "Warnings").([]string)[0], "the disk is open for writing")
	})
	t.Run("a reader", func(t *testing.T) {
		w, _, _ := tabled(t, free)
		w.image("/vms/a.vhdx", image)
		w.open("a.vhdx", ops.Read)
		require.Equal(t, int64(2), value(w.ask("compact", "a.vhdx", "mode=full"), "BlocksDropped"))
	})
	t.Run("a writer who comes", func(t *testing.T) {
		w, tab, _ := tabled(t, free)
		w.image("/vms/a.vhdx", image)
		tab.onLook = func() { require.NoError(t, w.open("a.vhdx", ops.Write).Close()) }
		require.Equal(t, int64(0), value(w.ask("compact", "a.vhdx", "mode=full"), "BlocksDropped"))
	})
	t.Run("a child that comes", func(t *testing.T) {
		w, tab, _ := tabled(t, free)
		w.image("/vms/a.vhdx", image)
		tab.onLook = func() {
			w.image("/vms/c.vhdx", fakeImage{ID: guid(2), Parent: []string{guid(1)}, Paths: []fakePath{{ops.PathRelative, `.\a.vhdx`}}})
			w.open("c.vhdx", ops.Read)
		}
		require.Equal(t, int64(0), value(w.ask("compact", "a.vhdx", "mode=full"), "BlocksDropped"))
	})
}

// A fixed disk is looked at and left alone.
func TestCompactOfAFixedDisk(t *testing.T) {
	w, _, _ := tabled(t, ops.Layout{})
	w.image("/vms/f.vhdx", fakeImage{Fixed: true, blocks: map[int64]byte{0: 0}})
	a := w.ask("compact", "f.vhdx", "mode=full")
	require.NoError(t, a.Err)
	require.Equal(t, value(a, "FileSizeBefore"), value(a, "FileSizeAfter"))
	require.NotZero(t, value(a, "FileSizeBefore"))
	require.Equal(t, int64(0), value(a, "BlocksDropped"))
}

// It ends where it is told to, says how far it came, and can be run again.
func TestCompactIsCancelled(t *testing.T) {
	w, _, _ := tabled(t, ops.Layout{})
	w.image("/vms/a.vhdx", fakeImage{ID: guid(1)})
	h := w.open("a.vhdx", ops.Write)
	_, err := h.WriteAt(make([]byte, 8*sec), 0)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	o := op(t, "compact")
	args, err := o.Parse("mode=prezeroed")
	require.NoError(t, err)
	a := o.Do(ctx, &ops.Request{Library: w.lib, Image: w.lib.Top("a.vhdx"), Args: args, Progress: func(done, _ int64) {
		if done == 3 {
			cancel()
		}
	}})
	require.Equal(t, "ECANCELED", ops.Errno(a.Err))
	require.Equal(t, int64(3), value(a, "BlocksDropped"))
	require.Equal(t, int64(5), value(w.ask("compact", "a.vhdx", "mode=prezeroed"), "BlocksDropped"))
}

// A cancel does not wait for what programs wrote.
func TestCompactIsCancelledWhileLaundering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := tabled(t, ops.Layout{})
		w.line(1)
		stuck := &stuckCaches{asked: make(chan struct{}), release: make(chan struct{})}
		w.lib.SetCaches(stuck)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-stuck.asked
			cancel()
		}()
		o := op(t, "compact")
		args, err := o.Parse("1")
		require.NoError(t, err)
		a := o.Do(ctx, &ops.Request{Library: w.lib, Image: w.lib.Top("1.vhdx"), Args: args})
		require.ErrorIs(t, a.Err, context.Canceled)
		close(stuck.release)
	})
}

type stuckCaches struct{ asked, release chan struct{} }

func (c *stuckCaches) Launder(ops.FileID) error {
	close(c.asked)
	<-c.release
	return nil
}
func (c *stuckCaches) Replaced(ops.FileID) error { return nil }
func (c *stuckCaches) Resized(ops.FileID) error  { return nil }

func TestCompactThatFails(t *testing.T) {
	w, tab, c := tabled(t, ops.Layout{})
	w.line(1)
	c.err = syscall.ENOSPC
	require.ErrorIs(t, w.ask("compact", "1.vhdx", "1").Err, syscall.ENOSPC)
	c.err = nil
	tab.err = io.ErrUnexpectedEOF
	require.ErrorIs(t, w.ask("compact", "1.vhdx", "mode=full").Err, io.ErrUnexpectedEOF)
	require.NoError(t, w.ask("compact", "1.vhdx", "1").Err)
}
