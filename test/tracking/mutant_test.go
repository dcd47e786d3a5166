package tracking_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	iofs "io/fs"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/track"
	"vhdfs/test/sim"
)

// mutant is a tracker with one thing wrong with the way it is used.
type mutant struct {
	ops.Tracker
	kind string
	late []ops.Range // marks that come too late

	under atomic.Int32 // writes that wait for their mark
}

func (m *mutant) Write(off, n int64) error {
	switch {
	case m.kind == "no mark":
		return nil
	case m.kind == "mark after the write":
		late := m.late
		m.late = []ops.Range{{Off: off, Len: n}}
		for _, r := range late {
			if err := m.Tracker.Write(r.Off, r.Len); err != nil {
				return err
			}
		}
		return nil
	case m.kind == "region used before its sync":
		defer m.under.Add(-1)
		if m.under.Add(1) > 1 {
			go func() { _ = m.Tracker.Write(off, n) }()
			return nil
		}
	case m.kind == "zeros are no writes" && n >= granule:
		return nil
	}
	return m.Tracker.Write(off, n)
}

func (m *mutant) Resize(size int64, do func() error) error {
	if m.kind == "resize is no write" {
		return do()
	}
	return m.Tracker.Resize(size, do)
}

// closeRegions makes the tracking file of an image say that no region is open.
func closeRegions(image ops.Ref) error {
	const regions, pages, sectorHead = 128 << 10, 2 << 20, 8
	f, err := image.Dir.Open(image.Name+track.Suffix, ops.Write|ops.NoFollow)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	b := make([]byte, sector)
	for at := int64(regions); at < pages; at += sector {
		if n, _ := f.ReadAt(b, at); n < sector || binary.LittleEndian.Uint32(b) == 0 {
			break
		}
		for k := sectorHead + 4; k < sector; k += 8 {
			clear(b[k : k+4])
		}
		binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli)))
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
	}
	return f.Close()
}

// closesAll closes regions that were written while their pages were stored, too.
func closesAll(w *workload, c sim.Call) {
	if c.Op == sim.OpSync && c.Label == "track.close" {
		_ = closeRegions(w.lib.Top(w.name)) // what fails is not closed
	}
}

// The test above sees what it is for: each of these ways to use a tracking file leaves
// something out, or loses ids that were given.
func TestTheCrashTestSeesMutants(t *testing.T) {
	sealed := func(before func(w *workload) error) func(w *workload) (string, []uint64, error) {
		return func(w *workload) (string, []uint64, error) {
			if err := before(w); err != nil {
				return "", nil, err
			}
			return w.world.seal()
		}
	}
	wrapped := func(kind string) *workload {
		return &workload{world: &world{name: "d.vhdx", spy: &spy{wrap: func(t ops.Tracker) ops.Tracker { return &mutant{Tracker: t, kind: kind} }}}}
	}
	for _, tt := range []struct {
		name    string
		w       *workload
		dropped []string
	}{
		{"no mark", wrapped("no mark"), nil},
		{"mark after the write", wrapped("mark after the write"), nil},
		{"region used before its sync", wrapped("region used before its sync"), nil},
		{"recovery without the regions", &workload{world: &world{name: "d.vhdx", spy: &spy{before: func(r ops.Ref) { _ = closeRegions(r) }}}}, nil},
		{"region closed that was written meanwhile", &workload{hook: closesAll}, nil},
		{"id given under a write", &workload{undrained: true}, nil},
		{"zeros are no writes", wrapped("zeros are no writes"), nil},
		{"resize is no write", wrapped("resize is no write"), nil},
		{"regions not synced", &workload{}, []string{"track.open"}},
		{"pages not synced", &workload{}, []string{"track.pages"}},
		{"id not synced", &workload{}, []string{"track.seal"}},
		{"id not announced", &workload{}, []string{"track.announce"}},
		{"data not flushed by the id", &workload{seal: sealed(func(w *workload) error {
			if err := w.open(); err != nil {
				return err
			}
			w.host.DropSync("vhdx.payload")
			w.host.DropSync("vhdx.log.entry")
			return nil
		})}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Error(t, firstError(t, tt.w, tt.dropped...))
		})
	}
}

func firstError(t *testing.T, w *workload, dropped ...string) error {
	for seed := uint64(1); seed <= 30; seed++ {
		base, err := prepare(shapes[seed%uint64(len(shapes))])
		require.NoError(t, err)
		try := *w
		try.steps = 40
		if try.world == nil {
			try.world = &world{spy: &spy{}, name: "d.vhdx"}
		}
		if _, err := try.cut(base, seed, 0.3, dropped...); err != nil {
			var under underReport
			t.Logf("seed %d: under-report %t: %.300s", seed, errors.As(err, &under), err)
			return err
		}
	}
	return nil
}

// id gives the present content of a new, tracked disk an id.
func tracked(t *testing.T, request string) (*world, string, []uint64) {
	w := newWorld(sim.New(), "d.vhdx")
	require.NoError(t, w.plant(request))
	_, err := w.do("tracking", w.name, "on")
	require.NoError(t, err)
	require.NoError(t, w.write(7, 1))
	id, was, err := w.seal()
	require.NoError(t, err)
	return w, id, was
}
