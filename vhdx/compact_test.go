package vhdx

import (
	"bytes"
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

var compactAll = ops.CompactOptions{Scan: true, Trim: true, Move: true}

// sparse is a disk of 12 blocks of 1 MiB: 1, 4 and 10 hold bytes of zeros alone, 7
// some at both ends, the others are full or were never there; they lie in disorder.
func sparse(v fixture.VHDX) fixture.VHDX {
	v.Size, v.BlockSize = 12*mib, 1<<20
	v.Order = []int64{4, 10, 1, 11, 7, 0, 3, 8}
	v.States = map[int64]uint8{1: 6, 4: 6, 10: 6, 11: 6, 0: 6, 3: 6, 7: 6}
	for _, b := range []int64{11, 0, 3} {
		v.Writes = append(v.Writes, fixture.Write{Off: b * mib, Data: fill(int(mib), byte(b+1))})
	}
	for _, b := range []int64{4, 10, 1} {
		v.Writes = append(v.Writes, fixture.Write{Off: b * mib, Data: make([]byte, mib)})
	}
	v.Writes = append(v.Writes, fixture.Write{Off: 7 * mib, Data: append(append(fill(4096, 8), make([]byte, mib-8192)...), fill(4096, 9)...)},
		fixture.Write{Off: 8*mib + 8192, Data: fill(4096, 7)})
	return v
}

// stored makes the host store zeros where the fixture left holes.
func stored(t testing.TB, v fixture.VHDX) (*sim.Host, *fixture.VHDXImage) {
	t.Helper()
	h, m := place(t, v)
	f, err := h.Dir("/img").Open(testImage, ops.Write)
	require.NoError(t, err)
	for b, at := range m.Blocks {
		p := make([]byte, mib)
		_, err := f.ReadAt(p, at)
		require.NoError(t, err)
		if v.Parent == nil || v.States[b] == 6 {
			_, err = f.WriteAt(p, at)
			require.NoError(t, err)
		}
	}
	require.NoError(t, f.Close())
	return h, m
}

func TestCompact(t *testing.T) {
	zeros := func(off, n int64) (bool, error) { return off < 6*mib, nil }
	for _, tt := range []struct {
		name   string
		image  fixture.VHDX
		o      ops.CompactOptions
		want   ops.CompactResult
		states map[int64]uint8
	}{
		{"nothing", fixture.VHDX{}, ops.CompactOptions{}, ops.CompactResult{Before: 12, After: 12}, nil},
		{"scan", fixture.VHDX{}, ops.CompactOptions{Scan: true}, ops.CompactResult{Dropped: 3, Before: 12, After: 12}, map[int64]uint8{1: 2, 4: 2, 10: 2, 0: 6}},
		{"trim", fixture.VHDX{}, ops.CompactOptions{Trim: true}, ops.CompactResult{Trimmed: int64(3*mib + 14*64*kib + 15*64*kib), Before: 12, After: 12}, map[int64]uint8{1: 6}},
		{"move", fixture.VHDX{}, ops.CompactOptions{Move: true}, ops.CompactResult{Before: 12, After: 12}, nil},
		{"scan and move", fixture.VHDX{}, ops.CompactOptions{Scan: true, Move: true}, ops.CompactResult{Dropped: 3, Moved: 3, Before: 12, After: 9}, map[int64]uint8{1: 2, 0: 6, 2: 0}},
		{"all", fixture.VHDX{}, compactAll, ops.CompactResult{Dropped: 3, Moved: 3, Trimmed: 14*64*kib + 15*64*kib, Before: 12, After: 9}, nil},
		{"all of a child", fixture.VHDX{Parent: parentLocator()}, compactAll, ops.CompactResult{Dropped: 3, Moved: 4, Trimmed: 14 * 64 * kib, Before: 13, After: 10}, map[int64]uint8{1: 2, 4: 2, 10: 2, 8: 7}},
		{"parents of zeros", fixture.VHDX{Parent: parentLocator()}, ops.CompactOptions{Scan: true, Below: zeros}, ops.CompactResult{Dropped: 3, Before: 13, After: 13}, map[int64]uint8{1: 0, 4: 0, 10: 2}},
		{"fixed", fixture.VHDX{Fixed: true}, compactAll, ops.CompactResult{Before: 16, After: 16}, map[int64]uint8{1: 6, 9: 6}},
		{"dirty log", fixture.VHDX{Log: &fixture.Log{Tables: true}}, compactAll, ops.CompactResult{Dropped: 3, Moved: 3, Trimmed: 14*64*kib + 15*64*kib, Before: 12, After: 9}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := sparse(tt.image)
			if v.Fixed {
				v.Order, v.States = nil, nil
			}
			h, _ := stored(t, v)
			tt.want.Before, tt.want.After = tt.want.Before*mib, tt.want.After*mib
			for _, dry := range []bool{true, false} {
				before := image(t, h)
				w := openWriter(t, h)
				link, was := w.Info().LinkID, viewOf(w.Disk)
				var last, all int64
				o := tt.o
				o.Dry = dry
				o.Progress = func(d, a int64) { require.LessOrEqual(t, last, d); last, all = d, a }
				got, err := w.Compact(here, o)
				require.NoError(t, err)
				if dry && tt.image.Log != nil {
					got.Trimmed = tt.want.Trimmed // not known before the replay
				}
				require.Equal(t, tt.want, got, "dry: %v", dry)
				require.Equal(t, all, last)
				require.Equal(t, link, w.Info().LinkID)
				if dry {
					require.NoError(t, w.Close())
					require.Equal(t, before, image(t, h))
					continue
				}
				require.Equal(t, tt.want.After, lengthOf(t, h))
				same := tt.o.Below == nil
				if same {
					require.Equal(t, was, viewOf(w.Disk))
				}
				crashed, err := openHost(t, h.Clone(), ops.Read)
				require.NoError(t, err)
				require.Equal(t, viewOf(w.Disk), viewOf(crashed), "durable")
				require.NoError(t, crashed.Close())
				d := closedLeaky(t, h, w)
				require.Equal(t, link, d.Info().LinkID)
				for b, s := range tt.states {
					require.Equal(t, s, entryOf(t, d, b).state(), "block %d", b)
				}
				if tt.name == "nothing" || tt.name == "fixed" {
					require.Equal(t, before, image(t, h))
				}
			}
			w := openWriter(t, h)
			was := image(t, h)
			h.Record()
			got, err := w.Compact(here, tt.o)
			require.NoError(t, err)
			require.Zero(t, got.Dropped+got.Moved+got.Trimmed)
			for _, e := range h.Events() {
				require.Equal(t, "vhdx.cut", e.Label, "nothing is left to do but a sync")
				require.Equal(t, sim.OpSync, e.Op)
			}
			require.Equal(t, was, image(t, h))
			require.NoError(t, w.Close())
		})
	}
}

