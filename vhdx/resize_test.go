package vhdx

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

var here = context.Background()

func TestCanResize(t *testing.T) {
	for _, tt := range []struct {
		sector uint32
		size   int64
		ok     bool
	}{
		{512, 512, true}, {512, 64 << 40, true}, {4096, 8192, true}, {512, 3*mib + 512, true},
		{512, 0, false}, {512, -512, false}, {512, 64<<40 + 512, false}, {512, 513, false}, {4096, 512, false}, {512, 1<<63 - 512, false},
	} {
		h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 8 * mib, LogicalSector: tt.sector})
		before := image(t, h)
		w := openWriter(t, h)
		err := w.CanResize(tt.size)
		if tt.ok {
			require.NoError(t, err, "%d", tt.size)
		} else {
			require.ErrorIs(t, err, ops.ErrUsage, "%d", tt.size)
			require.Equal(t, ops.StatusSizeInvalid, ops.StatusOf(err))
			require.ErrorIs(t, w.Resize(here, tt.size, 0), ops.ErrUsage)
		}
		require.NoError(t, w.Resize(here, 8*mib, 0))
		require.NoError(t, w.Close())
		require.Equal(t, before, image(t, h), "%d", tt.size)
	}
}

// resizing is a disk that changes its size.
type resizing struct {
	name     string
	image    fixture.VHDX
	to       int64
	below    int64 // of the parent
	mibs     int64 // of the BAT region afterwards
	fileMiBs int64 // 0: any
}

// resized are disks that change their size in every way that matters.
var resized = []resizing{
	{"dynamic, within a block", fixture.VHDX{Size: 5*mib + 512}, 5*mib + 4096, 0, 1, 0},
	{"dynamic, more blocks", fixture.VHDX{Size: 5*mib + 512}, 64*mib + 512, 0, 1, 0},
	{"dynamic, more chunks", fixture.VHDX{Size: 5*mib + 512, BlockSize: 256 << 20}, 40<<30 + 512, 0, 1, 0},
	{"dynamic, another BAT", fixture.VHDX{Size: 5*mib + 512, BlockSize: 1 << 20}, 200 << 30, 0, 2, 0},
	{"dynamic, largest", fixture.VHDX{Size: 5*mib + 512, BlockSize: 1 << 20}, 64 << 40, 0, 513, 0},
	{"dynamic, smaller", fixture.VHDX{Size: 9*mib + 512}, 3*mib + 512, 0, 1, 4 + 2*2},
	{"dynamic, one sector", fixture.VHDX{Size: 9*mib + 512}, 512, 0, 1, 4 + 2},
	{"4K sectors", fixture.VHDX{Size: 5*mib + 4096, LogicalSector: 4096}, 9*mib + 8192, 0, 1, 0},
	{"fixed, larger", fixture.VHDX{Size: 5*mib + 512, Fixed: true}, 15*mib + 512, 0, 1, 4 + 8*2},
	{"fixed, smaller", fixture.VHDX{Size: 15*mib + 512, Fixed: true}, 3 * mib, 0, 1, 4 + 2*2},
	{"child, larger than its parent", fixture.VHDX{Size: 5*mib + 512, Parent: parentLocator()}, 15*mib + 512, 9*mib + 512, 1, 0},
	{"child, within its parent", fixture.VHDX{Size: 5*mib + 512, Parent: parentLocator()}, 7*mib + 512, 1 << 30, 1, 0},
	{"child, small parent", fixture.VHDX{Size: 5*mib + 512, Parent: parentLocator()}, 15*mib + 512, 5 * mib, 1, 0},
	{"child, more chunks", fixture.VHDX{Size: 5*mib + 512, Parent: parentLocator(), BlockSize: 256 << 20}, 9 << 30, 7 << 30, 1, 0},
	{"child, another BAT", fixture.VHDX{Size: 5*mib + 512, Parent: parentLocator(), BlockSize: 1 << 20}, 200 << 30, 150 << 30, 2, 0},
	{"child, smaller", fixture.VHDX{Size: 15*mib + 512, Parent: parentLocator()}, 3*mib + 512, 1 << 30, 1, 0},
}

// dataOf puts sectors into a disk: at the start, over a border, at the end.
func dataOf(v *fixture.VHDX) {
	for i, off := range []int64{0, 3*mib - 4096, 4 * mib, v.Size - 4096} {
		if off = off / 4096 * 4096; off+4096 <= v.Size {
			v.Writes = append(v.Writes, fixture.Write{Off: off, Data: fill(4096, byte(i+1))})
		}
	}
	v.States = map[int64]uint8{}
}

// kindsOf is the disk in runs of 512 bytes: byte and kind.
func sectorsOf(t testing.TB, d *Disk, off, n int64) []byte {
	t.Helper()
	return read(t, d, off, min(n, d.Size()-off))
}

