package vhdx

import (
	"bytes"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// freeBetween is a partition table that leaves [from, to) to nobody.
func freeBetween(from, to int64) func(off, n int64) bool {
	return func(off, n int64) bool { return off >= from && off+n <= to }
}

// Blocks that nobody wants go with what they hold, and the id that children know
// with the first of them. In a child they stay zeros wherever the parents are not.
func TestCompactDropsWhatIsFree(t *testing.T) {
	all, below := freeBetween(0, 13*mib), func(off, n int64) (bool, error) { return off >= 8*mib, nil }
	for _, tt := range []struct {
		name   string
		parent *fixture.Locator
		o      ops.CompactOptions
		gone   []int64
		states map[int64]uint8
	}{
		{"all", nil, ops.CompactOptions{Scan: true, Move: true, Free: all}, []int64{0, 1, 3, 4, 7, 8, 10, 11, 12}, map[int64]uint8{0: 2, 2: 0, 8: 2, 12: 2}},
		{"some", nil, ops.CompactOptions{Scan: true, Move: true, Free: freeBetween(3*mib, 8*mib)}, []int64{1, 3, 4, 7, 10}, map[int64]uint8{0: 6, 3: 2, 7: 2, 8: 6}},
		{"none whole", nil, ops.CompactOptions{Scan: true, Move: true, Free: freeBetween(3*mib+512, 4*mib)}, []int64{1, 4, 10}, map[int64]uint8{3: 6}},
		{"the last, which is short", nil, ops.CompactOptions{Scan: true, Free: freeBetween(12*mib, 12*mib+512)}, []int64{1, 4, 10, 12}, map[int64]uint8{11: 6, 12: 2}},
		{"with a trim", nil, ops.CompactOptions{Scan: true, Trim: true, Free: freeBetween(7*mib, 8*mib)}, []int64{1, 4, 7, 10}, map[int64]uint8{7: 2}},
		{"without a scan", nil, ops.CompactOptions{Move: true, Free: all}, nil, map[int64]uint8{0: 6, 12: 6}},
		{"a child over nobody knows what", parentLocator(), ops.CompactOptions{Scan: true, Move: true, Free: all}, []int64{0, 1, 3, 4, 7, 8, 10, 11, 12}, map[int64]uint8{0: 2, 2: 0, 5: 0, 8: 2, 12: 2}},
		{"a child over zeros in part", parentLocator(), ops.CompactOptions{Scan: true, Move: true, Free: all, Below: below}, []int64{0, 1, 3, 4, 7, 8, 10, 11, 12}, map[int64]uint8{0: 2, 2: 0, 8: 0, 11: 0, 12: 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := sparse(fixture.VHDX{Parent: tt.parent})
			v.Size, v.States[12] = 12*mib+512, 6
			v.Order = append(v.Order, 12)
			v.Writes = append(v.Writes, fixture.Write{Off: 12 * mib, Data: fill(512, 13)})
			h, _ := stored(t, v)
			w := openWriter(t, h)
			link, want := w.Info().LinkID, read(t, w.Disk, 0, v.Size)
			dry := tt.o
			dry.Dry = true
			plan, err := w.Compact(here, dry)
			require.NoError(t, err)
			require.Equal(t, link, w.Info().LinkID)
			require.Equal(t, want, read(t, w.Disk, 0, v.Size))
			for _, b := range tt.gone {
				clear(want[b*mib : min((b+1)*mib, v.Size)])
				for absent := b * mib; tt.states[b] == 0 && tt.o.Below != nil && b >= 8 && absent < min((b+1)*mib, v.Size); absent++ {
					want[absent] = 0xee
				}
			}
			got, err := w.Compact(here, tt.o)
			require.NoError(t, err)
			got.Trimmed, plan.Trimmed = 0, 0
			require.Equal(t, plan, got)
			require.EqualValues(t, len(tt.gone), got.Dropped)
			d := closedLeaky(t, h, w)
			require.True(t, bytes.Equal(want, read(t, d, 0, v.Size)))
			for b, s := range tt.states {
				require.Equal(t, s, entryOf(t, d, b).state(), "block %d", b)
			}
		})
	}
}

// The id that children know changes with the first block that nobody wants, and not
// for blocks of zeros.
func TestCompactOfFreeSpaceChangesTheLink(t *testing.T) {
	for from, changes := range map[int64]bool{2 * mib: true, 4 * mib: false} {
		h, _ := stored(t, sparse(fixture.VHDX{}))
		w := openWriter(t, h)
		link := w.Info().LinkID
		_, err := w.Compact(here, ops.CompactOptions{Scan: true, Free: freeBetween(from, from+2*mib+from%(4*mib)-2*mib)})
		require.NoError(t, err)
		require.Equal(t, changes, w.Info().LinkID != link, "from %d", from)
		require.NoError(t, w.Close())
	}
}

// A child's block without a sector of its own has nothing to give up: what its
// parent holds there goes on to be seen.
func TestCompactLeavesParentsBytes(t *testing.T) {
	v := fixture.VHDX{Size: 4 * mib, BlockSize: 1 << 20, Parent: parentLocator(), Order: []int64{1}, States: map[int64]uint8{1: 7}}
	h, _ := place(t, v)
	w := openWriter(t, h)
	want := read(t, w.Disk, 0, v.Size)
	require.Equal(t, uint8(statePartial), uint8(entryOf(t, w.Disk, 1).state()))
	got, err := w.Compact(here, ops.CompactOptions{Scan: true, Free: freeBetween(0, v.Size)})
	require.NoError(t, err)
	require.Zero(t, got.Dropped)
	require.Equal(t, want, read(t, closedLeaky(t, h, w), 0, v.Size))
}

// Whoever comes before a block has gone keeps it; who comes while that is asked for
// the last time waits, and finds zeros around what he writes.
func TestCompactOfFreeSpaceMeetsWriters(t *testing.T) {
	const at = 3*mib + 4096
	for _, tt := range []struct {
		name  string
		first bool // the guest writes as soon as the block is looked at
		end   bool // what is free ends with that
	}{
		{"a write before", true, false},
		{"a writer before", false, true},
		{"a write while it goes", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := stored(t, sparse(fixture.VHDX{}))
			w := openWriter(t, h)
			write(t, w, 9*mib, fill(512, 1))
			want, asked := read(t, w.Disk, 0, 12*mib), 0
			var guest sync.WaitGroup
			_, err := w.Compact(here, ops.CompactOptions{Scan: true, Free: func(off, n int64) bool {
				if off != 3*mib {
					return false
				}
				if asked++; tt.end {
					return asked == 1
				}
				if first := asked == 1; first == tt.first && asked < 3 {
					guest.Go(func() { write(t, w, at, fill(512, 77)) })
				}
				if tt.first {
					guest.Wait()
				} else if asked == 2 {
					require.False(t, w.mu.TryRLock(), "a guest could write the block")
				}
				return true
			}})
			require.NoError(t, err)
			guest.Wait()
			if !tt.first && !tt.end {
				clear(want[3*mib : 4*mib])
			}
			if !tt.end {
				copy(want[at:], fill(512, 77))
			}
			require.True(t, bytes.Equal(want, read(t, closedLeaky(t, h, w), 0, 12*mib)))
		})
	}
}

