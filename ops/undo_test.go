package ops_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// Undo goes back step by step, over changes that took place and are not undone.
func TestSetParentUndo(t *testing.T) {
	w := stray(t)
	first := w.stored("/vms/c.avhdx")
	for i := range 3 {
		w.image("/vms/"+strconv.Itoa(i)+".vhdx", fakeImage{ID: guid(i + 10)})
	}
	ids := func() []string { return w.stored("/vms/c.avhdx").Parent }
	set := func(i int) {
		t.Helper()
		require.NoError(t, w.ask("set-parent", "c.avhdx", strconv.Itoa(i)+".vhdx ignoreidmismatch=true").Err)
		require.Equal(t, []string{guid(i + 10)}, ids())
	}
	undo := func() ops.Answer { return w.ask("set-parent", "c.avhdx", "undo=true") }
	set(0)
	set(1)
	a := w.ask("set-parent", "c.avhdx", "undo=true dryrun=true")
	require.NoError(t, a.Err)
	require.Equal(t, []string{guid(11)}, ids())
	require.NoError(t, undo().Err)
	require.Equal(t, []string{guid(10)}, ids())
	set(2)
	require.NoError(t, undo().Err)
	require.Equal(t, []string{guid(10)}, ids())
	a = undo()
	require.NoError(t, a.Err)
	require.Contains(t, field(a, "Warnings").([]string)[0], "no image with id "+guid(1))
	require.Equal(t, first.Parent, ids())
	require.Equal(t, first.Paths[0], w.stored("/vms/c.avhdx").Paths[0])
	a = undo()
	require.ErrorIs(t, a.Err, ops.ErrUsage)
	require.ErrorContains(t, a.Err, "holds no change of the parent to be undone")
}

// Paths of another machine come back, too, when the id and the place were right all
// the time.
func TestUndoOfPathsAlone(t *testing.T) {
	w := stray(t)
	im := recorded(`.\new.vhdx`)
	im.Paths = append(im.Paths, fakePath{ops.PathAbsolute, `C:\vms\new.vhdx`})
	require.NoError(t, w.dirs["/vms"].Remove("c.avhdx"))
	w.image("/vms/c.avhdx", im)
	w.image("/vms/new.vhdx", parent)
	require.NoError(t, w.ask("set-parent", "c.avhdx", "new.vhdx").Err)
	require.Equal(t, `\vms\new.vhdx`, w.stored("/vms/c.avhdx").Paths[1].Path)
	require.NoError(t, w.ask("set-parent", "c.avhdx", "undo=true").Err)
	require.Equal(t, `C:\vms\new.vhdx`, w.stored("/vms/c.avhdx").Paths[1].Path)
}

// What another program recorded since is not thrown away.
func TestUndoAfterSomethingElseChangedTheParent(t *testing.T) {
	w := stray(t)
	w.image("/vms/p.vhdx", parent)
	require.NoError(t, w.ask("set-parent", "c.avhdx", "p.vhdx").Err)
	require.NoError(t, w.dirs["/vms"].Remove("c.avhdx"))
	im := recorded(`.\other.vhdx`)
	im.Parent = []string{guid(50)}
	w.image("/vms/c.avhdx", im)
	a := w.ask("set-parent", "c.avhdx", "undo=true")
	require.ErrorIs(t, a.Err, ops.ErrChanged)
	require.ErrorContains(t, a.Err, "something else changed that")
}

// An undo record is durable before the image is touched: after each failure the
// record is as it was, or as asked, and undo puts back what was.
func TestSetParentFailsWhole(t *testing.T) {
	for _, label := range []string{"undo.record", "undo.name", "undo.folder", "fake.parent"} {
		t.Run(label, func(t *testing.T) {
			w := stray(t)
			w.image("/vms/new.vhdx", fakeImage{ID: guid(7)})
			first := w.stored("/vms/c.avhdx")
			w.host.SetFault(func(c sim.Call) error {
				if c.Label == label {
					return syscall.EIO
				}
				return nil
			})
			a := w.ask("set-parent", "c.avhdx", "new.vhdx ignoreidmismatch=true")
			require.ErrorIs(t, a.Err, syscall.EIO)
			w.host.SetFault(nil)
			if label != "fake.parent" { // after a failed sync either may be there
				require.Equal(t, first, w.stored("/vms/c.avhdx"))
			}
			require.NoError(t, w.ask("set-parent", "c.avhdx", "new.vhdx ignoreidmismatch=true").Err)
			require.NoError(t, w.ask("set-parent", "c.avhdx", "undo=true").Err)
			require.Equal(t, first.Parent, w.stored("/vms/c.avhdx").Parent)
		})
	}
}

// After a power cut the child has the old link or the new one; with the new one
// there is an undo record, and undo works. Each sync is needed for that.
func TestSetParentCrashes(t *testing.T) {
	for _, dropped := range []string{"", "undo.record", "undo.name", "undo.folder"} {
		t.Run("without "+dropped, func(t *testing.T) {
			w := stray(t)
			w.image("/vms/new.vhdx", fakeImage{ID: guid(7)})
			start := w.host.Clone()
			w.host.DropSync(dropped)
			w.host.Record()
			require.NoError(t, w.ask("set-parent", "c.avhdx", "new.vhdx ignoreidmismatch=true").Err)
			r := crash.Recording{Base: start, Events: w.host.Events()}
			changed, kept := 0, 0
			err := r.Each(1, func(s *crash.State) error {
				h, err := s.Host()
				if err != nil {
					return err
				}
				c := worldOn(t, h)
				took := c.stored("/vms/c.avhdx").Parent[0] == guid(7)
				a := c.ask("set-parent", "c.avhdx", "undo=true")
				if took {
					changed++
				} else {
					kept++
				}
				if took != (a.Err == nil) || c.stored("/vms/c.avhdx").Parent[0] != guid(1) {
					return fmt.Errorf("changed: %t, undo: %v", took, a.Err)
				}
				return nil
			})
			if dropped != "" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.NotZero(t, changed)
			require.NotZero(t, kept)
		})
	}
}

// worldOn is a world with what a crash left.
func worldOn(t *testing.T, h *sim.Host) *world {
	w := &world{T: t, host: h, dirs: map[string]ops.Dir{}}
	for _, d := range []string{"/vms", "/search", "/allow", "/other"} {
		w.dirs[d] = h.Dir(d)
	}
	w.lib = ops.NewLibrary(w.options())
	return w
}

// A log is named for its image, within what a name may be, and a line that is cut
// off does not swallow the next.
func TestUndoLogs(t *testing.T) {
	w := stray(t)
	w.image("/vms/new.vhdx", parent)
	long := strings.Repeat("x", 249) + ".avhdx"
	require.NoError(t, w.dirs["/vms"].Rename("c.avhdx", long))
	a := w.ask("set-parent", long, "new.vhdx")
	require.NoError(t, a.Err)
	log := field(a, "UndoRecord").(string)
	require.LessOrEqual(t, len(log)-len("/vms/.vhdfs-state/"), 255)
	b, err := w.host.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(b, []byte(`"set-parent"`)))
	f, err := w.dirs["/vms"].Open(strings.TrimPrefix(log, "/vms/"), ops.Write)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(`{"Time":"20`), int64(len(b)))
	require.NoError(t, errors.Join(err, f.Close()))
	require.NoError(t, w.ask("set-parent", long, "undo=true").Err)
	b, err = w.host.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, 2, bytes.Count(b, []byte(`"set-parent"`)))
	require.ErrorIs(t, w.ask("set-parent", long, "undo=true").Err, ops.ErrUsage)
}