// The bytes below both sizes stay; what is added reads as zeros, not as the
// parent's, whatever stood in the file; and what is cut off does not come back.
func TestResize(t *testing.T) {
	for _, tt := range resized {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.image
			dataOf(&v)
			h, m := place(t, v)
			poisonTails(t, h, v, m)
			base, err := openHost(t, h.Clone(), ops.Read)
			require.NoError(t, err)
			was := sectorsOf(t, base, 0, 1<<30)
			w := openWriter(t, h)
			link := w.Info().LinkID
			require.NoError(t, w.Resize(here, tt.to, tt.below))
			require.Equal(t, tt.to, w.Size())
			require.NotEqual(t, link, w.Info().LinkID)
			after, err := openHost(t, h.Clone(), ops.Read)
			require.NoError(t, err)
			keeps(t, w.Disk, was, v.Size, tt.below)
			for _, d := range []*Disk{after, closedLeaky(t, h, w)} {
				require.Equal(t, tt.to, d.Size())
				keeps(t, d, was, v.Size, tt.below)
				require.Equal(t, tt.mibs*mib, d.regions.bat.len())
			}
			if tt.fileMiBs > 0 {
				require.Equal(t, tt.fileMiBs*mib, lengthOf(t, h))
			}
			require.NoError(t, after.Close())
			if tt.image.Fixed {
				d, err := openHost(t, h, ops.Read)
				require.NoError(t, err)
				require.Zero(t, d.missingBlocks(t))
				require.NoError(t, d.Close())
				require.GreaterOrEqual(t, h.Used(), tt.to-roundUp(v.Size, 2*mib), "space that is really there")
			}
			back(t, h, v.Size, tt.to, was, tt.below)
		})
	}
}

// closedLeaky is closed where space may be left over.
func closedLeaky(t testing.TB, h *sim.Host, w *Writer) *Disk {
	t.Helper()
	require.NoError(t, w.Close())
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	require.Equal(t, ops.LogClean, d.Info().Log)
	require.Subset(t, []string{"vhdx.space.leaked file"}, check(t, d))
	return d
}

// lengthOf is the length of the image's file.
func lengthOf(t testing.TB, h *sim.Host) int64 {
	t.Helper()
	f, err := h.Dir("/img").Open(testImage, ops.Read)
	require.NoError(t, err)
	st, err := f.Stat()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return st.Size
}

// missingBlocks is how many blocks of a fixed disk have no space.
func (d *Disk) missingBlocks(t testing.TB) (n int) {
	for b := range d.geometry.blocks {
		if entryOf(t, d, b).state() != stateFull {
			n++
		}
	}
	return n
}

