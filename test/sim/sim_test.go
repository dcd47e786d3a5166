package sim

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

func create(t *testing.T, h *Host, name string) ops.File {
	t.Helper()
	f, err := h.Dir("/vms").Create(name, 0o600)
	require.NoError(t, err)
	return f
}

// A file behaves as a byte slice under random changes, clones of it stay as
// they were, and the recording applied to the starting point gives the same.
func TestFileAgainstModel(t *testing.T) {
	const limit = 3 << 20 // several chunks
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		h := New()
		f := create(t, h, "a")
		start := h.Clone()
		h.Record()
		model := []byte{}
		var frozen *Host
		var frozenModel []byte
		for step := range 300 {
			off, n := rng.Int64N(limit), rng.Int64N(3*pageSize)
			if rng.IntN(10) == 0 {
				n = rng.Int64N(2 * chunkSize)
			}
			model = changeBoth(t, rng, f, model, off, n)
			st, err := f.Stat()
			require.NoError(t, err)
			require.Equal(t, int64(len(model)), st.Size, "seed %d step %d", seed, step)
			if step == 100 {
				frozen, frozenModel = h.Clone(), bytes.Clone(model)
			}
		}
		compareFile(t, h, model)
		compareFile(t, frozen, frozenModel)
		for _, e := range h.Events() {
			require.NoError(t, start.Apply(e))
		}
		compareFile(t, start, model)
		require.Equal(t, h.Used(), start.Used())
		compareHoles(t, f, model)
	}
}

func changeBoth(t *testing.T, rng *rand.Rand, f ops.File, model []byte, off, n int64) []byte {
	grow := func(to int64) {
		if to > int64(len(model)) {
			model = append(model, make([]byte, to-int64(len(model)))...)
		}
	}
	switch rng.IntN(5) {
	case 0, 1:
		p := bytes.Repeat([]byte{byte(rng.UintN(255) + 1)}, int(n))
		k, err := f.WriteAt(p, off)
		require.NoError(t, err)
		require.Equal(t, len(p), k)
		if n > 0 {
			grow(off + n)
		}
		copy(model[min(off, int64(len(model))):], p)
	case 2:
		require.NoError(t, f.Punch(off, n))
		if off < int64(len(model)) {
			clear(model[off:min(off+n, int64(len(model)))])
		}
	case 3:
		require.NoError(t, f.Allocate(off, n))
		grow(off + n)
	case 4:
		size := max(0, int64(len(model))+rng.Int64N(4*pageSize)-2*pageSize)
		require.NoError(t, f.Truncate(size, "model"))
		grow(size)
		model = model[:size]
	}
	return model
}

func compareFile(t *testing.T, h *Host, want []byte) {
	t.Helper()
	got, err := h.ReadFile("/vms/a")
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

// compareHoles asks that runs of data are in order and everything else zero.
func compareHoles(t *testing.T, f ops.File, model []byte) {
	t.Helper()
	at := int64(0)
	for {
		data, hole, err := f.NextData(at)
		if err == io.EOF {
			data, hole = int64(len(model)), int64(len(model))
		} else {
			require.NoError(t, err)
			require.Less(t, data, hole)
		}
		require.GreaterOrEqual(t, data, at)
		require.Equal(t, make([]byte, data-at), model[at:data])
		if at = hole; at >= int64(len(model)) {
			return
		}
	}
}

func TestSparseTerabytes(t *testing.T) {
	h := New()
	f := create(t, h, "a")
	const far = 64<<40 - 4096
	_, err := f.WriteAt([]byte("end"), far)
	require.NoError(t, err)
	require.Equal(t, int64(pageSize), h.Used())
	data, hole, err := f.NextData(1)
	require.NoError(t, err)
	require.Equal(t, []int64{far, far + 3}, []int64{data, hole})
	require.NoError(t, f.Punch(0, 64<<40))
	require.Zero(t, h.Used())
	require.NoError(t, f.Allocate(0, 1<<40))
	require.Equal(t, int64(1<<40), h.Used())
	_, err = f.WriteAt([]byte{1}, 5)
	require.NoError(t, err)
	b := make([]byte, 2)
	_, err = f.ReadAt(b, chunkSize+5)
	require.NoError(t, err)
	require.Equal(t, []byte{0, 0}, b, "the shared chunk of zeros was written to")
}

func TestPathsStayBeneath(t *testing.T) {
	h := New()
	h.Put("/secret", []byte("s"))
	h.Put("/vms/sub/a", []byte("a"))
	h.Symlink("sub/a", "/vms/link")
	h.Symlink("../a", "/vms/sub/d/up")
	h.Symlink("../../secret", "/vms/sub/out")
	h.Symlink("/vms/sub/a", "/vms/abs")
	h.Symlink("loop", "/vms/loop")
	h.Special("/vms/fifo")
	for _, tt := range []struct {
		name string
		a    ops.Access
		want error
	}{
		{"sub/a", 0, nil},
		{"sub/../sub/a", 0, nil},
		{"link", 0, nil},
		{"link", ops.NoFollow, ops.ErrForbidden},
		{"sub/d/up", 0, nil},
		{"../secret", 0, ops.ErrForbidden},
		{"/secret", 0, ops.ErrForbidden},
		{"sub/out", 0, ops.ErrForbidden},
		{"abs", 0, ops.ErrForbidden},
		{"loop", 0, syscall.ELOOP},
		{"fifo", 0, ops.ErrForbidden},
		{"sub", 0, ops.ErrForbidden},
		{"nothing", 0, fs.ErrNotExist},
		{"sub/a/b", 0, syscall.ENOTDIR},
		{"", 0, fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := h.Dir("/vms").Open(tt.name, tt.a)
			if tt.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, tt.want)
		})
	}
	require.NotContains(t, h.Opened(), "/secret")
	list, err := h.Dir("/vms").List(".")
	require.NoError(t, err)
	require.Equal(t, []ops.DirEntry{{Name: "fifo"}, {Name: "link", IsRegular: true}, {Name: "sub", IsDir: true}}, list)
}

