package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// Start lays out an image as /vms/disk with the format's first extension on a
// new host.
type Start func(t *testing.T) *sim.Host

// Created is an empty image as the format itself makes it.
func Created(f *ops.Format, s ops.CreateSpec) Start {
	return func(t *testing.T) *sim.Host {
		t.Helper()
		h := sim.New()
		file, err := h.Dir("/vms").Create(imageName(f), 0o600)
		require.NoError(t, err)
		require.NoError(t, f.Create(file, s))
		require.NoError(t, file.Close())
		return h
	}
}

// Stored is an image given as bytes.
func Stored(f *ops.Format, image []byte) Start {
	return func(*testing.T) *sim.Host {
		h := sim.New()
		h.Put("/vms/"+imageName(f), image)
		return h
	}
}

func imageName(f *ops.Format) string { return "disk" + f.Extensions[0] }

// writer is one image under test and what it should hold.
type writer struct {
	format *ops.Format
	host   *sim.Host
	want   *Disk
	w      ops.Writer
	sector int64
	fixed  bool
}

// Writer asks that images of a format, starting with want, keep the contract of
// [ops.Writer]: random writes, zeroes, flushes and reopenings against a byte
// model, whole sectors only, all or nothing when the host is full, and the
// poison of a failed sync. Where the layer is an [ops.Checker], its check finds
// nothing broken after each run.
func Writer(t *testing.T, f *ops.Format, start Start, want *Disk) {
	t.Helper()
	for _, c := range []struct {
		name  string
		check func(tb, *writer)
	}{
		{"sector rules", checkSectorRules},
		{"opening writes nothing", checkOpeningWritesNothing},
		{"random changes", checkRandomChanges},
		{"host full", checkHostFull},
		{"failed sync poisons", checkPoison},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &writer{format: f, host: start(t), want: want.Clone()}
			w.open(t)
			c.check(t, w)
			w.finish(t)
		})
	}
}

func openImage(h *sim.Host, f *ops.Format, a ops.Access) (ops.Layer, error) {
	file, err := h.Dir("/vms").Open(imageName(f), a)
	if err != nil {
		return nil, err
	}
	return f.Open(file, ops.OpenOptions{
		Write: a&ops.Write != 0,
		Ext:   strings.ToLower(f.Extensions[0]),
		Cache: ops.NewCache(ops.DefaultCacheBudget),
	})
}

func (w *writer) open(t tb) {
	l, err := openImage(w.host, w.format, ops.Write)
	require.NoError(t, err)
	var ok bool
	w.w, ok = l.(ops.Writer)
	require.True(t, ok, "%T opened for writing is no ops.Writer", l)
	info := l.Info()
	w.sector, w.fixed = max(int64(info.LogicalSector), sector), info.Type == ops.Fixed
}

// finish closes, reopens read-only, compares everything and checks.
func (w *writer) finish(t tb) {
	require.NoError(t, w.w.Close())
	l, err := openImage(w.host, w.format, ops.Read)
	require.NoError(t, err)
	checkContent(t, l, w.want)
	checkExtents(t, l, w.want)
	if c, ok := l.(ops.Checker); ok {
		require.NoError(t, c.Check(context.Background(), func(a ops.Anomaly) {
			require.NotEqual(t, ops.Broken, a.Severity, "%s: %s", a.Name, a.Text)
		}))
	}
	require.NoError(t, l.Close())
}

func checkSectorRules(t tb, w *writer) {
	size := w.want.Size()
	b := make([]byte, 2*w.sector)
	for i := range b {
		b[i] = 0xEE
	}
	for _, c := range []struct{ off, n int64 }{
		{1, w.sector}, {0, 1}, {0, w.sector - 1}, {w.sector - 1, w.sector},
		{-w.sector, w.sector}, {size, w.sector}, {size - w.sector, 2 * w.sector}, {1 << 62, w.sector},
	} {
		n, err := w.w.WriteAt(b[:c.n], c.off)
		require.Error(t, err, "WriteAt %d bytes at %d", c.n, c.off)
		require.Zero(t, n, "WriteAt %d bytes at %d", c.n, c.off)
		require.Error(t, w.w.Zero(c.off, c.n, true), "Zero %d bytes at %d", c.n, c.off)
	}
	for _, c := range []struct{ off, n int64 }{{1, w.sector}, {0, 1}} {
		_, err := w.w.WriteAt(b[:c.n], c.off)
		require.ErrorIs(t, err, ops.ErrUsage, "WriteAt %d bytes at %d", c.n, c.off)
		require.ErrorIs(t, w.w.Zero(c.off, c.n, false), ops.ErrUsage)
	}
	require.Error(t, w.w.Zero(0, -w.sector, true))
	require.NoError(t, w.w.Zero(0, 0, true), "an empty range")
	n, err := w.w.WriteAt(nil, 0)
	require.NoError(t, err, "an empty write")
	require.Zero(t, n)
}

// checkOpeningWritesNothing opens, reads, flushes and closes: the file and its
// times stay as they are (contract C7; ids stay put).
func checkOpeningWritesNothing(t tb, w *writer) {
	before := w.host.Changes()
	checkContent(t, w.w, w.want)
	require.NoError(t, w.w.Close())
	w.open(t)
	require.Equal(t, before, w.host.Changes())
}

func checkRandomChanges(t tb, w *writer) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 11))
		var log []string
		for range 150 {
			log = append(log, w.step(t, rng, log))
		}
		checkContent(t, w.w, w.want)
	}
}

