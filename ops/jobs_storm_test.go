package ops_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"vhdfs/ops"
)

// Many goroutines ask, cancel and look; run with the race detector.
func TestJobsConcurrently(t *testing.T) {
	d := newDesk(t)
	var users sync.WaitGroup
	var mu sync.Mutex
	inside := map[string]bool{}
	for i := range 16 {
		users.Go(func() {
			image := []string{"a", "b"}[i%2]
			for n := range 50 {
				j, err := d.start(ops.Op{Name: "work", Writes: true, Plans: true, Run: func(ctx context.Context, r *ops.Request) (ops.Fields, error) {
					mu.Lock()
					if inside[image] {
						t.Error("two at a time")
					}
					inside[image] = true
					mu.Unlock()
					for k := range int64(10) {
						r.Progress(k, 10)
					}
					mu.Lock()
					inside[image] = false
					mu.Unlock()
					return nil, ctx.Err()
				}}, image)
				if errors.Is(err, ops.ErrBusy) {
					continue
				}
				if err != nil {
					t.Error(err)
				}
				if n%3 == 0 {
					j.Cancel()
				}
				j.Accept(context.Background())
				for _, other := range d.jobs.List() {
					other.Status().Percent()
				}
				j.Wait(context.Background())
			}
		})
	}
	users.Wait()
}
