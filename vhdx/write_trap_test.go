package vhdx

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// create makes an image on a new host.
func created(t testing.TB, s ops.CreateSpec) *sim.Host {
	t.Helper()
	h := sim.New()
	f, err := h.Dir("/img").Create(testImage, 0o600)
	require.NoError(t, err)
	require.NoError(t, Format.Create(f, s))
	require.NoError(t, f.Close())
	return h
}

func entryOf(t testing.TB, d *Disk, block int64) entry {
	t.Helper()
	e, err := d.entryAt(d.geometry.payloadIndex(block))
	require.NoError(t, err)
	return e
}

// Entries at the edges of table pages: writing one changes no other.
func TestEntriesAtPageEdges(t *testing.T) {
	h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 2 << 30, BlockSize: 1 << 20})
	w := openWriter(t, h)
	blocks := []int64{0, 511, 512, 513, 1023, 1024, 1025, 2047}
	for i, b := range blocks {
		write(t, w, b*mib, fill(512, byte(i+1)))
		require.NoError(t, w.Flush())
	}
	d := closed(t, h, w)
	for i, b := range blocks {
		require.Equal(t, newEntry(stateFull, 4*mib+int64(i)*mib), entryOf(t, d, b))
		require.Equal(t, fill(512, byte(i+1)), read(t, d, b*mib, 512))
	}
	present := 0
	require.NoError(t, d.scanBAT(0, d.geometry.entries, nil, func(_ int64, e entry) bool {
		if e != 0 {
			present++
		}
		return true
	}))
	require.Equal(t, len(blocks), present)
}

// The first write of a block at any place in it: the rest reads as zeros, and
// the data stand at the sector's offset, not at the block's start.
func TestFirstWriteInsideABlock(t *testing.T) {
	for _, off := range []int64{0, 512, mib, 2*mib - 512} {
		h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 16 * mib, BlockSize: 2 << 20})
		w := openWriter(t, h)
		write(t, w, 4*mib+off, fill(512, 7))
		want := make([]byte, 2*mib)
		copy(want[off:], fill(512, 7))
		require.Equal(t, want, read(t, closed(t, h, w), 4*mib, 2*mib))
	}
}

// T9: bits of an earlier life of a block do not show when it becomes partially
// present.
func TestTrapT9StaleBits(t *testing.T) {
	v := fixture.VHDX{Size: 16 * mib, Parent: parentLocator(), States: map[int64]uint8{2: 7}, Writes: []fixture.Write{{Off: 0, Data: fill(512, 1)}}}
	m, err := v.Build()
	require.NoError(t, err)
	m.Write(m.Bitmaps[0]+512*2, fill(512, 0xff)) // block 2 was there once
	m.Write(m.BATOff+2*8, le64(0))
	h := hostWith(m.Sparse)
	w := openWriter(t, h)
	write(t, w, 4*mib+4096, fill(512, 9))
	d := closed(t, h, w)
	require.Equal(t, uint8(statePartial), entryOf(t, d, 2).state())
	require.Equal(t, append(append(fill(512, 0xee), fill(512, 9)...), fill(512, 0xee)...), read(t, d, 4*mib+4096-512, 1536))
}

// T10: a block that reads as zeros in a child stays so where it is not written.
func TestTrapT10ZeroNeverBecomesTheParents(t *testing.T) {
	for _, state := range []uint8{1, 2, 3} {
		h, _ := place(t, fixture.VHDX{Size: 16 * mib, Parent: parentLocator(), States: map[int64]uint8{1: state}})
		w := openWriter(t, h)
		write(t, w, 2*mib+4096, fill(512, 9))
		d := closed(t, h, w)
		require.Equal(t, uint8(stateFull), entryOf(t, d, 1).state())
		require.Equal(t, make([]byte, 4096), read(t, d, 2*mib, 4096))
		require.Equal(t, make([]byte, 512), read(t, d, 2*mib+4096+512, 512))
	}
}

