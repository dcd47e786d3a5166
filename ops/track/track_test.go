package track_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/track"
	"vhdfs/test/sim"
)

// list is the granules that an answer tells.
func list(t testing.TB, c *ops.Changed) []int64 {
	t.Helper()
	var all []int64
	require.NoError(t, c.Each(0, c.Size, func(r ops.Range) error {
		for i := r.Off / granule; i*granule < r.Off+r.Len; i++ {
			all = append(all, i)
		}
		return nil
	}))
	return all
}

func changes(t testing.TB, tr ops.Tracker, id string) []int64 {
	t.Helper()
	c, err := tr.Changes(id, whole)
	require.NoError(t, err)
	return list(t, c)
}

// whole is more than any disk has.
var whole = ops.Range{Len: math.MaxInt64}

// A part of the disk is told from the regions that it meets; others are not read.
func TestChangesWithin(t *testing.T) {
	const region = 124 // granules
	h := newToyHost(t, 10*region)
	g := begin(t, h, 0)
	id, err := g.seal()
	require.NoError(t, err)
	for i := range int64(10) {
		require.NoError(t, g.write(i*region+7, 1))
	}
	require.NoError(t, g.close())
	g = begin(t, h, 0)
	for _, tt := range []struct {
		within ops.Range // granules
		told   []int64   // regions
	}{
		{ops.Range{Off: 0, Len: 1}, []int64{0}},
		{ops.Range{Off: region - 1, Len: 1}, []int64{0}},
		{ops.Range{Off: region - 1, Len: 2}, []int64{0, 1}},
		{ops.Range{Off: 3 * region, Len: 2 * region}, []int64{3, 4}},
		{ops.Range{Off: 9 * region, Len: math.MaxInt64 / granule}, []int64{9}},
	} {
		c, err := g.t.Changes(id, ops.Range{Off: tt.within.Off * granule, Len: tt.within.Len * granule})
		require.NoError(t, err)
		var told []int64
		for _, i := range list(t, c) {
			told = append(told, i/region)
		}
		require.Equal(t, tt.told, slices.Compact(told), "%v", tt.within)
	}
	require.NoError(t, g.close())
}

// After a clean stop exactly the granules that were written are told; after a crash
// those of open regions more.
func TestPrecision(t *testing.T) {
	const granules, region = 4000, 124
	for _, tt := range []struct {
		name  string
		crash bool
		close bool // regions are closed before the crash
	}{{"clean stop", false, false}, {"crash", true, false}, {"crash after the regions were closed", true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			h := newToyHost(t, granules)
			g := begin(t, h, 0)
			id, err := g.seal()
			require.NoError(t, err)
			rng := rand.New(rand.NewPCG(7, 7))
			written, regions := map[int64]bool{}, map[int64]bool{}
			for range 40 {
				i := 500 + 2500*rng.Int64N(2) + rng.Int64N(50)
				written[i], regions[i/region] = true, true
				require.NoError(t, g.write(i, 1))
			}
			require.Equal(t, len(written), len(changes(t, g.t, id)), "while it is open")
			if tt.close {
				require.NoError(t, g.t.Settle(true))
			}
			if !tt.crash {
				require.NoError(t, g.close())
			}
			tr, err := track.Files{}.Open(image(h), readToy(h), false)
			require.NoError(t, err)
			told := changes(t, tr, id)
			if tt.crash && !tt.close {
				require.LessOrEqual(t, len(told), (len(regions)+8)*region)
			} else {
				require.Len(t, told, len(written))
			}
			t.Logf("%d granules written, %d told, of %d", len(written), len(told), granules)
			require.NoError(t, tr.Close())
		})
	}
}

// A granule that is noted costs nothing more: no sync, and no region that a crash
// would make count as changed.
func TestHotGranulesKeepTheirRegionClosed(t *testing.T) {
	h := newToyHost(t, 300)
	g := begin(t, h, 0)
	require.NoError(t, g.t.Settle(true))
	syncs := h.SyncLabels()["track.open"]
	for range 100 {
		require.NoError(t, g.write(0, 2))
	}
	require.Equal(t, syncs, h.SyncLabels()["track.open"])
	require.Zero(t, g.t.State().Open)
	require.NoError(t, g.close())
}

// Who writes to a region that somebody else is opening waits for the sync, too.
func TestARegionIsNotReadyBeforeItsSync(t *testing.T) {
	h := newToyHost(t, 300)
	g := begin(t, h, 299)
	h.Record()
	var others sync.WaitGroup
	var once sync.Once
	h.SetFault(func(c sim.Call) error {
		if c.Label != "track.open" {
			return nil
		}
		once.Do(func() {
			done := make(chan struct{})
			others.Go(func() {
				defer close(done)
				if err := g.write(8, 2); err != nil {
					t.Error(err)
				}
			})
			select { // time for one that does not wait to show itself
			case <-done:
			case <-time.After(20 * time.Millisecond):
			}
		})
		return nil
	})
	require.NoError(t, g.write(7, 1))
	others.Wait()
	h.SetFault(nil)
	synced := false
	for _, e := range h.Events() {
		synced = synced || e.Label == "track.open"
		require.True(t, synced || e.Path != toyPath, "%v before the region is open", e)
	}
	require.NoError(t, g.close())
}