// A child's blocks and bitmaps shrink to what they need: bitmaps move, and go
// where nobody needs them; bits that wait to be logged go with them.
func TestCompactMovesBitmaps(t *testing.T) {
	const far = int64(1) << 30
	h := created(t, childSpec(ops.CreateSpec{Size: 40 << 30, BlockSize: 1 << 20}))
	w := openWriter(t, h)
	for c := range int64(10) {
		write(t, w, c<<32, fill(int(3*mib), byte(c+1)))
		write(t, w, c<<32+far, fill(512, byte(c+1)))
	}
	require.NoError(t, w.Flush())
	for c := range int64(8) {
		require.NoError(t, w.Zero(c<<32, mib, true))
		require.NoError(t, w.Zero(c<<32+far, mib, c%2 == 0))
	}
	require.NoError(t, w.Flush())
	write(t, w, 9<<32+far+4096, fill(512, 77))
	link := w.Info().LinkID
	got, err := w.Compact(here, compactAll)
	require.NoError(t, err)
	require.Equal(t, link, w.Info().LinkID)
	require.Equal(t, int64(4+8*2+2*3+2*1+2), got.After/mib, "blocks, those in part, and their bitmaps")
	crashed, err := openHost(t, h.Clone(), ops.Read)
	require.NoError(t, err)
	for _, d := range []*Disk{w.Disk, crashed} {
		for c := range int64(10) {
			first := fill(512, byte(c+1))
			if c < 8 {
				first = make([]byte, 512)
			}
			require.Equal(t, first, read(t, d, c<<32, 512))
			require.Equal(t, fill(512, byte(c+1)), read(t, d, c<<32+2*mib, 512))
			require.Equal(t, first, read(t, d, c<<32+far, 512))
		}
		require.Equal(t, fill(512, 77), read(t, d, 9<<32+far+4096, 512))
		require.Equal(t, byte(0xee), read(t, d, 9<<32+far+8192, 512)[0], "the parent's")
	}
	require.NoError(t, crashed.Close())
	closed(t, h, w)
}