// A power cut leaves what was free as it was, with the id of then or another one, or
// zeros, which no child takes for it.
func TestPowerCutsOfCompactOfFreeSpace(t *testing.T) {
	for _, parent := range []*fixture.Locator{nil, parentLocator()} {
		v := fixture.VHDX{Size: 4 * mib, BlockSize: 1 << 20, Parent: parent, Order: []int64{2, 0, 1, 3}, States: map[int64]uint8{0: 6, 1: 6, 2: 6}}
		for _, b := range []int64{0, 2} {
			v.Writes = append(v.Writes, fixture.Write{Off: b * mib, Data: fill(int(mib), byte(b+1))})
		}
		v.Writes = append(v.Writes, fixture.Write{Off: mib, Data: make([]byte, mib)}, fixture.Write{Off: 3*mib + 8192, Data: fill(4096, 7)})
		c := crashed{child: parent != nil, was: v.Writes, host: func(t *testing.T) *sim.Host { h, _ := stored(t, v); return h }}
		q := crash.Sequence{{Name: "compact", Do: func(g *crash.Guest) error { return g.Compact(compactAll, 4*mib, 2*mib) }}, crash.Steps[8]}
		n, err := cutChange(t, c, q, judgeCompact)
		require.NoError(t, err)
		t.Logf("%d states", n)
	}
}
