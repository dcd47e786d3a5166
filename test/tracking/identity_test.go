package tracking_test

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/ops/track"
	"vhdfs/test/need"
	"vhdfs/test/sim"
	"vhdfs/vhdx"
)

const small = "size=24M type=dynamic block=1M"

// Of a disk that was closed the answer is what was written, and nothing else.
func TestTheAnswerIsPrecise(t *testing.T) {
	w, first, _ := tracked(t, small)
	require.NoError(t, w.write(1, 1))
	require.NoError(t, w.write(2, 1))
	require.NoError(t, w.write(200, 1))
	second, _, err := w.seal()
	require.NoError(t, err)
	require.NoError(t, w.zero(5, 2, true))
	require.NoError(t, w.write(383, 1))
	_, err = w.disk.WriteAt(make([]byte, 2), 9*granule-1) // the last byte of one, the first of the next
	require.NoError(t, err)
	check := func() {
		told, err := w.changes(w.name, "since="+first)
		require.NoError(t, err)
		require.Equal(t, []int64{1, 2, 5, 6, 8, 9, 200, 383}, slices.Sorted(maps.Keys(told)))
		a, err := w.do("changes", w.name, "since="+second)
		require.NoError(t, err)
		require.Equal(t, []any{5. * granule, 8. * granule, 383. * granule}, a["ChangedByteOffsets"])
		require.Equal(t, []any{2. * granule, 2. * granule, 1. * granule}, a["ChangedByteLengths"])
		require.Equal(t, 24.*(1<<20), a["ProcessedByteLength"])
	}
	check()
	require.NoError(t, w.stop())
	w.start()
	check()

	a, err := w.do("changes", w.name, "since="+second+" offset=350K length=100K")
	require.NoError(t, err)
	require.Equal(t, []any{350. * 1024}, a["ChangedByteOffsets"])
	require.Equal(t, []any{98. * 1024}, a["ChangedByteLengths"])
	require.Equal(t, 100.*1024, a["ProcessedByteLength"])
	for request, want := range map[string]error{
		"since=" + second + " offset=24M":                ops.ErrUsage,
		"since=" + second + " length=0":                  ops.ErrUsage,
		"since=" + second + " offset=1M length=24M":      ops.ErrUsage,
		"since=" + second + " target=x":                  ops.ErrUsage,
		"since=no":                                       ops.ErrUsage,
		"since=" + second[:len(second)-1] + "f":          ops.ErrNoTracking,
		"since=rctX" + second[4:len(second)-9] + ":ffff": ops.ErrUsage,
	} {
		_, err := w.do("changes", w.name, request)
		require.ErrorIs(t, err, want, request)
	}
}