// What a guest changes just after its block was read, to be looked at or to be
// copied, is not lost, however it reaches the disk; one that never stops waits in
// the end.
func TestCompactMeetsWrites(t *testing.T) {
	first := func(n int) bool { return n == 1 }
	write := func(w *Writer, off int64, p []byte) error { _, err := w.WriteAt(p, off); return err }
	zero := func(w *Writer, off int64, p []byte) error { clear(p); return w.Zero(off, int64(len(p)), false) }
	for _, tt := range []meeting{
		{"first write of the session", true, write, first},
		{"write", false, write, first},
		{"write while it is copied", false, write, func(n int) bool { return n == 2 || n == 3 }},
		{"write again and again", false, write, func(n int) bool { return n < 40 }},
		{"zero", false, zero, first},
		{"zero while it is copied", false, zero, func(n int) bool { return n == 2 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, m := stored(t, sparse(fixture.VHDX{}))
			for b, at := range m.Blocks {
				tt.during(t, h.Clone(), b*mib, at)
			}
		})
	}
}

// meeting is a guest who comes between a read of its block and what follows.
type meeting struct {
	name   string
	fresh  bool // nothing was written before
	change func(w *Writer, off int64, p []byte) error
	when   func(read int) bool
}

// during compacts an image whose block at off of the disk lies at byte at.
func (m meeting) during(t *testing.T, h *sim.Host, off, at int64) {
	const in = 65536
	w := openWriter(t, h)
	if !m.fresh {
		write(t, w, 9*mib, fill(512, 1))
	}
	want, reads := read(t, w.Disk, 0, 12*mib), 0
	var guest sync.WaitGroup
	h.AfterReads(func(c sim.Call) {
		if c.Off > at+in || c.Off+c.Len < at+in+512 {
			return
		}
		if reads++; !m.when(reads) {
			return
		}
		p := want[off+in : off+in+512]
		copy(p, fill(512, byte(100+reads)))
		guest.Go(func() { require.NoError(t, m.change(w, off+in, p)) })
		if w.mu.TryLock() { // else the guest waits, too
			w.mu.Unlock()
			guest.Wait()
		}
	})
	_, err := w.Compact(here, compactAll)
	require.NoError(t, err)
	guest.Wait()
	h.AfterReads(nil)
	require.Positive(t, reads)
	require.True(t, bytes.Equal(want, read(t, w.Disk, 0, 12*mib)), "block at %d, while it is open", off)
	require.NoError(t, w.Flush())
	require.True(t, bytes.Equal(want, read(t, closedLeaky(t, h, w), 0, 12*mib)), "block at %d", off)
}

// Guests go on while their disk is compacted again and again.
func TestCompactUnderLoad(t *testing.T) {
	for _, v := range []fixture.VHDX{
		{Size: 40 * mib, BlockSize: 1 << 20},
		{Size: 40 * mib, BlockSize: 1 << 20, Parent: parentLocator()},
	} {
		h, _ := place(t, v)
		w := openWriter(t, h)
		stop := make(chan struct{})
		var guests sync.WaitGroup
		var done atomic.Int64
		want := make([][]byte, 4)
		for g := range 4 {
			guests.Go(func() { want[g] = guest(t, w, g, stop, &done) })
		}
		for done.Load() < 2000 {
			_, err := w.Compact(here, compactAll)
			require.NoError(t, err)
		}
		close(stop)
		guests.Wait()
		_, err := w.Compact(here, compactAll)
		require.NoError(t, err)
		d := closedLeaky(t, h, w)
		for g := range 4 {
			require.Equal(t, want[g], read(t, d, int64(g)*4*mib, 4*mib))
		}
	}
}