// step makes one random change and compares what lies around it.
func (w *writer) step(t tb, rng *rand.Rand, log []string) string {
	off, n := w.somewhere(rng)
	var what string
	switch k := rng.IntN(12); {
	case k < 6:
		what = fmt.Sprintf("write %d at %d", n, off)
		p := pattern(rng, n)
		done, err := w.w.WriteAt(p, off)
		require.NoError(t, err, "%s\n%s", strings.Join(log, "\n"), what)
		require.Equal(t, len(p), done)
		w.want.Write(off, p)
	case k < 9:
		unmap := rng.IntN(2) == 0
		what = fmt.Sprintf("zero %d at %d unmap=%v", n, off, unmap)
		require.NoError(t, w.w.Zero(off, n, unmap), "%s\n%s", strings.Join(log, "\n"), what)
		w.want.Zero(off, n)
	case k < 11:
		what = "flush"
		require.NoError(t, w.w.Flush())
	default:
		what = "reopen"
		require.NoError(t, w.w.Close())
		w.open(t)
	}
	lo, hi := max(0, off-2*w.sector), min(w.want.Size(), off+n+2*w.sector)
	checkRange(t, w.w, w.want, lo, min(hi-lo, 1<<20))
	return what
}

// somewhere is a range of whole sectors; often at a block's border.
func (w *writer) somewhere(rng *rand.Rand) (off, n int64) {
	size := w.want.Size()
	block := max(int64(w.w.Info().BlockSize), 1<<16)
	switch rng.IntN(4) {
	case 0: // around a border
		off = rng.Int64N(size/block+1)*block - rng.Int64N(4)*w.sector
		n = 8 * w.sector
	case 1: // a whole block, or more
		off, n = rng.Int64N(size/block+1)*block, min(block, 4<<20)
	default:
		off, n = rng.Int64N(size), rng.Int64N(1<<16)
	}
	off = min(max(0, off), size-w.sector) / w.sector * w.sector
	n = min(max(n, w.sector)/w.sector*w.sector, size-off)
	return off, n
}

func pattern(rng *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	for i := int64(0); i < n; i += 8 {
		v := rng.Uint64() | 1
		for j := int64(0); j < 8 && i+j < n; j++ {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

// checkHostFull fills the host: each sector of a refused write is old or new,
// and the same write succeeds once there is room (fault F02).
func checkHostFull(t tb, w *writer) {
	rng := rand.New(rand.NewPCG(7, 7))
	refused := 0
	for range 30 {
		off, n := w.somewhere(rng)
		n = min(n, 1<<18)
		w.host.SetCapacity(max(w.host.Used()+rng.Int64N(n+1), 1))
		p := pattern(rng, n)
		_, err := w.w.WriteAt(p, off)
		if err == nil {
			w.want.Write(off, p)
			continue
		}
		refused++
		require.ErrorIs(t, err, syscall.ENOSPC)
		w.oldOrNew(t, p, off)
		w.host.SetCapacity(0)
		_, err = w.w.WriteAt(p, off)
		require.NoError(t, err, "the same write with room")
		w.want.Write(off, p)
		checkRange(t, w.w, w.want, off, n)
	}
	w.host.SetCapacity(0)
	if !w.fixed {
		require.Positive(t, refused, "no write met a full host")
	}
	require.NoError(t, w.w.Flush(), "a full host poisons nothing")
}

// oldOrNew asks that each sector of [off, off+len(p)) is what it was or p.
func (w *writer) oldOrNew(t tb, p []byte, off int64) {
	after := w.want.Clone()
	after.Write(off, p)
	for i := int64(0); i < int64(len(p)); i += w.sector {
		var first recorder
		func() {
			defer func() { _ = recover() }()
			checkRange(&first, w.w, w.want, off+i, w.sector)
		}()
		if first.failed {
			checkRange(t, w.w, after, off+i, w.sector)
		}
	}
}

// recorder notes that a check failed, and ends it.
type recorder struct{ failed bool }

func (r *recorder) Errorf(string, ...any) { r.failed = true }
func (r *recorder) FailNow()              { panic(r) }
func (r *recorder) Helper()               {}

// checkPoison fails one sync: writes and flushes answer ErrPoisoned from then
// on, reads go on, and a new open starts afresh (contract C6).
func checkPoison(t tb, w *writer) {
	b := pattern(rand.New(rand.NewPCG(9, 9)), w.sector)
	_, err := w.w.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, w.w.Flush())
	w.want.Write(0, b)
	_, err = w.w.WriteAt(b, 0)
	require.NoError(t, err)
	failed := false
	w.host.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpSync && !failed {
			failed = true
			return syscall.EIO
		}
		return nil
	})
	require.ErrorIs(t, w.w.Flush(), syscall.EIO)
	require.True(t, failed)
	require.ErrorIs(t, w.w.Flush(), ops.ErrPoisoned, "the kernel reports a failed sync once; we do so for good")
	_, err = w.w.WriteAt(b, 0)
	require.ErrorIs(t, err, ops.ErrPoisoned)
	require.ErrorIs(t, w.w.Zero(0, w.sector, false), ops.ErrPoisoned)
	checkRange(t, w.w, w.want, 0, w.sector)
	w.host.SetFault(nil)
	_ = w.w.Close() // whether a poisoned layer may say so once more is open
	w.open(t)
}
