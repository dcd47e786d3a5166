package track_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/track"
	"vhdfs/test/budget"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

var sealTime = time.UnixMilli(1_800_000_000_000)

// workload is a seeded run of a guest, and what the ids that it was given stand for.
type workload struct {
	rng   *rand.Rand
	g     *guest
	ids   map[string][]uint64               // the content when each was given
	mixed bool                              // a write comes while pages are synced
	bad   func(w *workload) (string, error) // seals in place of guest.seal; nil: that
	steps int
	value uint64
}

func (w *workload) run(h *sim.Host) error {
	w.ids = map[string][]uint64{}
	var err error
	if w.g, err = openGuest(h); err != nil {
		return err
	}
	h.Ack("created", nil)
	for range w.steps {
		if err := w.step(h); err != nil {
			return err
		}
	}
	return w.g.close()
}

func (w *workload) step(h *sim.Host) error {
	g, granules := w.g, w.g.y.d.Size/granule
	at := w.rng.Int64N(granules)
	if w.rng.IntN(3) > 0 {
		at = w.rng.Int64N(4) // often the same ones
	}
	w.value++
	switch n := w.rng.IntN(20); {
	case n < 11:
		return g.write(at, w.value)
	case n < 13:
		return g.flush()
	case n < 15:
		return w.settle(h, at)
	case n < 17:
		return w.seal(h)
	case n < 18:
		return g.resize(granules + w.rng.Int64N(7) - 3)
	case n < 19:
		return g.t.Loosen()
	}
	if err := g.close(); err != nil {
		return err
	}
	var err error
	w.g, err = openGuest(h)
	return err
}

func (w *workload) seal(h *sim.Host) error {
	content := values(h)
	seal := (*workload).sealed
	if w.bad != nil {
		seal = w.bad
	}
	id, err := seal(w)
	if err == nil {
		w.ids[id] = content
		h.Ack("id", id)
	}
	return err
}

func (w *workload) sealed() (string, error) { return w.g.seal() }

// settle may let a write come between the pages and the regions.
func (w *workload) settle(h *sim.Host, at int64) error {
	if err := w.g.write(at, w.value); err != nil {
		return err
	}
	if !w.mixed {
		return w.g.t.Settle(true)
	}
	w.value++
	var during error
	h.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpSync && c.Label == "track.pages" {
			during = w.g.write(at^1, w.value)
		}
		return nil
	})
	defer h.SetFault(nil)
	return errors.Join(w.g.t.Settle(true), during)
}

// underReport is a granule that changed and is not in the answer.
type underReport struct{ error }

// judge looks at one state: whatever id holds answers all that is different, and
// every id that was answered holds.
func (w *workload) judge(h *sim.Host, answered []any) error {
	tr, err := track.Files{}.Open(image(h), readToy(h), false)
	if err != nil || tr == nil {
		return fmt.Errorf("no tracking file: %w", err)
	}
	defer func() { _ = tr.Close() }()
	st := tr.State()
	if st.Lost != "" {
		return errors.New(st.Lost)
	}
	known := map[string]bool{}
	for _, k := range st.IDs {
		known[k.ID] = true
		was, ok := w.ids[k.ID]
		if !ok {
			continue // the recording ended before it was answered
		}
		c, err := tr.Changes(k.ID, whole)
		if err != nil {
			return err
		}
		if err := covers(c, was, values(h)); err != nil {
			return underReport{fmt.Errorf("since %s: %w", k.ID, err)}
		}
	}
	for _, id := range answered {
		if !known[id.(string)] {
			return fmt.Errorf("id %s is gone", id)
		}
	}
	return nil
}