// Writers, seals with everybody out, and a settling beside them: an answer has
// everything, at any time.
func TestManyWriters(t *testing.T) {
	h := newToyHost(t, 600)
	g := begin(t, h, 0)
	id, err := g.seal()
	require.NoError(t, err)
	var door sync.RWMutex // the lock of an engine
	var writers, settler sync.WaitGroup
	stop := make(chan struct{})
	settler.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := g.t.Settle(true); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for k := range 4 {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(k), 3))
			for range 200 {
				door.RLock()
				i := rng.Int64N(600)
				if err := errors.Join(g.t.Write(i*granule, granule), g.store(i, rng.Uint64()|1)); err != nil {
					t.Error(err)
				}
				door.RUnlock()
			}
		})
	}
	ids := map[string][]uint64{id: values(h)}
	for range 10 {
		door.Lock()
		content := values(h)
		id, err := g.seal()
		door.Unlock()
		require.NoError(t, err)
		ids[id] = content
	}
	writers.Wait()
	close(stop)
	settler.Wait()
	for id, was := range ids {
		c, err := g.t.Changes(id, whole)
		require.NoError(t, err)
		require.NoError(t, covers(c, was, values(h)))
	}
	require.NoError(t, g.close())
}

// When the tracking file cannot be written, guests go on as long as it can be made
// worthless, or removed; else the disk must not be changed.
func TestATrackingFileThatCannotBeWritten(t *testing.T) {
	for _, tt := range []struct {
		name   string
		broken func(c sim.Call) bool
		refuse bool
	}{
		{"no room for regions", func(c sim.Call) bool { return c.Op == sim.OpWrite && c.Off >= 128<<10 }, false},
		{"a sync fails", func(c sim.Call) bool { return c.Label == "track.open" }, false},
		{"nothing can be written", func(c sim.Call) bool { return c.Op == sim.OpWrite || c.Op == sim.OpSync }, false},
		{"nor removed", func(c sim.Call) bool { return c.Op == sim.OpWrite || c.Op == sim.OpSync || c.Op == sim.OpRemove }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newToyHost(t, 300)
			g := begin(t, h, 299)
			id, err := g.seal()
			require.NoError(t, err)
			h.SetFault(func(c sim.Call) error {
				if c.Path == vctPath && tt.broken(c) {
					return syscall.ENOSPC
				}
				return nil
			})
			err = g.write(3, 1)
			if tt.refuse {
				require.ErrorIs(t, err, ops.ErrPoisoned)
				require.Zero(t, values(h)[3])
				return
			}
			require.NoError(t, err)
			h.SetFault(nil)
			require.NotEmpty(t, g.t.State().Lost)
			require.NoError(t, g.close())
			tr, err := track.Files{}.Open(image(h), readToy(h), true)
			require.NoError(t, err)
			if tr == nil {
				return // removed
			}
			_, err = tr.Changes(id, whole)
			require.Equal(t, ops.StatusTrackingMissing, ops.StatusOf(err))
			require.NoError(t, tr.Close())
		})
	}
}

func TestIDs(t *testing.T) {
	h := newToyHost(t, 10)
	g := begin(t, h, 1)
	id, err := g.seal()
	require.NoError(t, err)
	require.Regexp(t, `^rctX:[0-9a-f]{8}(:[0-9a-f]{4}){3}:[0-9a-f]{12}:00000001$`, id)
	for _, bad := range []string{"", "x", id[:len(id)-1], id + "0", "rctY" + id[4:], id[:len(id)-1] + "g", "rctX:" + ops.NewGUID().String() + ":00000001"} {
		_, err := g.t.Changes(bad, whole)
		require.ErrorIs(t, err, ops.ErrUsage, bad)
		require.Equal(t, ops.StatusTrackingID, ops.StatusOf(err))
	}
	for _, unknown := range []string{id[:len(id)-1] + "2", id[:len(id)-1] + "0", "rctX:00000000:0000:0000:0000:000000000000:00000001"} {
		_, err := g.t.Changes(unknown, whole)
		require.ErrorIs(t, err, ops.ErrNoTracking, unknown)
		require.Equal(t, ops.StatusTrackingID, ops.StatusOf(err))
	}
	require.NoError(t, g.close())
}

// The oldest ids go when there are too many.
func TestThereIsRoomForAThousandIDs(t *testing.T) {
	h := newToyHost(t, 10)
	g := begin(t, h, 1)
	first, err := g.seal()
	require.NoError(t, err)
	for range 1024 {
		_, err := g.seal()
		require.NoError(t, err)
	}
	require.Len(t, g.t.State().IDs, 1024)
	_, err = g.t.Changes(first, whole)
	require.Equal(t, ops.StatusTrackingID, ops.StatusOf(err))
	require.NoError(t, g.close())
	tr, err := track.Files{}.Open(image(h), readToy(h), false)
	require.NoError(t, err)
	require.Len(t, tr.State().IDs, 1024)
	require.NoError(t, tr.Close())
}

// The greatest disks have a table that is bounded, and open at once.
func TestGreatDisks(t *testing.T) {
	for _, tt := range []struct{ size, granule int64 }{
		{1 << 40, 64 << 10}, {2 << 40, 64 << 10}, {2<<40 + 512, 128 << 10}, {64 << 40, 2 << 20},
	} {
		h := sim.New()
		d := ops.TrackedDisk{Size: tt.size, DiskID: toyID, LinkID: ops.NewGUID(), Stamp: ops.NewGUID()}
		tr, err := track.Files{}.Create(image(h), d)
		require.NoError(t, err)
		id, err := tr.Seal(sealTime, d.LinkID, nil)
		require.NoError(t, err)
		for _, at := range []int64{0, 1 << 31, 128<<30 - 1, tt.size - 1} {
			require.NoError(t, tr.Write(at, 1))
		}
		c, err := tr.Changes(id, whole)
		require.NoError(t, err)
		require.Equal(t, tt.granule, c.Granule)
		require.EqualValues(t, 4, c.Count)
		require.Less(t, h.Used(), int64(1<<20))
		require.NoError(t, tr.Close())
	}
}
