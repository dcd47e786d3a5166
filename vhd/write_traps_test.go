package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// edit opens /d.vhd of h for writing, runs change and closes.
func edit(t *testing.T, h *sim.Host, change func(w ops.Writer)) {
	t.Helper()
	w := openWriter(t, h)
	change(w)
	require.NoError(t, w.Close())
}

func openWriter(t *testing.T, h *sim.Host) ops.Writer {
	t.Helper()
	l, err := Open(openFile(t, h, ops.Write), ops.OpenOptions{Write: true, Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
	require.NoError(t, err)
	return l.(ops.Writer)
}

func write(t *testing.T, w ops.Writer, off int64, b byte, sectors int) {
	t.Helper()
	_, err := w.WriteAt(bytes.Repeat([]byte{b}, 512*sectors), off)
	require.NoError(t, err)
}

func image(t *testing.T, h *sim.Host) []byte {
	t.Helper()
	b, err := h.ReadFile("/d.vhd")
	require.NoError(t, err)
	return b
}

// T4: the first block of an empty child goes behind its parent locators, that of
// a blktap file behind its batmap, and of a file with a gap behind nothing that
// is in use; the old footer never shows in it.
func TestTrapT4WhereTheNextBlockGoes(t *testing.T) {
	long := parent()
	long.Locators[1].Raw = bytes.Repeat([]byte("p\x00"), 5000)
	for name, v := range map[string]fixture.VHD{
		"locators":  {Size: 5 << 20, Type: 4, Parent: long},
		"batmap":    {Size: 5 << 20, Batmap: true, Creator: "tap\x00", Entries: 640},
		"unaligned": {Size: 5 << 20, Unaligned: true},
		"gap":       {Size: 5 << 20, Gap: 4096, Blocks: []int64{1}},
	} {
		t.Run(name, func(t *testing.T) {
			h := disk(v.Bytes())
			before, lay := image(t, h), v.Layout()
			edit(t, h, func(w ops.Writer) {
				write(t, w, 4<<20, 1, 1)
				write(t, w, 512, 2, 1)
			})
			after := image(t, h)
			require.True(t, bytes.Equal(before[:lay.BAT], after[:lay.BAT]), "footer copy and header")
			if lay.Locators != nil || lay.Batmap > 0 {
				require.True(t, bytes.Equal(before[2048:lay.Tail/4096*4096], after[2048:lay.Tail/4096*4096]), "what stands behind the table")
			}
			l := mustOpen(t, after)
			require.Empty(t, l.Info().Anomalies)
			require.Empty(t, names(findings(t, l)))
			got, err := readLayer(l, 4<<20, 1<<20, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(append(bytes.Repeat([]byte{1}, 512), make([]byte, 1<<20-512)...), got))
		})
	}
}

// Section 13, row 26, and T16: bitmap, then data at 4 KiB; the footer in the last
// sector of 4 KiB; the length that Windows would have given the file.
func TestNewBlocksAreAligned(t *testing.T) {
	h := disk(fixture.VHD{Size: 10 << 30}.Bytes())
	edit(t, h, func(w ops.Writer) {
		for b := range int64(33) {
			write(t, w, b*2<<20, byte(b+1), 1)
		}
	})
	st, err := h.Dir("/").Stat("d.vhd")
	require.NoError(t, err)
	require.EqualValues(t, 69_369_856, st.Size)
	f := openFile(t, h, ops.Read)
	table := make([]byte, 33*4)
	_, err = f.ReadAt(table, 1536)
	require.NoError(t, err)
	for b := range int64(33) {
		at := int64(binary.BigEndian.Uint32(table[4*b:])) * 512
		require.Equal(t, 4096+20480+3584+b*(4096+2<<20), at, "block %d", b)
	}
}

// Section 13, row 25, and T11: zeros over a parent's data are stored; whatever
// the data, a child never falls back to its parent.
func TestTrapT11ZerosInAChild(t *testing.T) {
	for _, unmap := range []bool{false, true} {
		h := disk(fixture.VHD{Size: 5 << 20, Type: 4, Parent: parent()}.Bytes())
		edit(t, h, func(w ops.Writer) {
			write(t, w, 1024, 0, 2)
			require.NoError(t, w.Zero(2<<20-512, 1<<20, unmap))
			require.NoError(t, w.Zero(1024, 512, unmap))
		})
		l := mustOpen(t, image(t, h))
		got, err := readLayer(l, 0, 5<<20, 0xee)
		require.NoError(t, err)
		want := bytes.Repeat([]byte{0xee}, 5<<20)
		clear(want[1024:2048])
		clear(want[2<<20-512 : 3<<20-512])
		require.True(t, bytes.Equal(want, got))
	}
}

// T29: the bits of a block only ever grow, so that "fully written" stays true.
func TestTrapT29BitsAreNeverCleared(t *testing.T) {
	v := fixture.VHD{Size: 4 << 20, Type: 4, Parent: parent(), Writes: []fixture.Write{{Off: 0, Data: bytes.Repeat([]byte{1}, 64<<10)}}}
	h := disk(v.Bytes())
	edit(t, h, func(w ops.Writer) {
		require.NoError(t, w.Zero(0, 32<<10, true))
		write(t, w, 100<<10, 9, 3)
	})
	at := v.Layout().Blocks[0]
	want := bytes.Clone(v.Bytes()[at : at+512])
	setBits(want, 200, 203)
	require.Equal(t, want, image(t, h)[at:at+512])
}

// T30: a file that somebody else changed after it was opened is not written.
func TestTrapT30ChangedUnderneath(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"fixed": {Size: 3 << 20, Type: 2}, "dynamic": {Size: 3 << 20}, "no tail": {Size: 3 << 20, NoTail: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := disk(v.Bytes())
			w := openWriter(t, h)
			v.Size = 2 << 20
			f := openFile(t, h, ops.Write)
			require.NoError(t, f.Truncate(0, "test"))
			_, err := f.WriteAt(v.Bytes(), 0)
			require.NoError(t, err)
			before := h.Changes()
			_, err = w.WriteAt(make([]byte, 512), 0)
			require.ErrorIs(t, err, ops.ErrChanged)
			require.Equal(t, before, h.Changes())
		})
	}
}

