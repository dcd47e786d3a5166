package crash

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"vhdfs/test/sim"
)

// Judge calls judge with a share of the states of a recording, from 0 to 1, after the
// first of its events: the host as it would be found, the marks that had been
// acknowledged by then, and the number of the state. A state that it does not like is
// a [Violation]. states is how many were judged.
func (r *Recording) Judge(o Options, share float64, judge func(h *sim.Host, marks []any, n int) error) (states int, err error) {
	pick := rand.New(rand.NewPCG(o.Seed, 2))
	var marks []any
	seen := 0
	err = r.Each(o.Seed, func(s *State) error {
		for ; seen < s.At; seen++ {
			if e := r.Events[seen]; e.Op == sim.OpAck && e.Mark != nil {
				marks = append(marks, e.Mark)
			}
		}
		if s.At < o.After || share < 1 && pick.Float64() >= share {
			return nil
		}
		states++
		h, err := s.Host()
		if err == nil {
			err = judge(h, marks, states)
		}
		if err != nil {
			return &Violation{State: s, Depth: 1, Err: err}
		}
		return nil
	})
	return states, err
}

// Seeds calls cut with one seed after the other, from first on and as many at a time
// as there are processors, until it has judged want states. Its error is that of the
// lowest seed that has one.
func Seeds(first uint64, want int, cut func(seed uint64) (states int, err error)) (int, error) {
	var mu sync.Mutex
	next, states := first, 0
	failed := map[uint64]error{}
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for states < want && len(failed) == 0 {
				seed := next
				next++
				mu.Unlock()
				n, err := cut(seed)
				mu.Lock()
				if states += n; err != nil {
					failed[seed] = fmt.Errorf("seed %d: %w", seed, err)
				}
			}
		})
	}
	workers.Wait()
	if len(failed) == 0 {
		return states, nil
	}
	return states, failed[slices.Min(slices.Collect(maps.Keys(failed)))]
}