// covers tells whether an answer has every granule that differs.
func covers(c *ops.Changed, was, is []uint64) error {
	told := map[int64]bool{}
	err := c.Each(0, c.Size, func(r ops.Range) error {
		for i := r.Off / granule; i*granule < r.Off+r.Len; i++ {
			told[i] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, v := range is {
		if (i >= len(was) || was[i] != v) && !told[int64(i)] {
			return fmt.Errorf("granule %d changed and is not told", i)
		}
	}
	return nil
}

// cut records the workload and judges the states in which a power cut may leave it,
// some of them also after a recovery that was cut, and after kill -9.
func (w *workload) cut(seed uint64, dropped ...string) (states int, err error) {
	base, err := toyHost(300)
	if err != nil {
		return 0, err
	}
	h := base.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	w.rng = rand.New(rand.NewPCG(seed, 1))
	h.Record()
	if err := w.run(h); err != nil {
		return 0, err
	}
	r := &crash.Recording{Base: base, Events: h.Events()}
	created := slices.IndexFunc(r.Events, func(e sim.Event) bool { return e.Op == sim.OpAck && e.Label == "created" })
	return r.Judge(crash.Options{Seed: seed, After: created + 1}, 1, func(h *sim.Host, answered []any, n int) error {
		err := w.judge(h, answered)
		if err == nil && n%50 == 0 {
			err = w.again(h, answered, seed+uint64(n))
		}
		return err
	})
}

// again goes on after a crash: ids from before still answer everything.
func (w *workload) again(h *sim.Host, answered []any, seed uint64) error {
	v := &workload{rng: rand.New(rand.NewPCG(seed, 2)), value: seed << 32}
	var err error
	if v.g, err = openGuest(h); err != nil {
		return err
	}
	for range 6 {
		if err := v.g.write(v.rng.Int64N(v.g.y.d.Size/granule), v.rng.Uint64()); err != nil {
			return err
		}
	}
	if err := v.g.t.Settle(v.rng.IntN(2) == 0); err != nil {
		return err
	}
	if err := w.judgeLive(v.g, h); err != nil {
		return err
	}
	if err := v.g.close(); err != nil {
		return err
	}
	return w.judge(h, answered)
}

// judgeLive asks the tracker that is in use.
func (w *workload) judgeLive(g *guest, h *sim.Host) error {
	for _, k := range g.t.State().IDs {
		was, ok := w.ids[k.ID]
		if !ok {
			continue
		}
		c, err := g.t.Changes(k.ID, whole)
		if err == nil {
			err = covers(c, was, values(h))
		}
		if err != nil {
			return underReport{err}
		}
	}
	return nil
}

// Whatever differs is told, for every id that holds, wherever the power goes.
func TestNothingIsLeftOutAfterAPowerCut(t *testing.T) {
	run := budget.Start(t, "tracking, files", "states")
	states, err := crash.Seeds(run.Seed(), budget.Of(t, 8_000, 40_000), func(seed uint64) (int, error) {
		w := &workload{steps: 60, mixed: seed%2 == 0}
		return w.cut(seed)
	})
	run.Add("states", states)
	require.NoError(t, run.Broken(err))
}

// Without any of these syncs an answer would leave something out, or tracking would
// be lost: the test above sees it.
func TestEverySyncOfATrackingFileIsNeeded(t *testing.T) {
	for _, label := range []string{"track.open", "track.pages", "track.close", "track.seal", "track.announce", "track.linked", "track.suspend", "track.resize"} {
		t.Run(label, func(t *testing.T) { require.Error(t, firstError(t, label, workload{steps: 60})) })
	}
}

// The regions of what is added come before the header that counts them: there may
// be another sector of them.
func TestADiskThatGrowsMuchIsCut(t *testing.T) {
	grow := func(dropped string) error {
		base := newToyHost(t, 300)
		h := base.Clone()
		h.DropSync(dropped)
		h.Record()
		g, err := openGuest(h)
		require.NoError(t, err)
		id, err := g.seal()
		require.NoError(t, err)
		was := values(h)
		sealed := len(h.Events())
		require.NoError(t, g.resize(9000))
		r := &crash.Recording{Base: base, Events: h.Events()}
		w := &workload{ids: map[string][]uint64{id: was}}
		_, err = r.Judge(crash.Options{Seed: 1, After: sealed}, 1, func(h *sim.Host, _ []any, _ int) error { return w.judge(h, []any{id}) })
		return err
	}
	require.NoError(t, grow(""))
	require.Error(t, grow("track.grow"))
}

func firstError(t *testing.T, dropped string, w workload) error {
	for seed := uint64(1); seed <= 60; seed++ {
		try := w
		if _, err := try.cut(seed, dropped); err != nil {
			return err
		}
	}
	return nil
}

// A seal that does not make the data durable, or does not wait for writes under way,
// gives ids that leave something out.
func TestWhatASealNeeds(t *testing.T) {
	for name, bad := range map[string]func(w *workload) (string, error){
		"data flushed": func(w *workload) (string, error) {
			return w.g.t.Seal(sealTime, w.g.y.d.LinkID, nil)
		},
		"writes drained": func(w *workload) (string, error) {
			at := w.rng.Int64N(4)
			if err := w.g.begin(); err != nil {
				return "", err
			}
			if err := w.g.t.Write(at*granule, 8); err != nil {
				return "", err
			}
			id, err := w.g.seal()
			return id, errors.Join(err, w.g.store(at, w.value))
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := firstError(t, "", workload{steps: 60, bad: bad})
			require.ErrorAs(t, err, new(underReport))
		})
	}
}
