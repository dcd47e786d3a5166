package vhdx

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// An entry is appended only where it leaves the oldest one that is needed whole:
// all of a ring is found again, wherever it began.
func TestLogWriterFillsTheRing(t *testing.T) {
	for _, start := range []int64{0, 4096, mib - 8192} {
		f, err := sim.New().Dir("/").Create("log", 0o600)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(2*mib, ""))
		l := newLogWriter(f, header{logOffset: uint64(mib), logLength: uint32(mib)}, ops.NewGUID())
		l.head, l.tail = start, start
		var want []uint64
		for n := 0; l.room(n % 7); n++ {
			pages := make([]pageCopy, n%7)
			for i := range pages {
				pages[i] = pageCopy{page: int64(i), b: fill(4096, byte(n))}
			}
			require.NoError(t, l.append(pages, 4*mib))
			want = append(want, l.seq)
		}
		require.Equal(t, int64(256-1), l.used/4096, "one sector stays free")
		seq, err := findSequence(l.ring, l.guid)
		require.NoError(t, err)
		var got []uint64
		for _, e := range seq {
			got = append(got, e.seq)
		}
		require.Equal(t, want, got)
		l.retire()
		require.NoError(t, l.append(nil, 4*mib))
		seq, err = findSequence(l.ring, l.guid)
		require.NoError(t, err)
		require.Len(t, seq, 1, "what was retired is not replayed")
	}
}

// failTables makes writes of BAT pages fail while on is true.
func failTables(h *sim.Host, bat span, on *bool) {
	h.SetFault(func(c sim.Call) error {
		if *on && c.Op == sim.OpWrite && bat.contains(c.Off) {
			return syscall.EIO
		}
		return nil
	})
}

// What a flush acknowledged is in the log, however many entries it took, and
// although not a page of it could be put in place. The next flush must get rid of
// that first; when it can, nothing is lost.
func TestFlushReliesOnTheLogAlone(t *testing.T) {
	h := created(t, childSpec(ops.CreateSpec{Size: 1 << 40, BlockSize: 1 << 20}))
	w := openWriter(t, h)
	broken := true
	failTables(h, w.regions.bat, &broken)
	for i := range int64(90) { // 90 bitmaps and 180 pages of the BAT: three entries, two rings
		write(t, w, i*5<<30, fill(512, byte(i+1)))
	}
	require.ErrorIs(t, w.Flush(), syscall.EIO, "the ring is too small for all of it")
	broken = false
	require.NoError(t, w.Flush())
	broken = true
	for i := range int64(60) {
		write(t, w, i*5<<30+1<<30, fill(512, byte(i+1)))
	}
	require.NoError(t, w.Flush(), "the log has it")
	d, err := openHost(t, h.Clone(), ops.Read)
	require.NoError(t, err)
	for i := range int64(90) {
		require.Equal(t, fill(512, byte(i+1)), read(t, d, i*5<<30, 512))
	}
	for i := range int64(60) {
		require.Equal(t, fill(512, byte(i+1)), read(t, d, i*5<<30+1<<30, 512))
	}
	require.NoError(t, d.Close())
	write(t, w, 3<<30, fill(512, 1))
	require.ErrorIs(t, w.Flush(), syscall.EIO)
	require.Equal(t, fill(512, 1), read(t, w.Disk, 3<<30, 512))
	broken = false
	closed(t, h, w)
}

// A page that changes while it is on its way through the log is not taken for
// clean afterwards.
func TestChangeDuringAFlush(t *testing.T) {
	for _, label := range []string{"vhdx.payload", "vhdx.log.entry"} {
		t.Run(label, func(t *testing.T) {
			h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 16 * mib, BlockSize: 1 << 20})
			w := openWriter(t, h)
			write(t, w, 0, fill(512, 1))
			met := false
			h.SetFault(func(c sim.Call) error {
				if c.Label == label && !met {
					met = true
					write(t, w, 2*mib, fill(512, 2))
				}
				return nil
			})
			require.NoError(t, w.Flush())
			h.SetFault(nil)
			require.True(t, met)
			require.Equal(t, fill(512, 2), read(t, w.Disk, 2*mib, 512))
			require.NoError(t, w.Flush())
			d, err := openHost(t, h.Clone(), ops.Read)
			require.NoError(t, err)
			require.Equal(t, fill(512, 2), read(t, d, 2*mib, 512))
			require.NoError(t, d.Close())
			closed(t, h, w)
		})
	}
}

// Flushes without a change cost nothing; the first after one that logged makes
// its pages durable in place.
func TestIdleFlush(t *testing.T) {
	h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 16 * mib})
	w := openWriter(t, h)
	write(t, w, 0, fill(512, 1))
	require.NoError(t, w.Flush())
	require.NoError(t, w.Flush())
	n := h.Changes()
	require.NoError(t, w.Flush())
	require.Equal(t, n, h.Changes())
	write(t, w, 0, fill(512, 2))
	require.NoError(t, w.Flush())
	require.Equal(t, n+2, h.Changes(), "a write in place and one sync")
	closed(t, h, w)
}

// Zeroing a fixed disk gives nothing back, whatever is asked for.
func TestFixedStaysAllocated(t *testing.T) {
	h := created(t, ops.CreateSpec{Type: ops.Fixed, Size: 6 * mib})
	w := openWriter(t, h)
	write(t, w, 0, fill(int(6*mib), 1))
	used := h.Used()
	require.NoError(t, w.Zero(0, 5*mib, true))
	require.GreaterOrEqual(t, h.Used(), used)
	d := closed(t, h, w)
	for b := range int64(3) {
		require.Equal(t, uint8(stateFull), entryOf(t, d, b).state())
	}
	require.Equal(t, make([]byte, 5*mib), read(t, d, 0, 5*mib))
	require.Equal(t, fill(int(mib), 1), read(t, d, 5*mib, mib))
}

// A trimmed block's space goes back to the host when that is durable; a part of
// a block becomes a hole at once.
func TestTrimGivesBack(t *testing.T) {
	h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 8 * mib, BlockSize: 2 << 20})
	w := openWriter(t, h)
	write(t, w, 0, fill(int(8*mib), 1))
	require.NoError(t, w.Flush())
	used := h.Used()
	require.NoError(t, w.Zero(2*mib, 2*mib, true))
	require.Equal(t, used, h.Used(), "not before the change is durable")
	require.NoError(t, w.Flush())
	require.Less(t, h.Used(), used-2*mib+64*kib)
	used = h.Used()
	require.NoError(t, w.Zero(mib/2, mib, true))
	require.Equal(t, used-mib, h.Used())
	require.Equal(t, make([]byte, mib), read(t, w.Disk, mib/2, mib))
	require.NoError(t, w.Zero(mib/2, mib, false))
	require.Equal(t, used, h.Used(), "without unmap the space is taken again")
	require.NoError(t, w.Close())
}

// A file that ends inside a mebibyte, as a power cut may leave it, grows before
// its last part is given away.
func TestFileEndsInsideAMebibyte(t *testing.T) {
	h, _ := place(t, fixture.VHDX{Size: 8 * mib, BlockSize: 1 << 20, Cut: 4*mib + 2048})
	w := openWriter(t, h)
	write(t, w, 0, fill(512, 1))
	d := closed(t, h, w)
	require.Equal(t, append(fill(512, 1), make([]byte, mib-512)...), read(t, d, 0, mib))
	require.Equal(t, int64(5*mib), d.fileSize)
}
