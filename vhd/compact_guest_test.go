package vhd

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// Guests write, zero and flush while the disk is compacted and grows, again and
// again; nobody sees anything but what was written.
func TestChangesBesideGuests(t *testing.T) {
	for _, typ := range []ops.Type{ops.Dynamic, ops.Differencing} {
		t.Run(typ.String(), func(t *testing.T) {
			const block, blocks, guests = 16 << 10, 64, 4
			v := fixture.VHD{Size: blocks * block, BlockSize: block, Type: int(typ)}
			if typ == ops.Differencing {
				v.Parent = parent()
			}
			h := disk(v.Bytes())
			w := openWriter(t, h)
			var wg sync.WaitGroup
			stop := make(chan struct{})
			disk := make([]byte, v.Size)
			for g := range int64(guests) { // each has blocks of its own
				wg.Go(func() { guest(t, w, disk, g, guests, blocks, block, stop) })
			}
			for i := range 30 {
				compact(t, w, everything())
				if typ == ops.Dynamic {
					require.NoError(t, resizeTo(v.Size+int64(i)*70*block)(w))
				}
			}
			close(stop)
			wg.Wait()
			compact(t, w, everything())
			got, err := readLayer(w, 0, v.Size, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(disk, got))
			require.NoError(t, w.Close())
			l := mustOpen(t, image(t, h))
			require.Empty(t, names(findings(t, l)))
			got, err = readLayer(l, 0, v.Size, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(disk, got))
		})
	}
}

// guest changes its blocks and reads them back until stop.
func guest(t *testing.T, w ops.Writer, disk []byte, g, guests, blocks, block int64, stop chan struct{}) {
	rng := rand.New(rand.NewPCG(7, uint64(g)))
	for {
		select {
		case <-stop:
			return
		default:
		}
		b := rng.Int64N(blocks/guests)*guests + g
		off := b*block + rng.Int64N(block/512)*512
		n := min(512*(1+rng.Int64N(8)), (b+1)*block-off)
		var err error
		switch rng.IntN(6) {
		case 0:
			off, n = b*block, block
			err = w.Zero(off, n, rng.IntN(2) == 0)
			clear(disk[off : off+n])
		case 1:
			err = w.Flush()
		default:
			p := pattern(int(n), byte(1+rng.IntN(255)))
			_, err = w.WriteAt(p, off)
			copy(disk[off:], p)
		}
		if err != nil {
			t.Error(err)
			return
		}
		got, err := readLayer(w, b*block, block, 0)
		if err != nil || !bytes.Equal(disk[b*block:(b+1)*block], got) {
			t.Errorf("block %d reads otherwise: %v", b, err)
			return
		}
	}
}

// A compacted disk is the same for QEMU, and as short as one that it makes of the
// same bytes; 7-Zip and QEMU find nothing wrong.
func TestPeersReadWhatIsCompacted(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, "qemu-img", "create", "-f", "vpc", "-o", "force_size=on", "d.vhd", "64M")
	w := openIn(t, dir, "d.vhd", ops.Write).(ops.Writer)
	raw := make([]byte, 64<<20)
	scribble(t, w, raw, rand.New(rand.NewPCG(5, 0)), 60)
	for b := int64(0); b < 32; b += 3 {
		require.NoError(t, w.Zero(b*2<<20, 2<<20, false))
		clear(raw[b*2<<20:][:2<<20])
	}
	res := compact(t, w, everything())
	require.Positive(t, res.Dropped)
	require.Positive(t, res.Moved)
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600))
	requireSame(t, dir)
	run(t, dir, "7z", "t", "-tvhd", "d.vhd")
	run(t, dir, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", "raw", "q.vhd")
	ours, err := os.Stat(filepath.Join(dir, "d.vhd"))
	require.NoError(t, err)
	theirs, err := os.Stat(filepath.Join(dir, "q.vhd"))
	require.NoError(t, err)
	require.LessOrEqual(t, ours.Size(), theirs.Size()+64*blockAlignment, "alignment apart")
}

// A block that went comes back with a bitmap of its own: none of its former bits,
// waiting or remembered, is stored anywhere.
func TestDroppedBlockComesBack(t *testing.T) {
	v := fixture.VHD{Size: 64 << 10, BlockSize: 4096, ExactBitmap: true, Writes: []fixture.Write{{Off: 512, Data: make([]byte, 512)}, {Off: 4096, Data: pattern(4096, 1)}}}
	for _, typ := range []int{3, 4} {
		v.Type = typ
		if typ == 4 {
			v.Parent = parent()
		}
		h := disk(v.Bytes())
		edit(t, h, func(w ops.Writer) {
			write(t, w, 1024, 0, 1) // waits, like the next
			write(t, w, 8192, 0, 1)
			_, err := readLayer(w, 0, 4096, 0) // remembers
			require.NoError(t, err)
			require.EqualValues(t, 2, compact(t, w, everything()).Dropped)
			write(t, w, 2048, 7, 1)
			write(t, w, 2560, 8, 1)
		})
		b := image(t, h)
		l := mustOpen(t, b)
		require.Empty(t, l.Info().Anomalies)
		require.Empty(t, findings(t, l))
		at, ok, err := l.(*Disk).blockLocked(0)
		require.NoError(t, err)
		require.True(t, ok)
		want := pattern(512, 0xff)
		if typ == 4 {
			clear(want)
			setBits(want, 4, 6)
		}
		require.Equal(t, want, b[at:at+512])
	}
}

// No block moves between the two halves of a flush: its bits would be stored where
// nobody looks for them.
func TestNoMoveInsideAFlush(t *testing.T) {
	v := fixture.VHD{Size: 64 << 10, BlockSize: 4096, Type: 4, Parent: parent(), Gap: 3 * 4608, Blocks: []int64{1, 2, 3, 4}}
	h := disk(v.Bytes())
	w := openWriter(t, h)
	write(t, w, 4096, 1, 1)
	require.NoError(t, w.Flush())
	inside, done := make(chan struct{}), make(chan error, 1)
	o, passed := ops.CompactOptions{Move: true}, 0
	o.Progress = func(int64, int64) {
		if passed++; passed > 1 {
			return
		}
		write(t, w, 3*4096, 3, 1)
		h.SetFault(func(c sim.Call) error {
			if c.Op == sim.OpSync && c.Label == "vhd.data" && inside != nil {
				changes := h.Changes()
				close(inside)
				inside = nil
				for range 10_000 {
					runtime.Gosched()
				}
				if h.Changes() != changes {
					t.Error("something changed while the flush went on")
				}
			}
			return nil
		})
		entered := inside
		go func() { done <- w.Flush() }()
		<-entered
	}
	require.Positive(t, compact(t, w, o).Moved)
	require.NoError(t, <-done)
	h.SetFault(nil)
	require.NoError(t, w.Close())
}

// When more gaps are found than are remembered, those that the moves themselves
// leave are not among the next.
func TestMovesLeaveTheirOwnPlacesAlone(t *testing.T) {
	for name, c := range compactTests() {
		t.Run(name, func(t *testing.T) {
			c.image.Gap = 2 * 4608
			c.change = func(g *crash.Guest) error {
				return besideGuest(g, func(o ops.CompactOptions) error {
					run := &compaction{w: g.Writer.(*writer), o: o, maxGaps: 1}
					return run.run(context.Background())
				})
			}
			_, err := c.states(t)
			require.NoError(t, err)
		})
	}
}
