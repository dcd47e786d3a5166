// Package conformance holds what every format's layers must do, as suites that
// the format's own tests run:
//
//	// a layer that holds want, opened read-only or not
//	conformance.Layer(t, func(t *testing.T) ops.Layer { … }, want)
//
//	// an image written through the format: random changes against a byte model
//	conformance.Writer(t, vhdx.Format(), conformance.Created(vhdx.Format(), ops.CreateSpec{…}), conformance.NewDisk(size))
//
//	want := conformance.NewDisk(size)  // all absent
//	want.Write(off, data)              // whole sectors of 512 bytes
//	want.Zero(off, n)
//
// Kinds are exact where Info says that the layer is differencing: bytes must be
// absent just where want says so. Other layers may tell absent, zero and stored
// zeros apart as their format does; their bytes count.
package conformance

import (
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// tb is the part of testing.TB that a check uses, so that the suite's own tests
// can watch it fail.
type tb interface {
	require.TestingT
	Helper()
}

// Layer asks that open's layers hold want and keep the contract of [ops.Layer]:
// ranges, io.EOF, runs at all alignments, extents that tile the disk and agree
// with the runs, concurrent reads. open is called once for each sub-test; the
// suite closes what it gives.
func Layer(t *testing.T, open func(t *testing.T) ops.Layer, want *Disk) {
	t.Helper()
	for _, c := range []struct {
		name  string
		check func(tb, ops.Layer, *Disk)
	}{
		{"bounds", checkBounds},
		{"extents tile the disk", checkExtents},
		{"runs at edges", checkRuns},
		{"whole disk", checkContent},
		{"concurrent reads", checkConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := open(t)
			c.check(t, l, want)
			require.NoError(t, l.Close())
		})
	}
}

func checkBounds(t tb, l ops.Layer, want *Disk) {
	size := want.Size()
	require.Equal(t, size, l.Size())
	buf := make([]byte, 2*sector)
	for _, off := range []int64{size, size + 1, size + sector, math.MaxInt64 - sector, math.MaxInt64} {
		n, _, err := l.ReadRun(buf, off)
		require.ErrorIs(t, err, io.EOF, "ReadRun at %d of %d", off, size)
		require.Zero(t, n)
		_, err = l.Extent(off, sector)
		require.ErrorIs(t, err, io.EOF, "Extent at %d of %d", off, size)
	}
	for _, off := range []int64{-1, -sector, math.MinInt64} {
		n, _, err := l.ReadRun(buf, off)
		require.Error(t, err, "ReadRun at %d", off)
		require.NotErrorIs(t, err, io.EOF, "ReadRun at %d", off)
		require.Zero(t, n)
		_, err = l.Extent(off, sector)
		require.Error(t, err, "Extent at %d", off)
		require.NotErrorIs(t, err, io.EOF, "Extent at %d", off)
	}
	n, _, err := l.ReadRun(nil, 0)
	require.NoError(t, err, "an empty read")
	require.Zero(t, n)
	if size == 0 {
		return
	}
	n, _, err = l.ReadRun(buf, size-1)
	require.NoError(t, err, "the last byte")
	require.Equal(t, 1, n, "a run may not pass the end of the disk")
	e, err := l.Extent(size-1, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, int64(1), e.Len, "an extent may not pass the end of the disk")
}

// checkExtents walks the disk by extents and asks each for its runs.
func checkExtents(t tb, l ops.Layer, want *Disk) {
	size := want.Size()
	buf := make([]byte, 4096)
	steps := 0
	for off := int64(0); off < size; steps++ {
		e, err := l.Extent(off, size-off)
		require.NoError(t, err, "Extent at %d", off)
		require.Positive(t, e.Len, "Extent at %d", off)
		require.LessOrEqual(t, e.Len, size-off, "Extent at %d", off)
		if e.Kind == ops.Data {
			require.GreaterOrEqual(t, e.Pos, int64(0), "Extent at %d", off)
		} else {
			require.Equal(t, int64(-1), e.Pos, "Extent at %d", off)
		}
		for _, at := range []int64{off, off + e.Len/2, off + e.Len - 1} {
			part, err := l.Extent(at, 1)
			require.NoError(t, err)
			require.Equal(t, int64(1), part.Len, "Extent at %d of at most 1 byte", at)
			require.Equal(t, e.Kind, part.Kind, "kind at %d", at)
			if e.Kind == ops.Data {
				require.Equal(t, e.Pos+at-off, part.Pos, "file offset of %d", at)
			}
			n, k, err := l.ReadRun(buf, at)
			require.NoError(t, err)
			require.Positive(t, n)
			require.Equal(t, e.Kind, k, "Extent and ReadRun differ at %d", at)
		}
		off += e.Len
	}
	require.LessOrEqual(t, steps, 1<<20, "extents are not joined")
}