// T26: a block whose sector number would be the mark of an unused entry is not
// placed, and nothing is written for it.
func TestTrapT26NoRoomForSectorNumbers(t *testing.T) {
	v := fixture.VHD{Size: 4 << 20, Unaligned: true, NoTail: true, BAT: map[int64]uint32{1: 0xffffffff - 4098}}
	h := disk(v.Bytes())
	f := openFile(t, h, ops.Write)
	require.NoError(t, f.Truncate(0xffffffff*512, "test"))
	_, err := f.WriteAt(v.Bytes()[:512], 0xffffffff*512-512)
	require.NoError(t, err)
	w := openWriter(t, h)
	before := h.Changes()
	_, err = w.WriteAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, syscall.EFBIG)
	require.ErrorContains(t, err, "does not fit a table entry")
	require.Equal(t, before, h.Changes())
	write(t, w, 2<<20, 3, 1)
	require.NoError(t, w.Close())
}

// Overlaps, entries that lead nowhere, blocks that are cut off: no block is
// placed in such a file, and a footer is not put behind it (which would make
// zeros of what is missing). Sound blocks of it can still be overwritten.
func TestNoAllocationInADamagedFile(t *testing.T) {
	base := fixture.VHD{Size: 9 << 20, Blocks: []int64{0, 1}}
	lay := base.Layout()
	at := uint32(lay.Blocks[0] / 512)
	for _, tt := range []struct {
		name  string
		entry uint32
		text  string
	}{
		{"overlap", at + 8, "overlaps block 0"},
		{"same", at, "overlaps block 0"},
		{"table", 3, "overlaps the block table"},
		{"past the end", 0x7fffffff, "past end of file"},
		{"cut off", uint32(lay.Tail/512) - 100, "ends past end of file"},
	} {
		for _, noTail := range []bool{false, true} {
			v := base
			v.BAT, v.NoTail = map[int64]uint32{1: tt.entry}, noTail
			t.Run(tt.name, func(t *testing.T) {
				h := disk(v.Bytes())
				w := openWriter(t, h)
				before := h.Changes()
				_, err := w.WriteAt(make([]byte, 512), 6<<20)
				require.ErrorIs(t, err, ops.ErrCorrupt)
				require.ErrorContains(t, err, tt.text)
				require.Equal(t, before, h.Changes())
				_, err = w.WriteAt(make([]byte, 512), 0)
				require.Equal(t, noTail, errors.Is(err, ops.ErrCorrupt), "%v", err)
				require.NoError(t, w.Close())
			})
		}
	}
}

