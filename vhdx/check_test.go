package vhdx

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

func checked(t testing.TB, d *Disk, between func()) (list []ops.Anomaly) {
	t.Helper()
	require.NoError(t, d.Check(t.Context(), func(a ops.Anomaly) {
		list = append(list, a)
		if between != nil && a.Name == "vhdx.bat.offset" {
			between()
		}
	}))
	return list
}

// Space that two share is reported with both, and never at the block that has
// content because another says that it kept that space.
func TestCheckNamesWhoSharesSpace(t *testing.T) {
	two := []fixture.Write{{Off: 0, Data: fill(512, 1)}, {Off: 2 * mib, Data: fill(512, 2)}} // at 4 and 6 MiB
	const full, kept, undefined = 6, 3, 1
	for _, tt := range []struct {
		name    string
		child   bool
		entries map[int64]uint64
		want    []string
	}{
		{"two blocks", false, map[int64]uint64{1: 4<<20 | full},
			[]string{"error bat entry 1: block at 0x400000 overlaps that of bat entry 0 at 0x400000"}},
		{"half of a block", false, map[int64]uint64{1: 5<<20 | full},
			[]string{"error bat entry 1: block at 0x500000 overlaps that of bat entry 0 at 0x400000"}},
		{"three blocks", false, map[int64]uint64{1: 4<<20 | full, 2: 5<<20 | full},
			[]string{"error bat entry 1: block at 0x400000 overlaps that of bat entry 0 at 0x400000", "error bat entry 2: block at 0x500000 overlaps that of bat entry 0 at 0x400000"}},
		{"kept, before the block", false, map[int64]uint64{0: 6<<20 | kept, 1: 6<<20 | full},
			[]string{"warning bat entry 0: space kept at 0x600000 is that of bat entry 1 at 0x600000, too"}},
		{"kept, behind the block", false, map[int64]uint64{4: 5<<20 | undefined},
			[]string{"warning bat entry 4: space kept at 0x500000 is that of bat entry 0 at 0x400000, too"}},
		{"kept twice", false, map[int64]uint64{0: 4<<20 | kept, 3: 4<<20 | kept},
			[]string{"warning bat entry 3: space kept at 0x400000 is that of bat entry 0 at 0x400000, too"}},
		{"kept twice, and a block", false, map[int64]uint64{0: 6<<20 | kept, 3: 6<<20 | kept, 1: 6<<20 | full},
			[]string{"warning bat entry 3: space kept at 0x600000 is that of bat entry 0 at 0x600000, too", "warning bat entry 0: space kept at 0x600000 is that of bat entry 1 at 0x600000, too"}},
		{"kept of the log", false, map[int64]uint64{3: 1<<20 | kept},
			[]string{"warning bat entry 3: space kept at 0x100000 is that of the headers, the log or a region, too"}},
		{"a block over a bitmap", true, map[int64]uint64{3: 4<<20 | full},
			[]string{"error bat entry 3: block at 0x400000 overlaps that of bat entry 0 at 0x500000", "error bat entry 2048: block at 0x400000 overlaps that of bat entry 3 at 0x400000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := fixture.VHDX{Size: 16 * mib, BlockSize: 2 << 20, Writes: two, Entries: tt.entries}
			if tt.child {
				v.Parent = parentLocator()
			}
			var got []string
			for _, a := range checked(t, openRead(t, v), nil) {
				if a.Name == "vhdx.bat.overlap" {
					got = append(got, fmt.Sprintf("%s %s: %s", a.Severity, a.Where, a.Text))
				}
			}
			require.Equal(t, tt.want, got)
		})
	}
}

// Of a table of nothing but overlaps a thousand are named, first of all and each with
// the other, and the rest is counted.
func TestCheckOfATableOfOneBlock(t *testing.T) {
	v := fixture.VHDX{Size: 5000 * mib, BlockSize: 1 << 20, Entries: map[int64]uint64{}}
	for i := range int64(4000) {
		v.Entries[i] = 4<<20 | 6
	}
	for i := range int64(90) {
		v.Entries[4000+i] = 4<<20 | 1 // kept
	}
	v.Writes = []fixture.Write{{Off: 0, Data: fill(512, 1)}}
	list := slices.DeleteFunc(checked(t, openRead(t, v), nil), func(a ops.Anomaly) bool { return a.Name != "vhdx.bat.overlap" })
	for i, a := range list[:ops.MaxFindings] {
		require.Equal(t, "block at 0x400000 overlaps that of bat entry 0 at 0x400000", a.Text, i)
	}
	require.Equal(t, []ops.Anomaly{
		{Name: "vhdx.bat.overlap", Severity: ops.Broken, Where: "bat", Text: fmt.Sprintf("%d more blocks overlap something else", 3999-ops.MaxFindings)},
		{Name: "vhdx.bat.overlap", Severity: ops.Warning, Where: "bat", Text: "90 more blocks kept space that is something else's, too"},
	}, list[ops.MaxFindings:])
}

