package model

import (
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}

// budget is how many operations all chains together see.
func budget(t *testing.T) int {
	t.Helper()
	if n := os.Getenv("VHDFS_SOAK"); n != "" {
		list, err := strconv.Atoi(n)
		require.NoError(t, err, "VHDFS_SOAK is a number of operations")
		return list
	}
	if os.Getenv("CI") != "" && !raceEnabled {
		return 500_000
	}
	return 30_000
}

const runLength = 250

func TestRandomOperations(t *testing.T) {
	list := Configs()
	perChain := budget(t) / len(list)
	var done atomic.Int64
	t.Cleanup(func() { t.Logf("%d operations on %d kinds of chain", done.Load(), len(list)) })
	for _, c := range list {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); int(seed-1)*runLength < perChain; seed++ {
				ops := Random(seed, c, runLength)
				if f := Run(c, seed, ops); f != nil {
					short, f := Shrink(c, seed, ops, f, 200)
					t.Fatalf("seed %d: %v\n%s", seed, f, Script(short))
				}
				done.Add(runLength)
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