func TestNamesAreNeverReplaced(t *testing.T) {
	h := New()
	d := h.Dir("/vms")
	create(t, h, "a")
	_, err := d.Create("a", 0o600)
	require.ErrorIs(t, err, fs.ErrExist)
	create(t, h, "b")
	require.ErrorIs(t, d.Rename("a", "b"), fs.ErrExist)
	require.NoError(t, d.Mkdir("d", 0o700))
	require.NoError(t, d.Rename("a", "d/a"))
	require.ErrorIs(t, d.Remove("d"), syscall.ENOTEMPTY)
	require.NoError(t, h.Link("/vms/b", "/vms/b2"))
	x, err := d.Stat("b")
	require.NoError(t, err)
	y, err := d.Stat("b2")
	require.NoError(t, err)
	require.Equal(t, x.ID, y.ID)
}

func TestLocksOfHandles(t *testing.T) {
	h := New()
	open := func() ops.File {
		f, err := h.Dir("/vms").Open("a", ops.Write)
		require.NoError(t, err)
		return f
	}
	create(t, h, "a")
	r1, r2, w := open(), open(), open()
	require.NoError(t, r1.Lock(false))
	require.NoError(t, r2.Lock(false))
	require.ErrorIs(t, w.Lock(true), ops.ErrBusy)
	require.ErrorIs(t, r1.Lock(true), ops.ErrBusy)
	require.NoError(t, r2.Close())
	require.NoError(t, r1.Lock(true), "a failed upgrade keeps the reader's lock")
	require.ErrorIs(t, w.Lock(false), ops.ErrBusy)
	require.NoError(t, r1.Close())
	require.NoError(t, w.Lock(true))
}