// poisonTails fills what a larger disk would show if nobody cleared it: the rest
// of the last block, the bits of that rest, entries past the table's end.
func poisonTails(t *testing.T, h *sim.Host, v fixture.VHDX, m *fixture.VHDXImage) {
	t.Helper()
	f, err := h.Dir("/img").Open(testImage, ops.Write)
	require.NoError(t, err)
	block := max(int64(v.BlockSize), 2*mib)
	if v.BlockSize == 1<<20 {
		block = mib
	}
	last := (v.Size - 1) / block
	if at, ok := m.Blocks[last]; ok {
		_, err = f.WriteAt(fill(4096, 0xAA), at+v.Size-last*block)
		require.NoError(t, err)
	}
	if at, ok := m.Bitmaps[0]; ok {
		sector := max(int64(v.LogicalSector), 512)
		_, err = f.WriteAt(fill(8, 0xff), at+((v.Size-1)/sector/8)+1)
		require.NoError(t, err)
	}
	next := v.BATIndex(last) + 1
	stray := 4 * mib
	if v.Parent != nil { // the table goes on to the end of the chunk
		stray = roundUp(m.Size, mib)
		require.NoError(t, f.Truncate(stray+block, ""))
	}
	_, err = f.WriteAt(le64(uint64(newEntry(stateFull, stray))), m.BATOff+(next+6)*8)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// keeps asks that a disk holds was below the smaller size and zeros of its own
// above it, as far as a parent reaches.
func keeps(t *testing.T, d *Disk, was []byte, old, below int64) {
	t.Helper()
	n := min(old, d.Size())
	require.Equal(t, was[:n], read(t, d, 0, n))
	if d.Size() > old {
		end := min(d.Size(), old+20*mib)
		for at := old; at < end; {
			x, err := d.Extent(at, end-at)
			require.NoError(t, err)
			if x.Kind == ops.Absent {
				require.GreaterOrEqual(t, at, below, "the parent would show")
			}
			at += x.Len
		}
		for i, b := range read(t, d, old, end-old) {
			if b != 0 && b != 0xee { // absent
				require.Failf(t, "old bytes show", "%#x at %d", b, old+int64(i))
			}
		}
		x, err := d.Extent(d.Size()-512, 512)
		require.NoError(t, err)
		require.Equal(t, d.Size()-512 >= below && d.geometry.hasParent, x.Kind == ops.Absent)
	}
}

// back takes a disk to its old size again: what was cut off reads as zeros.
func back(t *testing.T, h *sim.Host, old, now int64, was []byte, below int64) {
	t.Helper()
	w := openWriter(t, h)
	if now > old {
		require.NoError(t, w.Resize(here, old, below))
		d := closedLeaky(t, h, w)
		require.Equal(t, was, sectorsOf(t, d, 0, 1<<30))
		return
	}
	require.NoError(t, w.Resize(here, old, below))
	d := closedLeaky(t, h, w)
	keeps(t, d, was, now, below)
}

// A disk shrinks to what it holds: the file gets shorter, and space of blocks and
// bitmaps past the end is there for others at once.
func TestShrinkGivesBack(t *testing.T) {
	h := created(t, childSpec(ops.CreateSpec{Size: 12 << 30, BlockSize: 1 << 20}))
	w := openWriter(t, h)
	for i := range int64(12) {
		write(t, w, i<<30, fill(512, byte(i+1)))
	}
	require.NoError(t, w.Flush())
	full := len(image(t, h))
	require.NoError(t, w.Resize(here, 2<<30, 1<<40))
	require.Less(t, len(image(t, h)), full-10*int(mib))
	require.Empty(t, check(t, w.Disk))
	write(t, w, 1<<30+mib, fill(512, 9))
	require.NoError(t, w.Flush())
	require.NoError(t, w.Resize(here, 12<<30, 12<<30))
	for i := int64(2); i < 12; i++ {
		require.Equal(t, make([]byte, 512), read(t, w.Disk, i<<30, 512))
	}
	d := closed(t, h, w)
	require.Equal(t, fill(512, 2), read(t, d, 1<<30, 512))
	require.Equal(t, fill(512, 9), read(t, d, 1<<30+mib, 512))
}

// A cancelled growth leaves the old disk, and its space goes back.
func TestResizeCancelled(t *testing.T) {
	for _, v := range []fixture.VHDX{
		{Size: 5 * mib, Fixed: true, BlockSize: 1 << 20},
		{Size: 5 * mib, Parent: parentLocator(), BlockSize: 1 << 20},
	} {
		h, _ := place(t, v)
		w := openWriter(t, h)
		ctx, cancel := context.WithCancel(here)
		n := 0
		h.SetFault(func(c sim.Call) error {
			if n++; n == 40 {
				cancel()
			}
			return nil
		})
		err := w.Resize(ctx, 40<<30, 40<<30)
		require.ErrorIs(t, err, context.Canceled)
		h.SetFault(nil)
		require.Equal(t, v.Size, w.Size())
		d := closed(t, h, w)
		require.Equal(t, v.Size, d.Size())
		require.LessOrEqual(t, len(image(t, h)), int(12*mib))
	}
}

// Guests go on while their disk changes its size.
func TestResizeUnderLoad(t *testing.T) {
	for _, v := range []fixture.VHDX{
		{Size: 40 * mib, BlockSize: 1 << 20},
		{Size: 40 * mib, BlockSize: 1 << 20, Parent: parentLocator()},
		{Size: 40 * mib, BlockSize: 1 << 20, Fixed: true},
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
		sizes := []int64{60*mib + 512, 20 * mib, 500 << 30, 30*mib + 4096, 44 * mib}
		if v.Fixed {
			sizes[2] = 200 * mib
		}
		for round := range int64(3) {
			for i, size := range sizes {
				for done.Load() < (round*int64(len(sizes))+int64(i))*40 {
					runtime.Gosched()
				}
				require.NoError(t, w.Resize(here, size, 1<<40))
			}
		}
		close(stop)
		guests.Wait()
		d := closedLeaky(t, h, w)
		for g := range 4 {
			require.Equal(t, want[g], read(t, d, int64(g)*4*mib, 4*mib))
		}
	}
}

// guest writes, zeroes, reads and flushes 4 MiB of its own until it is stopped,
// and answers what they hold.
func guest(t *testing.T, w *Writer, g int, stop chan struct{}, done *atomic.Int64) []byte {
	rng := rand.New(rand.NewPCG(uint64(g), 7))
	base, have := int64(g)*4*mib, make([]byte, 4*mib)
	if err := w.Zero(base, 4*mib, true); err != nil {
		t.Error(err)
	}
	for i := 0; ; i++ {
		done.Add(1)
		select {
		case <-stop:
			return have
		default:
		}
		off, n := rng.Int64N(1024)*4096, (1+rng.Int64N(8))*4096
		var err error
		switch k := rng.IntN(10); {
		case k < 5:
			p := fill(int(min(n, 4*mib-off)), byte(i+1))
			copy(have[off:], p)
			_, err = w.WriteAt(p, base+off)
		case k < 7:
			off, n = off/int64(mib)*int64(mib), int64(mib)
			clear(have[off:min(off+n, 4*mib)])
			err = w.Zero(base+off, min(n, 4*mib-off), true)
		case k < 9:
			p := make([]byte, 4096)
			var k int
			if k, _, err = w.ReadRun(p, base+off); err == nil && !slices.Equal(p[:k], have[off:off+int64(k)]) {
				err = fmt.Errorf("guest %d: other bytes at %d", g, off)
			}
		default:
			err = w.Flush()
		}
		if err != nil {
			t.Errorf("guest %d: %v", g, err)
			return have
		}
	}
}
