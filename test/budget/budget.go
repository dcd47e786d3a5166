// Package budget says how much the engines of test/ do, and writes down what they
// did: little at a desk, more where CI is set, and what VHDFS_SOAK says before a
// release, from the seed in VHDFS_SEED on.
package budget

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// Of is how many states, points or operations a run has.
func Of(t testing.TB, desk, ci int) int {
	t.Helper()
	if os.Getenv("CI") != "" {
		desk = ci
	}
	return int(number(t, "VHDFS_SOAK", uint64(desk)))
}

// Seed is the first seed of a run, at least 1.
func Seed(t testing.TB) uint64 {
	t.Helper()
	return max(1, number(t, "VHDFS_SEED", 1))
}

func number(t testing.TB, name string, usual uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return usual
	}
	n, err := strconv.ParseUint(s, 10, 62)
	if err != nil {
		t.Fatalf("%s is no number: %v", name, err)
	}
	return n
}

// Run counts what one run of an engine does. Safe for concurrent use.
type Run struct {
	engine     string
	seed       uint64
	start      time.Time
	violations atomic.Int64
	counts     map[string]*atomic.Int64
}

// Start begins a run. When the test ends, a line of JSON says what was done: in the
// log of the test, and at the end of the file that VHDFS_SOAK_LOG names.
func Start(t testing.TB, engine string, counts ...string) *Run {
	t.Helper()
	return StartAt(t, engine, Seed(t), counts...)
}

// StartAt is Start for an engine that chose its first seed itself.
func StartAt(t testing.TB, engine string, seed uint64, counts ...string) *Run {
	t.Helper()
	r := &Run{engine: engine, seed: seed, start: time.Now(), counts: map[string]*atomic.Int64{}}
	for _, name := range counts {
		r.counts[name] = &atomic.Int64{}
	}
	t.Cleanup(func() {
		if t.Failed() && r.violations.Load() == 0 {
			r.violations.Add(1)
		}
		line := r.line()
		t.Logf("%s", line)
		if err := store(os.Getenv("VHDFS_SOAK_LOG"), line); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Seed is the first seed.
func (r *Run) Seed() uint64 { return r.seed }

// Add counts; the name is one that [Start] was given.
func (r *Run) Add(name string, n int) { r.counts[name].Add(int64(n)) }

// Broken counts an error as a violation, and answers it.
func (r *Run) Broken(err error) error {
	if err != nil {
		r.violations.Add(1)
	}
	return err
}

func (r *Run) line() []byte {
	counts := map[string]int64{}
	for name, n := range r.counts {
		counts[name] = n.Load()
	}
	b, err := json.Marshal(struct {
		Engine     string           `json:"engine"`
		Seed       uint64           `json:"seed"`
		Counts     map[string]int64 `json:"counts"`
		Violations int64            `json:"violations"`
		Seconds    float64          `json:"seconds"`
	}{r.engine, r.seed, counts, r.violations.Load(), time.Since(r.start).Round(time.Millisecond).Seconds()})
	if err != nil {
		panic(err) // numbers and strings
	}
	return b
}

func store(name string, line []byte) error {
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// Shrink leaves parts out of a list that fails, halves first, as long as it still
// fails, within tries calls of run. at is the index of the failure in the list, its
// length for one that the end showed; run answers that of a shorter list, and
// whether that fails.
func Shrink[T any](list []T, at, tries int, run func(shorter []T) (at int, fails bool)) []T {
	list = list[:min(at+1, len(list))]
	for size := len(list) / 2; size > 0; size /= 2 {
		for from := 0; from+size <= len(list) && tries > 0; tries-- {
			shorter := slices.Delete(slices.Clone(list), from, from+size)
			if at, fails := run(shorter); fails {
				list = shorter[:min(at+1, len(shorter))]
				continue
			}
			from += size
		}
	}
	return list
}