// T13, S12: whatever free space and kept space hold, a block that gets them
// reads as zeros where it is not written.
func TestTrapT13OldBytesNeverShow(t *testing.T) {
	canary := []fixture.Write{{Off: 0, Data: fill(int(2*mib), 0xCC)}, {Off: 2 * mib, Data: fill(int(2*mib), 0xCC)}, {Off: 4 * mib, Data: fill(int(2*mib), 0xCC)}}
	for name, v := range map[string]fixture.VHDX{
		"leaked space": {States: map[int64]uint8{0: 2, 1: 2, 2: 2}},
		"kept space":   {States: map[int64]uint8{0: 3, 1: 1, 2: 3}},
		"kept space of somebody else": {Entries: map[int64]uint64{
			0: uint64(6*mib) | 3, 1: uint64(6*mib) | 3, 2: uint64(8*mib) | 6,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			v.Size, v.Writes = 16*mib, canary
			h, _ := place(t, v)
			h.SetFault(func(c sim.Call) error {
				if c.Op == sim.OpPunch {
					return ops.Errorf(errors.ErrUnsupported, 0, "punch")
				}
				return nil
			})
			w := openWriter(t, h)
			for b := range int64(5) {
				if b != 2 || v.Entries == nil {
					write(t, w, b*2*mib+512, fill(512, byte(b)+1))
				}
			}
			h.SetFault(nil)
			require.NoError(t, w.Close())
			d, err := openHost(t, h, ops.Read)
			require.NoError(t, err)
			whole := read(t, d, 0, d.Size())
			if v.Entries != nil {
				whole = append(whole[:4*mib:4*mib], whole[6*mib:]...)
			}
			require.Equal(t, -1, bytes.IndexByte(whole, 0xCC))
			require.Equal(t, fill(512, 2), read(t, d, 2*mib+512, 512))
			require.NoError(t, d.Check(context.Background(), func(a ops.Anomaly) {
				require.NotEqual(t, ops.Broken, a.Severity, a.Text)
			}))
			require.NoError(t, d.Close())
		})
	}
}

// T14: space of a trimmed block goes to another block only after the trim is
// durable.
func TestTrapT14NoReuseBeforeTheTrimIsDurable(t *testing.T) {
	h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 16 * mib, BlockSize: 2 << 20})
	w := openWriter(t, h)
	write(t, w, 0, fill(512, 1))
	require.NoError(t, w.Flush())
	first := entryOf(t, w.Disk, 0).offset()
	require.NoError(t, w.Zero(0, 2*mib, true))
	write(t, w, 2*mib, fill(512, 2))
	require.NotEqual(t, first, entryOf(t, w.Disk, 1).offset())
	require.NoError(t, w.Flush())
	write(t, w, 4*mib, fill(512, 3))
	require.Equal(t, first, entryOf(t, w.Disk, 2).offset())
	require.Equal(t, make([]byte, 512), read(t, w.Disk, 4*mib+512, 512))
	d := closed(t, h, w)
	require.Equal(t, newEntry(stateZero, 0), entryOf(t, d, 0), "T19: no offset in state 2")
	require.Equal(t, int64(8*mib), d.fileSize, "spare space is cut off")
}

// A block that is written to its end becomes fully present, in pieces too.
func TestPromotion(t *testing.T) {
	h := created(t, childSpec(ops.CreateSpec{Size: 3*mib + 4096, BlockSize: 1 << 20}))
	w := openWriter(t, h)
	write(t, w, 0, fill(512*1024, 1))
	write(t, w, mib-512, fill(512, 2))
	require.Equal(t, uint8(statePartial), entryOf(t, w.Disk, 0).state())
	write(t, w, 512*1024, fill(512*1024, 3))
	require.Equal(t, uint8(stateFull), entryOf(t, w.Disk, 0).state())
	write(t, w, 3*mib, fill(4096, 4))
	require.Equal(t, uint8(stateFull), entryOf(t, w.Disk, 3).state(), "the last block ends with the disk")
	write(t, w, mib, fill(int(mib), 5))
	require.Equal(t, uint8(stateFull), entryOf(t, w.Disk, 1).state())
	closed(t, h, w)
}

