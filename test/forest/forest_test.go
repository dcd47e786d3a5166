package forest

import (
	"os"
	"runtime/debug"
	"testing"

	"vhdfs/test/budget"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}

const length = 20 // steps

// Whatever is done to a folder of images, each reads as it must after every step.
func TestRandomSequences(t *testing.T) {
	for _, tt := range []struct {
		name     string
		cut      Cut
		desk, ci int
	}{
		{"whole", Whole, 120, 1000},
		{"faults", Faults, 30, 100},
		{"crashes", Crashes, 15, 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			total := budget.Of(t, tt.desk, tt.ci)
			run := budget.Start(t, "forest "+tt.name, "sequences", "steps")
			for seed := run.Seed(); seed < run.Seed()+uint64(total); seed++ {
				steps := Steps(seed, length)
				if f := Run(seed, tt.cut, steps); f != nil {
					_ = run.Broken(f)
					_, f = Shrink(seed, tt.cut, steps, f, 150)
					t.Fatalf("seed %d: %v", seed, f)
				}
				run.Add("sequences", 1)
				run.Add("steps", length)
			}
		})
	}
}