// wide is a disk whose table a check reads in several pieces, each with something to
// report. Blocks 0, 1, 70000 and 140000 have content.
func wide() fixture.VHDX {
	v := fixture.VHDX{Size: 200 << 30, BlockSize: 1 << 20, Entries: map[int64]uint64{}}
	for _, b := range []int64{0, 1, 70_000, 140_000} {
		v.Writes = append(v.Writes, fixture.Write{Off: b * mib, Data: fill(512, byte(b+1))})
		v.Entries[b+b/4096+10] = 64 << 20
	}
	return v
}

// Between two pieces of the table anybody gets in, and whatever changes there is
// followed: what a check says at its end is what one without a disturbance says.
func TestCheckLetsWritersIn(t *testing.T) {
	write := func(b int64) func(w *Writer) error {
		return func(w *Writer) error { _, err := w.WriteAt(fill(4096, 7), b*mib); return err }
	}
	zero := func(b int64) func(w *Writer) error {
		return func(w *Writer) error { return w.Zero(b*mib, mib, true) }
	}
	compact := func(w *Writer) error { _, err := w.Compact(here, compactAll); return err }
	resize := func(size int64) func(w *Writer) error {
		return func(w *Writer) error { return w.Resize(here, size, 0) }
	}
	for name, steps := range map[string][]func(w *Writer) error{
		"new blocks":      {write(2), write(100_000), write(3), write(150_000)},
		"fewer blocks":    {zero(0), zero(140_000), zero(70_000)},
		"there and back":  {write(2), zero(2), write(2), zero(140_000)},
		"in kept places":  {zero(0), (*Writer).Flush, write(5), write(130_000)},
		"moved":           {zero(0), compact, write(9)},
		"moved later":     {write(2), zero(0), compact, write(9)},
		"a moved table":   {write(2), resize(900 << 30), write(3), write(800_000)},
		"a smaller disk":  {write(190_000), write(2), resize(150 << 30), zero(0)},
		"smaller, larger": {write(2), resize(100 << 30), func(w *Writer) error { return errors.Join(resize(210<<30)(w), write(209_000)(w)) }},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := place(t, wide())
			w := openWriter(t, h)
			n := 0
			during := checked(t, w.Disk, func() {
				if n < len(steps) {
					require.True(t, w.mu.TryLock(), "a check holds the disk while it reports")
					w.mu.Unlock()
					require.NoError(t, steps[n](w))
				}
				n++
			})
			require.GreaterOrEqual(t, n, len(steps))
			last := func(list []ops.Anomaly) (s string) {
				for _, a := range list {
					require.Contains(t, []string{"vhdx.bat.offset", "vhdx.space.leaked"}, a.Name)
					if s = ""; a.Name == "vhdx.space.leaked" {
						s = a.Text
					}
				}
				return s
			}
			require.Equal(t, last(checked(t, w.Disk, nil)), last(during))
			require.Empty(t, w.checks)
			require.NoError(t, w.Close())
		})
	}
}

// Whoever writes while others check finds the disk as sound as they do.
func TestChecksBesideWriters(t *testing.T) {
	h, _ := place(t, wide())
	w := openWriter(t, h)
	var writers sync.WaitGroup
	for g := range uint64(2) {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			for range 300 {
				at := rng.Int64N(200_000) * mib
				var err error
				switch rng.IntN(4) {
				case 0:
					err = w.Zero(at, mib, true)
				case 1:
					err = w.Flush()
				default:
					_, err = w.WriteAt(fill(512, byte(at/mib)), at)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 10 {
		for _, a := range checked(t, w.Disk, nil) {
			require.Contains(t, []string{"vhdx.bat.offset", "vhdx.space.leaked"}, a.Name)
		}
	}
	writers.Wait()
	require.NoError(t, w.Close())
}