// The ring wraps many times, with entries of all lengths, and with updates larger
// than it is; each stop leaves a file that reads as the flush before said (F20).
func TestRingWraps(t *testing.T) {
	h := created(t, childSpec(ops.CreateSpec{Size: 1 << 40, BlockSize: 1 << 20}))
	w := openWriter(t, h)
	rng := rand.New(rand.NewPCG(1, 1))
	written := map[int64]byte{}
	for i := range 60 {
		for range 1 + rng.IntN(20) {
			off := rng.Int64N(1<<31) * 512
			write(t, w, off, fill(512, byte(i+1)))
			written[off] = byte(i + 1)
		}
		require.NoError(t, w.Flush())
	}
	require.NoError(t, w.Zero(512<<30, 400<<30, true), "800 pages of the BAT, three rings full")
	require.Greater(t, h.SyncLabels()["vhdx.log.room"], 1)
	require.NoError(t, w.Flush())
	d, err := openHost(t, h.Clone(), ops.Read) // the power goes here
	require.NoError(t, err)
	for off, b := range written {
		if off >= 512<<30 && off < 912<<30 {
			b = 0
		}
		require.Equal(t, fill(512, b), read(t, d, off, 512), "at %d", off)
	}
	require.Equal(t, []string{"vhdx.space.leaked file"}, check(t, d), "what was spare at the end")
	require.NoError(t, d.Close())
	require.NoError(t, w.Close())
}

// Pages go to the log so that nothing relies on a page behind it: bitmaps first,
// then the BAT from its end, where the bitmaps' entries follow their blocks'.
func TestLogOrder(t *testing.T) {
	h := created(t, childSpec(ops.CreateSpec{Size: 16 << 30, BlockSize: 1 << 20}))
	w := openWriter(t, h)
	for _, off := range []int64{0, 600 * mib, 5 << 30, 9<<30 + 512} {
		write(t, w, off, fill(512, 1))
	}
	batch, _, _, err := w.snapshot()
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(batch), 9)
	at := map[int64]int{}
	for i, p := range batch {
		at[p.page] = i
	}
	g := w.geometry
	page := func(i int64) int { return at[(w.regions.bat.off+i*entryBytes)/pageSize] }
	for _, b := range []int64{0, 600, 5 << 10, 9 << 10} {
		m := g.bitmapIndex(b / g.ratio)
		e, err := w.entryAt(m)
		require.NoError(t, err)
		first, _ := g.bitmapSlice(b)
		bits, ok := at[(e.offset()+first/8)/pageSize]
		require.True(t, ok)
		require.Less(t, bits, page(m), "bits of block %d before their bitmap's entry", b)
		require.LessOrEqual(t, page(m), page(g.payloadIndex(b)), "and that before the block's")
	}
	require.NoError(t, w.Flush())
	closed(t, h, w)
}

// Writers, readers, trims and flushes at once; each sector is one writer's.
func TestConcurrentWriters(t *testing.T) {
	const writers, size = 8, 12 * mib
	h := created(t, childSpec(ops.CreateSpec{Size: size, BlockSize: 1 << 20}))
	w := openWriter(t, h)
	last := make([]map[int64]byte, writers)
	var wg sync.WaitGroup
	for i := range writers {
		last[i] = map[int64]byte{}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 3))
			p := make([]byte, 512)
			for n := range 150 {
				off := (rng.Int64N(size/512/writers)*writers + int64(i)) * 512
				switch {
				case n%25 == 24:
					if err := w.Flush(); err != nil {
						t.Error(err)
					}
				case n%5 == 4:
					if err := w.Zero(off, 512, n%2 == 0); err != nil {
						t.Error(err)
					}
					last[i][off] = 0
				default:
					if _, err := w.WriteAt(fill(512, byte(n+1)), off); err != nil {
						t.Error(err)
					}
					last[i][off] = byte(n + 1)
				}
				if _, _, err := w.ReadRun(p, off); err != nil || p[0] != p[511] {
					t.Error("torn read", err)
				}
			}
		})
	}
	wg.Wait()
	d := closed(t, h, w)
	for _, m := range last {
		for off, b := range m {
			require.Equal(t, fill(512, b), read(t, d, off, 512), "at %d", off)
		}
	}
}
