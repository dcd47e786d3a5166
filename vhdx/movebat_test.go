package vhdx

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// A BAT that moves while guests go on takes their changes along: those that were
// flushed during the copy, and those that wait to be.
func TestChangesWhileTheBATMoves(t *testing.T) {
	h, _ := place(t, fixture.VHDX{Size: 8 << 30, BlockSize: 1 << 20, Parent: parentLocator(), Writes: []fixture.Write{{Off: 0, Data: fill(512, 1)}}})
	w := openWriter(t, h)
	write(t, w, mib, fill(512, 2))
	require.NoError(t, w.Flush())
	old, met := w.regions.bat, 0
	h.SetFault(func(c sim.Call) error {
		switch {
		case met == 0 && c.Op == sim.OpWrite && c.Off >= 4*mib: // the copy, after it read
			met = 1
			write(t, w, 5<<30, fill(512, 3))
			require.NoError(t, w.Flush())
			require.NoError(t, w.Zero(0, mib, true))
			require.NoError(t, w.Flush())
			write(t, w, 6<<30, fill(512, 4))
		case met == 1 && c.Op == sim.OpSync && c.Label == "vhdx.bat.copy":
			met = 2
			write(t, w, 7<<30, fill(512, 5))
		}
		return nil
	})
	require.NoError(t, w.Resize(here, 200<<30, 0))
	h.SetFault(nil)
	require.Equal(t, 2, met)
	require.NotEqual(t, old, w.regions.bat)
	want := func(d *Disk) {
		require.Equal(t, make([]byte, 512), read(t, d, 0, 512))
		for i, off := range []int64{mib, 5 << 30, 6 << 30} {
			require.Equal(t, fill(512, byte(i+2)), read(t, d, off, 512))
		}
	}
	want(w.Disk)
	require.Equal(t, fill(512, 5), read(t, w.Disk, 7<<30, 512))
	crashed, err := openHost(t, h.Clone(), ops.Read)
	require.NoError(t, err)
	want(crashed)
	require.NoError(t, crashed.Close())
	d := closedLeaky(t, h, w)
	want(d)
	require.Equal(t, fill(512, 5), read(t, d, 7<<30, 512))
}

// No entry of the log, needed or not, writes to where the BAT was: that space is
// for guests.
func TestNothingIsReplayedOverFreedTables(t *testing.T) {
	h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 8 << 30, BlockSize: 1 << 20})
	w := openWriter(t, h)
	for i := range int64(20) {
		write(t, w, i<<28, fill(512, 1))
		require.NoError(t, w.Flush())
	}
	old, guid := w.regions.bat, w.session.log.guid
	require.NoError(t, w.Resize(here, 200<<30, 0))
	require.NotEqual(t, guid, w.session.log.guid)
	write(t, w, 100<<30, fill(512, 7))
	require.NoError(t, w.Flush())
	e, err := w.entryAt(w.geometry.payloadIndex(100 << 10))
	require.NoError(t, err)
	require.Equal(t, old.off, e.offset(), "the old place is given away")
	g := ring{r: w.f, off: int64(w.headers.current.logOffset), length: int64(w.headers.current.logLength)}
	found := finder{ring: g, log: w.headers.current.log, known: map[int64]*logEntry{}, budget: 1 << 30}
	for at := int64(0); at < g.length; at += pageSize {
		e, err := found.entryAt(at)
		require.NoError(t, err)
		if e == nil {
			continue
		}
		o, err := newOverlay(w.f, g, []logEntry{*e}, w.fileSize)
		require.NoError(t, err)
		for page := range o.pages {
			require.False(t, old.contains(page*pageSize))
		}
	}
	closedLeaky(t, h, w)
}

// QEMU finds the results sound and reads what we read.
func TestQEMUReadsResized(t *testing.T) {
	for _, tt := range resized {
		if tt.image.Parent != nil || tt.image.LogicalSector != 0 || tt.image.BlockSize == 256<<20 || tt.to > 250<<30 {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			v := tt.image
			dataOf(&v)
			h, m := place(t, v)
			poisonTails(t, h, v, m)
			w := openWriter(t, h)
			require.NoError(t, w.Resize(here, tt.to, 0))
			write(t, w, tt.to-512, fill(512, 0x77))
			n := min(tt.to, 16*mib)
			want := read(t, w.Disk, 0, n)
			closedLeaky(t, h, w)
			path := onDisk(t, h)
			qemuImg(t, "check", "-f", "vhdx", path)
			raw := filepath.Join(t.TempDir(), "raw")
			qemuImg(t, "dd", "-f", "vhdx", "-O", "raw", "bs=512", fmt.Sprintf("count=%d", n/512), "if="+path, "of="+raw)
			got, err := os.ReadFile(raw)
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.Contains(t, qemuImg(t, "info", "--output=json", path), fmt.Sprintf(`"virtual-size": %d,`, tt.to))
		})
	}
}