func TestStatesOfTracking(t *testing.T) {
	w := newWorld(sim.New(), "d.vhdx")
	require.NoError(t, w.plant(small))
	before := w.host.Changes()
	a, err := w.do("tracking", w.name, "")
	require.NoError(t, err)
	require.Equal(t, false, a["Enabled"])
	require.Equal(t, before, w.host.Changes())
	_, err = w.do("tracking", w.name, "new")
	require.Equal(t, ops.StatusTrackingOff, ops.StatusOf(err))
	_, err = w.do("changes", w.name, "since=rctX:5bfde23b:ce75:4303:b54f:6c18394f105c:00000001")
	require.ErrorIs(t, err, ops.ErrNoTracking)
	require.Equal(t, ops.StatusTrackingOff, ops.StatusOf(err))
	_, err = w.do("tracking", w.name, "maybe")
	require.ErrorIs(t, err, ops.ErrUsage)
	_, err = w.do("tracking", w.name, "on dryrun=true")
	require.NoError(t, err)
	require.Equal(t, before, w.host.Changes())

	a, err = w.do("tracking", w.name, "on")
	require.NoError(t, err)
	require.Equal(t, true, a["Enabled"])
	require.Equal(t, "", a["MostRecentId"])
	a, err = w.do("tracking", w.name, "new")
	require.NoError(t, err)
	id := a["ResilientChangeTrackingId"].(string)
	require.Equal(t, id, a["MostRecentId"])
	require.Equal(t, false, a["NewerChanges"])
	require.NoError(t, w.write(3, 3))
	require.NoError(t, w.close())
	a, err = w.do("tracking", w.name, "")
	require.NoError(t, err)
	require.Equal(t, true, a["NewerChanges"])
	_, err = w.do("tracking", w.name, "on") // it is
	require.NoError(t, err)
	ids, err := w.ids(w.name)
	require.NoError(t, err)
	require.Equal(t, []string{id}, ids)
	_, err = w.do("tracking", w.name, "off")
	require.NoError(t, err)
	_, err = w.do("changes", w.name, "since="+id)
	require.Equal(t, ops.StatusTrackingOff, ops.StatusOf(err))
	_, err = w.host.ReadFile(folder + "/d.vhdx.vct")
	require.Error(t, err)
	_, err = w.do("tracking", w.name, "on")
	require.NoError(t, err)
	_, err = w.do("changes", w.name, "since="+id)
	require.Equal(t, ops.StatusTrackingID, ops.StatusOf(err))
}

// What was put back, or written by somebody else, is told from what goes on.
func TestWhatWasPutBackIsNoticed(t *testing.T) {
	const disk, file = folder + "/d.vhdx", folder + "/d.vhdx.vct"
	for _, tt := range []struct {
		name      string
		disk, vct bool // put back
		lost      bool
	}{
		{"nothing", false, false, false},
		{"the disk", true, false, true},
		{"the tracking file", false, true, true},
		{"both", true, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, first, was := tracked(t, small)
			require.NoError(t, w.stop())
			oldDisk, err := w.host.ReadFile(disk)
			require.NoError(t, err)
			oldFile, err := w.host.ReadFile(file)
			require.NoError(t, err)
			w.start()
			require.NoError(t, w.write(5, 5))
			second, _, err := w.seal()
			require.NoError(t, err)
			require.NoError(t, w.write(6, 6))
			require.NoError(t, w.stop())
			if tt.disk {
				w.host.Put(disk, oldDisk)
			}
			if tt.vct {
				w.host.Put(file, oldFile)
			}
			w.start()
			again := func() {
				for id, knows := range map[string]bool{first: !tt.lost, second: !tt.lost && !tt.disk} {
					_, err := w.do("changes", w.name, "since="+id)
					if knows {
						require.NoError(t, err)
						continue
					}
					require.ErrorIs(t, err, ops.ErrNoTracking)
				}
				if !tt.lost {
					require.NoError(t, w.covers(w.name, first, was))
				}
			}
			again()
			require.NoError(t, w.write(8, 8))
			again()
			if !tt.lost {
				third, _, err := w.seal()
				require.NoError(t, err)
				require.NotContains(t, []string{first, second}, third)
			}
			require.NoError(t, w.stop())
			w.start()
			again()
		})
	}
}

// A copy of a disk that is in use, put back later, is not what the ids are about.
func TestACopyOfADiskInUseIsNoticed(t *testing.T) {
	w, id, _ := tracked(t, small)
	require.NoError(t, w.write(5, 5))
	require.NoError(t, w.disk.Flush())
	copied, err := w.host.ReadFile(folder + "/d.vhdx")
	require.NoError(t, err)
	require.NoError(t, w.write(5, 6))
	later, _, err := w.seal()
	require.NoError(t, err)
	killed := w.host.Clone() // the program is gone without a word
	for _, h := range []*sim.Host{killed, w.host} {
		if h == w.host {
			require.NoError(t, w.stop())
		}
		h.Put(folder+"/d.vhdx", copied)
		v := newWorld(h, w.name)
		for _, id := range []string{id, later} {
			_, err = v.do("changes", v.name, "since="+id)
			require.ErrorIs(t, err, ops.ErrNoTracking)
		}
	}
}

