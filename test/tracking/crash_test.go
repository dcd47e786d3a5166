package tracking_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
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
}

// given marks an id that was answered.
type given struct{ id string }

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
	switch n := w.rng.IntN(24); {
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
		w.host.Ack("id", given{id})
	}
	return err
}

// judge looks at one state: every id that was answered holds, and whatever id holds
// answers all that is different.
func (w *workload) judge(h *sim.Host, answered []string) error {
	v := newWorld(h, w.name)
	v.refs = w.refs
	if w.mend != nil {
		if err := w.mend(v); err != nil {
			return err
		}
	}
	ids, err := v.ids(v.name)
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
		if err := v.covers(v.name, id, was); err != nil {
			return err
		}
	}
	for _, id := range answered {
		if !known[id] && !w.loses {
			return fmt.Errorf("id %s is gone", id)
		}
	}
	return v.lib.Close()
}

// cut records the workload and judges states in which a power cut may leave the host,
// about limit of them; some of them also after a guest went on.
func (w *workload) cut(base *sim.Host, seed uint64, share float64, dropped ...string) (states int, err error) {
	h := base.Clone()
	for _, l := range dropped {
		h.DropSync(l)
	}
	wrap, refs := w.world.spy.wrap, w.world.refs
	w.world = newWorld(h, w.name)
	w.spy.wrap = wrap
	maps.Copy(w.refs, refs)
	w.world.free = free{ops.Range{Off: 12 << 20, Len: 8 << 20}}
	w.start()
	w.rng = rand.New(rand.NewPCG(seed, 1))
	h.Record()
	if err := w.run(); err != nil {
		return 0, err
	}
	r := &crash.Recording{Base: base, Events: h.Events()}
	pick := rand.New(rand.NewPCG(seed, 2))
	var answered []string
	seen := 0
	err = r.Each(seed, func(s *crash.State) error {
		for ; seen < s.At; seen++ {
			if g, ok := r.Events[seen].Mark.(given); ok {
				answered = append(answered, g.id)
			}
		}
		if pick.Float64() >= share {
			return nil
		}
		states++
		h, err := s.Host()
		if err == nil {
			err = w.judge(h, answered)
		}
		if err == nil && states%40 == 0 {
			err = w.again(h, answered, seed+uint64(states))
		}
		if err != nil {
			return fmt.Errorf("%w\n%v", err, s)
		}
		return nil
	})
	return states, err
}

// again goes on after a crash: ids from before still answer everything.
func (w *workload) again(h *sim.Host, answered []string, seed uint64) error {
	v := newWorld(h, w.name)
	v.refs = w.refs
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

// wanted is how many states are to be judged: VHDFS_TRACKING_STATES, for long runs.
func wanted(t *testing.T) int {
	n := 8_000
	if testing.Short() {
		n = 2_000
	}
	if s := os.Getenv("VHDFS_TRACKING_STATES"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	return n
}

// Whatever differs is told, for every id that was given, wherever the power goes.
func TestNothingIsLeftOutAfterAPowerCut(t *testing.T) {
	want, states := wanted(t), 0
	var bases []*sim.Host
	for _, s := range shapes {
		h, err := prepare(s)
		require.NoError(t, err)
		bases = append(bases, h)
	}
	for seed := uint64(1); states < want; seed++ {
		w := &workload{steps: 40, world: &world{spy: &spy{}, name: "d.vhdx"}}
		n, err := w.cut(bases[seed%uint64(len(bases))], seed, 0.3)
		require.NoError(t, err, "seed %d", seed)
		states += n
	}
	t.Logf("%d states", states)
}