// Applying a part of a recording gives the state in which just that part reached
// the disk.
func TestApplySubset(t *testing.T) {
	h := New()
	d := h.Dir("/vms")
	base := h.Clone()
	h.Record()
	f := create(t, h, "t")
	_, err := f.WriteAt([]byte("one"), 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("two"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync("data"))
	h.Ack("flushed", 7)
	require.NoError(t, d.Rename("t", "a"))
	require.NoError(t, d.Sync(".", "names"))
	ev := h.Events()
	ops := make([]Op, len(ev))
	for i, e := range ev {
		ops[i] = e.Op
	}
	require.Equal(t, []Op{OpCreate, OpWrite, OpWrite, OpSync, OpAck, OpRename, OpSyncDir}, ops)
	require.Equal(t, 7, ev[4].Mark)

	c := base.Clone()
	for _, i := range []int{0, 1, 5} {
		require.NoError(t, c.Apply(ev[i]))
	}
	got, err := c.ReadFile("/vms/a")
	require.NoError(t, err)
	require.Equal(t, "one", string(got))

	c = base.Clone()
	require.NoError(t, c.Apply(ev[5]))
	_, err = c.ReadFile("/vms/a")
	require.NoError(t, err, "a name that is durable has a file")

	c = base.Clone()
	require.NoError(t, c.Apply(ev[2]), "a write to a file that never came to be")
	_, err = c.ReadFile("/vms/a")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestDroppedSyncsLeaveNoBarrier(t *testing.T) {
	h := New()
	f := create(t, h, "a")
	h.DropSync("log")
	h.Record()
	require.NoError(t, f.Sync("log"))
	require.NoError(t, f.Sync("data"))
	require.Len(t, h.Events(), 1)
	require.Equal(t, "data", h.Events()[0].Label)
	require.Equal(t, map[string]int{"log": 1, "data": 1}, h.SyncLabels())
	h.KeepSyncs()
	require.NoError(t, f.Sync("log"))
	require.Len(t, h.Events(), 2)
}

func TestFaults(t *testing.T) {
	h := New()
	f := create(t, h, "a")
	h.TraceSites(true)
	var calls []Call
	h.SetFault(func(c Call) error {
		calls = append(calls, c)
		switch {
		case c.Op == OpSync && c.Label == "log":
			return syscall.EIO
		case c.Op == OpWrite && c.N == 3:
			return &ShortWrite{Stored: 2, Err: syscall.EDQUOT}
		}
		return nil
	})
	require.ErrorIs(t, f.Sync("log"), syscall.EIO)
	require.NoError(t, f.Sync("data"))
	n, err := f.WriteAt([]byte("abc"), 0)
	require.ErrorIs(t, err, syscall.EDQUOT)
	require.Equal(t, 2, n)
	got, err := h.ReadFile("/vms/a")
	require.NoError(t, err)
	require.Equal(t, "ab", string(got))
	require.Equal(t, "sim_test.go", path.Base(calls[2].Site[:len(calls[2].Site)-len(":000")]))
	h.SetFault(nil)
	require.NoError(t, f.Sync("log"))
}

func TestCapacity(t *testing.T) {
	h := New()
	h.SetCapacity(3 * pageSize)
	f := create(t, h, "a")
	n, err := f.WriteAt(make([]byte, 5*pageSize), 100)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 3*pageSize-100, n)
	_, err = f.WriteAt([]byte{1}, 0)
	require.NoError(t, err, "rewriting needs no space")
	require.ErrorIs(t, f.Allocate(0, 4*pageSize), syscall.ENOSPC)
	require.NoError(t, f.Punch(0, pageSize))
	free, err := h.Dir("/vms").Free(".")
	require.NoError(t, err)
	require.EqualValues(t, pageSize, free)
	_, err = f.WriteAt([]byte{1}, 9*pageSize)
	require.NoError(t, err)
}

func TestFrozenHostRefusesAndCounts(t *testing.T) {
	h := New()
	f := create(t, h, "a")
	h.Freeze()
	_, err := f.WriteAt([]byte{1}, 0)
	require.ErrorIs(t, err, syscall.EROFS)
	_, err = h.Dir("/vms").Create("b", 0o600)
	require.ErrorIs(t, err, syscall.EROFS)
	require.Equal(t, 2, h.Refused())
	require.NoError(t, f.Sync("data"), "a sync changes nothing")
}

func TestHandlesCheckTheirArguments(t *testing.T) {
	h := New()
	create(t, h, "a")
	f, err := h.Dir("/vms").Open("a", ops.Read)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{1}, 0)
	require.ErrorIs(t, err, syscall.EBADF)
	_, err = f.ReadAt(nil, -1)
	require.ErrorIs(t, err, syscall.EINVAL)
	n, err := f.ReadAt(make([]byte, 1), 0)
	require.Equal(t, io.EOF, err)
	require.Zero(t, n)
	require.NoError(t, f.Close())
	_, err = f.Stat()
	require.True(t, errors.Is(err, fs.ErrClosed))
}

func BenchmarkCloneOf8MiB(b *testing.B) {
	h := New()
	h.Put("/vms/a", bytes.Repeat([]byte{1}, 8<<20))
	for b.Loop() {
		h.Clone()
	}
}

func TestBytesEqual(t *testing.T) {
	h := New()
	h.Put("/a", bytes.Repeat([]byte{7}, 3<<20))
	a, b := h.Bytes("/a"), h.Clone().Bytes("/a")
	require.True(t, a.Equal(b, 0))
	b.Write(4096, []byte{7})
	require.True(t, a.Equal(b, 0), "the same byte again")
	b.Write(4097, []byte{8})
	require.False(t, a.Equal(b, 0))
	require.False(t, a.Equal(b, 4096))
	require.True(t, a.Equal(b, 8192))
	b.Truncate(3<<20 - 1)
	require.False(t, a.Equal(b, 8192))
	b.Truncate(3 << 20)
	require.False(t, a.Equal(b, 8192), "the last byte was cut off")
	b.Write(3<<20-1, []byte{7})
	require.True(t, a.Equal(b, 8192))

	h.Put("/hole", nil)
	h.Put("/zeros", nil)
	hole, zeros := h.Bytes("/hole"), h.Bytes("/zeros")
	hole.Truncate(5 << 20)
	zeros.Truncate(5 << 20)
	zeros.Write(4<<20, make([]byte, 4096))
	require.True(t, hole.Equal(zeros, 0))
	zeros.Write(4<<20+5, []byte{1})
	require.False(t, hole.Equal(zeros, 0))
	require.False(t, zeros.Equal(hole, 0))
}