// Section 13, rows 9, 13 and 17: the first write mends what a crash leaves, and
// nothing before it.
func TestFirstWriteMends(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"no tail":      {NoTail: true},
		"tail damaged": {Patches: []fixture.VHDPatch{{Part: "tail", Off: 100, Data: []byte{1}}}},
		"no copy":      {NoCopy: true},
		"copy damaged": {Patches: []fixture.VHDPatch{{Part: "copy", Off: 100, Data: []byte{1}}}},
		"sizes differ": {Patches: []fixture.VHDPatch{{Part: "copy", Off: 48, Data: be64(8 << 20), Repair: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			v.Size, v.Writes = 9<<20, someWrites()
			h := disk(v.Bytes())
			before := h.Changes()
			w := openWriter(t, h)
			require.NotEmpty(t, w.Info().Anomalies)
			require.NoError(t, w.Flush())
			require.Equal(t, before, h.Changes())
			write(t, w, 0, 9, 1)
			require.Empty(t, w.Info().Anomalies)
			require.NoError(t, w.Close())
			b := image(t, h)
			require.Equal(t, b[:512], b[len(b)-512:])
			l := mustOpen(t, b)
			require.Empty(t, l.Info().Anomalies)
			require.Empty(t, findings(t, l))
			want := model(v, 0)
			copy(want, bytes.Repeat([]byte{9}, 512))
			got, err := readLayer(l, 0, v.Size, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
		})
	}
}

// Space that a crash left behind is used again, and its old bytes never show.
func TestRecycledSpaceIsWiped(t *testing.T) {
	for _, typ := range []int{3, 4} {
		v := fixture.VHD{Size: 8 << 20, Type: typ, Blocks: []int64{3}, BAT: map[int64]uint32{3: unused},
			Writes: []fixture.Write{{Off: 6 << 20, Data: bytes.Repeat([]byte("secret!!"), 1<<18)}}}
		if typ == 4 {
			v.Parent = parent()
		}
		h := disk(v.Bytes())
		size := len(image(t, h))
		edit(t, h, func(w ops.Writer) {
			write(t, w, 512, 1, 1)
			require.NoError(t, w.Zero(1024, 1<<20, false))
		})
		b := image(t, h)
		require.Equal(t, size, len(b))
		require.False(t, bytes.Contains(b, []byte("secret")))
	}
}

// A block that is written in pieces costs one flush of two syncs, and a flush
// without a write none.
func TestSyncsOfAFlush(t *testing.T) {
	h := disk(fixture.VHD{Size: 64 << 20}.Bytes())
	h.Record()
	w := openWriter(t, h)
	for b := range int64(16) {
		write(t, w, b*2<<20, 1, 8)
		write(t, w, b*2<<20+1<<20, 1, 8)
	}
	require.NoError(t, w.Flush())
	require.NoError(t, w.Flush())
	require.Equal(t, map[string]int{"vhd.footer": 5, "vhd.data": 1, "vhd.table": 1}, h.SyncLabels(), "the file grew by 1, 2, 4, 8 and 16 blocks")
	write(t, w, 0, 2, 8)
	require.NoError(t, w.Flush())
	require.Equal(t, map[string]int{"vhd.footer": 5, "vhd.data": 2, "vhd.table": 1}, h.SyncLabels())
	require.NoError(t, w.Close())
}

// Many writers, readers and flushes at once; run it with -race. Each goroutine
// owns a stripe of sectors, so that every read is known.
func TestConcurrentUse(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"fixed":        {Size: 1 << 20, Type: 2},
		"dynamic":      {Size: 1 << 20, BlockSize: 64 << 10},
		"differencing": {Size: 1 << 20, BlockSize: 64 << 10, Type: 4, Parent: parent()},
	} {
		t.Run(name, func(t *testing.T) {
			const workers = 8
			h := disk(v.Bytes())
			w := openWriter(t, h)
			var wg sync.WaitGroup
			for id := range int64(workers) {
				wg.Go(func() { stripe(t, w, id, workers) })
			}
			wg.Wait()
			require.NoError(t, w.Close())
			require.NotContains(t, names(mustOpen(t, image(t, h)).Info().Anomalies), "vhd.bat")
		})
	}
}