// checkRuns reads around every edge at every kind of alignment.
func checkRuns(t tb, l ops.Layer, want *Disk) {
	edges, err := want.edges(l)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(edges), func(i, j int) { edges[i], edges[j] = edges[j], edges[i] })
	for _, at := range edges[:min(len(edges), 200)] {
		for _, shift := range []int64{-4097, -4096, -513, -512, -511, -1, 0, 1, 511, 512, 513} {
			for _, n := range []int64{1, 511, 512, 513, 4096, 9000} {
				off := at + shift
				if off >= 0 && off < want.Size() {
					checkRange(t, l, want, off, min(n, want.Size()-off))
				}
			}
		}
	}
}

const (
	canary    = 0xA5
	zeroFound = 0
)

// checkRange reads [off, off+n) run by run and compares bytes and kinds.
func checkRange(t tb, l ops.Layer, want *Disk, off, n int64) {
	differencing := l.Info().Type == ops.Differencing
	got, expect := make([]byte, n), make([]byte, n)
	for i := range got {
		got[i] = canary
	}
	fill := byte(zeroFound)
	if differencing {
		fill = canary
	}
	want.ReadAt(expect, off, fill)
	for at := int64(0); at < n; {
		k, kind, err := l.ReadRun(got[at:], off+at)
		if err != nil || k <= 0 || int64(k) > n-at {
			require.Fail(t, "bad run", "ReadRun of %d at %d: n=%d, %v", n-at, off+at, k, err)
		}
		run := got[at : at+int64(k)]
		if kind == ops.Absent {
			require.Equal(t, -1, indexNot(run, canary), "absent bytes at %d were changed", off+at)
		}
		if kind == ops.Absent && !differencing {
			clear(run)
		}
		if differencing {
			for i := int64(0); i < int64(k); i += sector {
				if want.Absent(off+at+i) != (kind == ops.Absent) {
					require.Fail(t, "wrong kind", "kind %d at %d", kind, off+at+i)
				}
			}
		}
		at += int64(k)
	}
	sameBytes(t, expect, got, off)
}

func indexNot(p []byte, b byte) int {
	for i := range p {
		if p[i] != b {
			return i
		}
	}
	return -1
}

func sameBytes(t tb, expect, got []byte, off int64) {
	for i := range expect {
		if expect[i] != got[i] {
			require.Equal(t, expect[i], got[i], "byte at %d", off+int64(i))
		}
	}
}

// checkContent compares what is expected to hold something, and samples the rest.
func checkContent(t tb, l ops.Layer, want *Disk) {
	size := want.Size()
	const step = 1 << 20
	if size <= 64*step {
		for off := int64(0); off < size; off += step {
			checkRange(t, l, want, off, min(step, size-off))
		}
		return
	}
	for i := range want.sectors {
		checkRange(t, l, want, i*sector, min(sector, size-i*sector))
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		off := rng.Int64N(size)
		checkRange(t, l, want, off, min(1+rng.Int64N(4096), size-off))
	}
}

// checkConcurrent reads from many goroutines; run it with -race.
func checkConcurrent(t tb, l ops.Layer, want *Disk) {
	edges, err := want.edges(l)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 5))
			for range 100 {
				off := min(max(0, edges[rng.IntN(len(edges))]+rng.Int64N(8192)-4096), want.Size()-1)
				checkRange(t, l, want, off, min(1+rng.Int64N(8192), want.Size()-off))
			}
		})
	}
	wg.Wait()
}