// A library without tracking is another program that writes a disk by the rules.
func TestAnotherProgramIsNoticed(t *testing.T) {
	w, id, _ := tracked(t, small)
	require.NoError(t, w.stop())
	other := ops.NewLibrary(ops.LibraryOptions{Top: w.host.Dir(folder), Formats: []*ops.Format{vhdx.Format}})
	h, err := other.Open(other.Top(w.name), ops.Write)
	require.NoError(t, err)
	_, err = h.WriteAt([]byte{1}, 99*granule)
	require.NoError(t, errors.Join(err, h.Close(), other.Close()))
	w.start()
	_, err = w.do("changes", w.name, "since="+id)
	require.ErrorIs(t, err, ops.ErrNoTracking)
	require.Equal(t, ops.StatusTrackingMissing, ops.StatusOf(err))
	_, err = w.do("tracking", w.name, "new")
	require.ErrorIs(t, err, ops.ErrNoTracking)
	_, err = w.do("tracking", w.name, "on")
	require.NoError(t, err)
	_, err = w.do("changes", w.name, "since="+id)
	require.Equal(t, ops.StatusTrackingMissing, ops.StatusOf(err), "an earlier table was lost")
	_, _, err = w.seal()
	require.NoError(t, err)
}

// A merge of a child that was not tracked ends tracking of its parent, and says so,
// in its plan too; one that was tracked says nothing.
func TestAMergeThatEndsTrackingWarns(t *testing.T) {
	for _, child := range []string{"on", "off"} {
		t.Run(child, func(t *testing.T) {
			w, id, _ := tracked(t, small)
			require.NoError(t, w.close())
			_, err := w.do("create", ".", "path=c.avhdx parent=d.vhdx")
			require.NoError(t, err)
			_, err = w.do("tracking", "c.avhdx", child)
			require.NoError(t, err)
			for _, request := range []string{"dryrun=true", "1"} {
				a, err := w.do("merge", "c.avhdx", request)
				require.NoError(t, err)
				if child == "on" {
					require.NotContains(t, a, "Warnings")
					continue
				}
				require.Contains(t, a["Warnings"].([]any)[0], "d.vhdx were tracked, those of /vms/c.avhdx were not")
			}
			_, err = w.do("changes", w.name, "since="+id)
			require.Equal(t, child == "on", err == nil)
			require.NoError(t, w.stop())
		})
	}
}

// QEMU writes a disk between two ids.
func TestQEMUIsNoticed(t *testing.T) {
	qemu := need.Tool(t, "qemu-io")
	dir := t.TempDir()
	d, err := host.OpenDir(dir)
	require.NoError(t, err)
	w := &world{name: "d.vhdx", refs: map[int64]bool{}}
	start := func() {
		w.lib = ops.NewLibrary(ops.LibraryOptions{Top: d, Formats: []*ops.Format{vhdx.Format}, Tracking: track.Files{}})
	}
	start()
	require.NoError(t, w.plant(small))
	_, err = w.do("tracking", w.name, "on")
	require.NoError(t, err)
	require.NoError(t, w.write(3, 3))
	id, _, err := w.seal()
	require.NoError(t, err)
	require.NoError(t, w.stop())
	out, err := exec.Command(qemu, "-f", "vhdx", "-c", "write -P 7 1M 64k", filepath.Join(dir, w.name)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	start()
	_, err = w.do("changes", w.name, "since="+id)
	require.ErrorIs(t, err, ops.ErrNoTracking)
	require.Equal(t, ops.StatusTrackingMissing, ops.StatusOf(err))
	require.NoError(t, errors.Join(w.stop(), d.Close()))
	_, err = os.Stat(filepath.Join(dir, "d.vhdx.vct"))
	require.NoError(t, err)
}
