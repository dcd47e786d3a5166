package tracking_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/budget"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

// workload is a seeded run of a guest and of operations, and what the ids that were
// given stand for.
type workload struct {
	*world
	rng   *rand.Rand
	was   map[string][]uint64
	steps int
	value uint64
	seal  func(w *workload) (string, []uint64, error) // in place of world.seal; nil: that
	next  func(w *workload) error                     // in place of step; nil: that
	mend  func(v *world) error                        // what the next program does first; nil: nothing
	loses bool                                        // ids that were given may be gone
	snaps []string                                    // of a set

	hook      func(*workload, sim.Call) // comes before calls of the host while something is beside another
	undrained bool                      // an id does not wait for the writes under way
}

// disks of these tests: 24 MiB are four regions.
var shapes = []string{
	"size=24M type=dynamic block=1M",
	"size=24M type=fixed",
	"size=24M type=dynamic block=2M sector=4096",
}

// prepare is a host with a tracked disk.
func prepare(shape string) (*sim.Host, error) {
	h := sim.New()
	w := newWorld(h, "d.vhdx")
	err := w.plant(shape)
	if err == nil {
		_, err = w.do("tracking", w.name, "on")
	}
	return h, errors.Join(err, w.stop())
}

func (w *workload) run() error {
	if w.was == nil {
		w.was = map[string][]uint64{}
	}
	next := w.next
	if next == nil {
		next = (*workload).step
	}
	for range w.steps {
		if err := next(w); err != nil {
			return err
		}
	}
	return w.stop()
}

func (w *workload) step() error {
	i := w.rng.Int64N(320)
	if w.rng.IntN(3) > 0 {
		i = w.rng.Int64N(4) * 100 // often the same ones, of each region one
	}
	w.value++
	switch n := w.rng.IntN(27); {
	case n < 10:
		return w.write(i, w.value)
	case n < 12:
		return w.zero(i, 1+w.rng.Int64N(20), n == 10)
	case n < 14:
		return errors.Join(w.open(), w.disk.Flush())
	case n < 16:
		return w.spy.settle(n == 14)
	case n < 19:
		return w.give()
	case n < 20:
		_, err := w.do("resize", w.name, fmt.Sprintf("size=%d", (400+w.rng.Int64N(9)-4)*granule))
		if errors.Is(err, errors.ErrUnsupported) { // a fixed disk does not shrink
			return nil
		}
		return err
	case n < 21:
		err := w.close()
		if err == nil {
			_, err = w.do("compact", w.name, "mode=full")
		}
		return err
	case n < 22:
		return w.close()
	case n < 23:
		return w.two(i)
	case n < 24:
		return w.settles(i)
	case n < 25:
		return w.drains(i)
	}
	err := w.stop()
	w.start()
	return err
}

func (w *workload) give() error {
	seal := w.seal
	if seal == nil {
		seal = func(w *workload) (string, []uint64, error) { return w.world.seal() }
	}
	id, is, err := seal(w)
	if err == nil {
		w.was[id] = is
		w.host.Ack("id", id)
	}
	return err
}

// judge looks at one state: every id that was answered holds, and whatever id holds
// answers all that is different.
func (w *workload) judge(h *sim.Host, answered []any) (err error) {
	v := newWorld(h, w.name)
	v.refs, v.spy.before = w.refs, w.spy.before
	if w.mend != nil {
		if err := w.mend(v); err != nil {
			return err
		}
	}
	open, err := v.lib.Open(v.lib.Top(v.name), ops.Read) // once for all that is asked
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, open.Close(), v.lib.Close()) }()
	ids, err := v.ids(v.name)
	if err != nil {
		return err
	}
	is, err := v.content(v.name)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, id := range ids {
		known[id] = true
		was, ok := w.was[id]
		if !ok {
			continue // the recording ended before it was answered
		}
		if err := v.tells(v.name, id, was, is); err != nil {
			return err
		}
	}
	for _, id := range answered {
		if !known[id.(string)] && !w.loses {
			return fmt.Errorf("id %s is gone", id)
		}
	}
	return nil
}

// cut records the workload and judges states in which a power cut may leave the host,
// about limit of them; some of them also after a guest went on.
func (w *workload) cut(base *sim.Host, seed uint64, share float64, dropped ...string) (states int, err error) {
	h := base.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	was := w.world.spy
	refs := w.world.refs
	w.world = newWorld(h, w.name)
	w.spy.wrap, w.spy.before = was.wrap, was.before
	maps.Copy(w.refs, refs)
	w.world.free = free{ops.Range{Off: 12 << 20, Len: 8 << 20}}
	w.start()
	w.rng = rand.New(rand.NewPCG(seed, 1))
	h.Record()
	if err := w.run(); err != nil {
		return 0, err
	}
	r := &crash.Recording{Base: base, Events: h.Events()}
	return r.Judge(crash.Options{Seed: seed}, share, func(h *sim.Host, answered []any, n int) error {
		err := w.judge(h, answered)
		if err == nil && n%40 == 0 {
			err = w.again(h, answered, seed+uint64(n))
		}
		return err
	})
}

// again goes on after a crash: ids from before still answer everything.
func (w *workload) again(h *sim.Host, answered []any, seed uint64) error {
	v := newWorld(h, w.name)
	v.refs, v.spy.before = w.refs, w.spy.before
	if w.mend != nil {
		if err := w.mend(v); err != nil {
			return err
		}
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	for range 4 {
		if err := v.write(rng.Int64N(300), rng.Uint64()); err != nil {
			return err
		}
	}
	if err := w.live(v); err != nil {
		return err
	}
	if err := v.stop(); err != nil {
		return err
	}
	return w.judge(h, answered)
}

// live asks the trackers that are in use.
func (w *workload) live(v *world) error {
	for id, was := range w.was {
		err := v.covers(v.name, id, was)
		if err != nil && !errors.Is(err, ops.ErrNoTracking) {
			return err
		}
	}
	return nil
}

// Whatever differs is told, for every id that was given, wherever the power goes.
func TestNothingIsLeftOutAfterAPowerCut(t *testing.T) {
	var bases []*sim.Host
	for _, s := range shapes {
		h, err := prepare(s)
		require.NoError(t, err)
		bases = append(bases, h)
	}
	cutSeeds(t, "tracking", budget.Of(t, 8_000, 40_000), func(seed uint64) (int, error) {
		w := &workload{steps: 40, world: &world{spy: &spy{}, name: "d.vhdx"}}
		return w.cut(bases[seed%uint64(len(bases))], seed, 0.3)
	})
}

// cutSeeds judges so many states, and says how fast.
func cutSeeds(t *testing.T, engine string, want int, cut func(seed uint64) (int, error)) {
	t.Helper()
	run, began := budget.Start(t, engine, "states"), time.Now()
	states, err := crash.Seeds(run.Seed(), want, cut)
	run.Add("states", states)
	t.Logf("%.0f states a second", float64(states)/time.Since(began).Seconds())
	require.NoError(t, run.Broken(err))
	require.GreaterOrEqual(t, states, want)
}
