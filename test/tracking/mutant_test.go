package tracking_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// mutant is a tracker with one thing wrong with the way it is used.
type mutant struct {
	ops.Tracker
	kind string
	late []ops.Range // marks that come too late
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