// A cancelled compaction keeps what it did, and goes on another time.
func TestCompactCancelled(t *testing.T) {
	for k := 1; ; k += 9 {
		h, _ := stored(t, sparse(fixture.VHDX{}))
		w := openWriter(t, h)
		was := viewOf(w.Disk)
		ctx, cancel := context.WithCancel(here)
		n := 0
		h.SetFault(func(c sim.Call) error {
			if n++; n == k {
				cancel()
			}
			return nil
		})
		first, err := w.Compact(ctx, compactAll)
		h.SetFault(nil)
		cancel()
		if err == nil {
			require.Less(t, n, k+30, "nobody looks at the context")
			require.Greater(t, k, 20)
			require.NoError(t, w.Close())
			return
		}
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, was, viewOf(w.Disk))
		second, err := w.Compact(here, compactAll)
		require.NoError(t, err)
		require.Equal(t, int64(3), first.Dropped+second.Dropped)
		require.Equal(t, 9*mib, second.After)
		require.Equal(t, was, viewOf(closedLeaky(t, h, w)))
	}
}

// QEMU finds a compacted disk sound, and reads what it did.
func TestQEMUReadsCompacted(t *testing.T) {
	h, _ := stored(t, sparse(fixture.VHDX{}))
	before := onDisk(t, h)
	w := openWriter(t, h)
	_, err := w.Compact(here, compactAll)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	path := onDisk(t, h)
	qemuImg(t, "check", "-f", "vhdx", path)
	qemuImg(t, "compare", "-f", "vhdx", "-F", "vhdx", path, before)
}

// compactions are what the power may cut short.
func compactions() []crashed {
	image := func(v fixture.VHDX) func(*testing.T) *sim.Host {
		return func(t *testing.T) *sim.Host { h, _ := stored(t, v); return h }
	}
	held := func(v fixture.VHDX) (list []fixture.Write) {
		for _, w := range sparse(v).Writes {
			list = append(list, fixture.Write{Off: w.Off, Data: w.Data})
		}
		return list
	}
	plain, child := fixture.VHDX{}, fixture.VHDX{Parent: parentLocator()}
	return []crashed{
		{name: "dynamic", was: held(plain), host: image(sparse(plain))},
		{name: "child", child: true, was: held(child), host: image(sparse(child))},
	}
}

func compacting(child bool) crash.Sequence {
	compact := doing("compact", func(w *Writer) error { _, err := w.Compact(here, compactAll); return err })
	in := func(off int64) crash.Step {
		return crash.Step{Name: "write", Do: func(g *crash.Guest) error { return g.Write(off, 4096) }}
	}
	return crash.Sequence{compact, in(11*mib + 4096), in(2*mib + 4096), crash.Steps[8],
		{Name: "trim", Do: func(g *crash.Guest) error { return g.Zero(0, 1*mib, true) }},
		doing("again", func(w *Writer) error { _, err := w.Compact(here, compactAll); return err }),
		in(5 * mib), crash.Steps[8]}
}

func judgeCompact(base *Disk) func(found) error {
	link, content := base.Info().LinkID, viewOf(base)
	return func(f found) error {
		same := viewOf(f.disk) == content
		if f.disk.Info().LinkID == link {
			return within("content under the old link id", same, true, true, true)
		}
		return nil
	}
}

func TestPowerCutsOfCompact(t *testing.T) {
	for _, c := range compactions() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n, err := cutChange(t, c, compacting(c.child), judgeCompact)
			require.NoError(t, err)
			t.Logf("%d states", n)
			if os.Getenv("CI") != "" {
				failEach(t, c, compacting(c.child), nil)
			}
		})
	}
}
