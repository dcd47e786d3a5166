package tracking_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

const (
	rct   = folder + "/d.vhdx.rct"
	mrt   = folder + "/d.vhdx.mrt"
	stale = ".stale-by-vhdfs"
)

// foreign is a disk that Hyper-V tracked.
func foreign(t *testing.T) *sim.Host {
	t.Helper()
	w := newWorld(sim.New(), "d.vhdx")
	require.NoError(t, w.plant(small))
	require.NoError(t, errors.Join(w.write(3, 3), w.stop()))
	w.host.Put(rct, []byte("rct"))
	w.host.Put(mrt, []byte("mrt"))
	return w.host
}

// Whoever changes a disk makes what Hyper-V knows of it stale; whoever does not,
// leaves it.
func TestWhatRetiresForeignTracking(t *testing.T) {
	op := func(name, request string) func(w *world) error {
		return func(w *world) error {
			_, err := w.do(name, w.name, request)
			return err
		}
	}
	base := foreign(t)
	for _, tt := range []struct {
		name string
		do   func(w *world) error
		gone bool
	}{
		{"write", func(w *world) error { return w.write(1, 1) }, true},
		{"zero", func(w *world) error { return w.zero(3, 1, true) }, true},
		{"resize", op("resize", "+8M"), true},
		{"compact that finds nothing", op("compact", "mode=full"), false},
		{"a new id", func(w *world) error {
			_, err := w.do("tracking", w.name, "on")
			return errors.Join(err, op("tracking", "new")(w))
		}, true},
		{"settings", op("set", "VirtualDiskId=11111111-2222-4333-8444-555555555555"), true},
		{"convert-to-set", op("convert-to-set", "1"), true},
		{"open for writing", func(w *world) error { return w.open() }, false},
		{"flush", func(w *world) error { return errors.Join(w.open(), w.disk.Flush()) }, false},
		{"read", func(w *world) error { _, err := w.content(w.name); return err }, false},
		{"check", op("check", "1"), false},
		{"validate", op("validate", "1"), false},
		{"tracking on", op("tracking", "on"), false},
		{"copy", op("convert", "path=c.vhdx"), false},
		{"child", func(w *world) error { _, err := w.do("create", ".", "path=c.avhdx parent=d.vhdx"); return err }, false},
		{"plan", op("resize", "+8M dryrun=true"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(base.Clone(), "d.vhdx")
			require.NoError(t, tt.do(w))
			require.NoError(t, w.stop())
			for _, name := range []string{rct, mrt} {
				_, err := w.host.ReadFile(name)
				require.Equal(t, tt.gone, err != nil, name)
				_, err = w.host.ReadFile(name + stale)
				require.Equal(t, tt.gone, err == nil, name)
			}
		})
	}
}

// A merge writes the destination.
func TestAMergeRetiresForeignTracking(t *testing.T) {
	w := newWorld(foreign(t), "d.vhdx")
	_, err := w.do("create", ".", "path=c.avhdx parent=d.vhdx")
	require.NoError(t, err)
	w.name = "c.avhdx"
	require.NoError(t, errors.Join(w.write(2, 2), w.close()))
	_, err = w.host.ReadFile(rct)
	require.NoError(t, err)
	_, err = w.do("merge", "c.avhdx", "1")
	require.NoError(t, err)
	_, err = w.host.ReadFile(rct + stale)
	require.NoError(t, err)
	require.NoError(t, w.stop())
}

// Wherever the power goes: a disk that changed has no file that does not know.
func TestForeignTrackingIsRetiredFirst(t *testing.T) {
	base := foreign(t)
	was := base.Clone()
	job := crash.Job{
		Do: func(h *sim.Host) error {
			w := newWorld(h, "d.vhdx")
			return errors.Join(w.write(1, 1), w.disk.Flush(), w.stop())
		},
		Judge: func(h *sim.Host, done bool) error {
			_, err := h.ReadFile(rct)
			_, other := h.ReadFile(mrt)
			changed := !h.Bytes(folder+"/d.vhdx").Equal(was.Bytes(folder+"/d.vhdx"), 0)
			if changed && (err == nil || other == nil) {
				return errors.New("the disk changed, and a file does not know")
			}
			if done && !changed {
				return errors.New("nothing was written")
			}
			return nil
		},
	}
	_, err := job.Run(base, crash.Options{})
	require.NoError(t, err)
	_, err = job.Run(base, crash.Options{}, "foreign.rename")
	require.Error(t, err)
	whole := job.Do
	job.Do = func(h *sim.Host) error { // a program that was killed before it came to the sync
		for _, name := range []string{rct, mrt} {
			if err := h.Dir("/").Rename(name[1:], name[1:]+stale); err != nil {
				return err
			}
		}
		return whole(h)
	}
	_, err = job.Run(base, crash.Options{})
	require.NoError(t, err)
}

// A name that is taken gets a number; what cannot be renamed lets nobody write.
func TestForeignTrackingThatIsInTheWay(t *testing.T) {
	told := 0
	start := func(h *sim.Host) *ops.Library {
		return ops.NewLibrary(ops.LibraryOptions{Top: h.Dir(folder), Formats: []*ops.Format{vhdx.Format, vhd.Format},
			Retired: func(image ops.Ref, from, to string) { told++ }})
	}
	write := func(h *sim.Host) error {
		lib := start(h)
		d, err := lib.Open(lib.Top("d.vhdx"), ops.Write)
		require.NoError(t, err)
		_, err = d.WriteAt([]byte{1}, granule)
		return errors.Join(err, d.Close(), lib.Close())
	}
	h := foreign(t)
	was := h.Clone()
	h.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpRename {
			return errors.New("no rename")
		}
		return nil
	})
	require.ErrorContains(t, write(h), "d.vhdx.rct would not know, and that cannot be renamed")
	lib := start(h)
	d, err := lib.Open(lib.Top("d.vhdx"), ops.Write)
	require.NoError(t, err)
	_, err = d.WriteAt([]byte{1}, granule)
	require.Error(t, err)
	c := h.Clone()
	h.SetFault(nil)
	_, err = d.WriteAt([]byte{1}, granule)
	require.NoError(t, err, "it is tried again")
	require.NoError(t, errors.Join(d.Close(), lib.Close()))
	require.Equal(t, 2, told)
	h, told = c, 0
	require.Zero(t, told)
	require.True(t, h.Bytes(folder+"/d.vhdx").Equal(was.Bytes(folder+"/d.vhdx"), 0))
	require.NoError(t, write(h))
	require.Equal(t, 2, told)
	h.Put(rct, []byte("new"))
	require.NoError(t, write(h))
	require.Equal(t, 3, told)
	b, err := h.ReadFile(rct + stale + ".2")
	require.NoError(t, err)
	require.Equal(t, "new", string(b))
	b, err = h.ReadFile(rct + stale)
	require.NoError(t, err)
	require.Equal(t, "rct", string(b))
}