// stripe writes and reads the sectors that are id of every n.
func stripe(t *testing.T, w ops.Writer, id, n int64) {
	rng := rand.New(rand.NewPCG(uint64(id), 5))
	last := map[int64]byte{}
	for range 300 {
		off := (rng.Int64N(w.Size()/512/n)*n + id) * 512
		b := byte(1 + rng.IntN(255))
		var err error
		switch rng.IntN(8) {
		case 0:
			b, err = 0, w.Zero(off, 512, rng.IntN(2) == 0)
		case 1:
			err = w.Flush()
			b = last[off]
		default:
			_, err = w.WriteAt(bytes.Repeat([]byte{b}, 512), off)
		}
		if err != nil {
			t.Errorf("worker %d at %d: %v", id, off, err)
			return
		}
		last[off] = b
		got, err := readLayer(w, off, 512, 0)
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{b}, 512)) {
			t.Errorf("worker %d at %d: %x…, want %x (%v)", id, off, got[:4], b, err)
			return
		}
	}
}

// F27: while a flush waits for the disk, reads and writes of others go on.
func TestRequestsGoOnDuringAFlush(t *testing.T) {
	h := disk(fixture.VHD{Size: 8 << 20, Type: 4, Parent: parent()}.Bytes())
	w := openWriter(t, h)
	write(t, w, 0, 1, 8)
	write(t, w, 2<<20, 1, 8)
	hung, release := make(chan bool), make(chan bool)
	h.SetFault(func(c sim.Call) error {
		if c.Label == "vhd.data" {
			hung <- true
			<-release
		}
		return nil
	})
	done := make(chan error)
	go func() { done <- w.Flush() }()
	<-hung
	write(t, w, 512, 2, 2)
	write(t, w, 2<<20+8*512, 3, 1)
	require.NoError(t, w.Zero(1024, 512, true))
	got, err := readLayer(w, 0, 2048, 0xee)
	require.NoError(t, err)
	want := bytes.Repeat([]byte{1}, 2048)
	copy(want[512:], bytes.Repeat([]byte{2}, 512))
	clear(want[1024:1536])
	require.Equal(t, want, got)
	h.SetFault(nil)
	close(release)
	require.NoError(t, <-done)
	require.NoError(t, w.Close())
	got, err = readLayer(mustOpen(t, image(t, h)), 2<<20, 10*512, 0xee)
	require.NoError(t, err)
	require.Equal(t, append(append(bytes.Repeat([]byte{1}, 8*512), bytes.Repeat([]byte{3}, 512)...), bytes.Repeat([]byte{0xee}, 512)...), got)
}
