package model

import (
	"os"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/budget"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}

const runLength = 250

func TestRandomOperations(t *testing.T) {
	list := Configs()
	total := budget.Of(t, 30_000, 500_000)
	if raceEnabled {
		total = 30_000
	}
	run := budget.Start(t, "model", "operations")
	for _, c := range list {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			for seed := run.Seed(); int(seed-run.Seed())*runLength < total/len(list); seed++ {
				ops := Random(seed, c, runLength)
				if f := Run(c, seed, ops); f != nil {
					_ = run.Broken(f)
					short, f := Shrink(c, seed, ops, f, 200)
					t.Fatalf("seed %d: %v\n%s", seed, f, Script(short))
				}
				run.Add("operations", runLength)
			}
		})
	}
}

// forgetful loses every write that holds a byte of 77.
type forgetful struct{ ops.Writer }

func (l forgetful) WriteAt(p []byte, off int64) (int, error) {
	for _, b := range p {
		if b == 77 {
			return len(p), nil
		}
	}
	return l.Writer.WriteAt(p, off)
}

// A format that loses writes is seen, and few operations are left to look at.
func TestModelSeesLostWritesAndShrinks(t *testing.T) {
	c := Configs()[0]
	good := *c.Format
	bad := good
	bad.Open = func(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
		l, err := good.Open(f, o)
		if w, ok := l.(ops.Writer); ok && err == nil {
			return forgetful{w}, nil
		}
		return l, err
	}
	list := Random(1, c, runLength)
	require.Nil(t, Run(c, 1, list))
	c.Format = &bad
	f := Run(c, 1, list)
	require.NotNil(t, f)
	short, f := Shrink(c, 1, list, f, 500)
	require.NotNil(t, f)
	require.LessOrEqual(t, len(short), 3, "%v\n%s", f, Script(short))
	require.NotEmpty(t, Script(short))
}
