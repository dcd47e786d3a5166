package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/test/need"
	"vhdfs/vhdx"
)

// deep is a set that gets as many snapshots as a chain may have disks below the
// active one. Snapshot i has the number i at place i, and no number at the places
// after that.
type deep struct {
	*testing.T
	m    *Mount
	disk *os.File
	took []time.Duration
}

const (
	deepPlace = 64 << 10
	deepSize  = 32 << 20
	// lately is how many of the snapshots are taken, and deleted again, while the set
	// is mounted; VHDFS_DEEP is another number, at most one less than a chain has disks.
	lately = 16
)

// A chain of as many disks as the limit allows is made of snapshots, read, and made
// shorter again; one more is refused. What runs out of descriptors fails by itself.
func TestDeepestSet(t *testing.T) {
	need.Fuse(t)
	dir, first := t.TempDir(), ops.MaxChain-deepCount(t)
	dig(t, dir, first)
	d := &deep{T: t, m: Start(t, dir)}
	var err error
	d.disk, err = os.OpenFile(d.m.Path("d.vhds", "raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	before := d.resident()
	for i := first; i < ops.MaxChain; i++ {
		d.write(i)
		began := time.Now()
		require.NoError(t, os.Mkdir(d.snapshot(i), 0o700), i)
		d.took = append(d.took, time.Since(began))
	}
	d.write(ops.MaxChain)
	require.ErrorIs(t, os.Mkdir(d.snapshot(ops.MaxChain), 0o700), unix.ELOOP)
	d.reads(d.m.Path("d.vhds", "raw"), ops.MaxChain)
	for _, i := range []int{1, 2, ops.MaxChain / 2, ops.MaxChain - 1} {
		d.reads(filepath.Join(d.snapshot(i), "raw"), i)
	}
	t.Logf("%d disks: snapshot %d took %v, the last %v; %d KiB of memory more", ops.MaxChain, first, d.took[0], d.took[len(d.took)-1], d.resident()-before)
	require.NoError(t, d.disk.Close())
	d.withFewFiles()
	d.flattens(first)
}

func deepCount(t *testing.T) int {
	s := os.Getenv("VHDFS_DEEP")
	if s == "" {
		return lately
	}
	n, err := strconv.Atoi(s)
	require.NoError(t, err, "VHDFS_DEEP")
	require.True(t, n > 0 && n < ops.MaxChain, "VHDFS_DEEP")
	return n
}

// dig makes the set with the snapshots before first, without a mount.
func dig(t *testing.T, dir string, first int) {
	t.Helper()
	top, err := host.OpenDir(dir)
	require.NoError(t, err)
	lib := ops.NewLibrary(ops.LibraryOptions{Top: top, Formats: []*ops.Format{vhdx.Format, vhdx.SetFormat}})
	ask := func(name, image, request string) {
		op := ops.All[slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == name })]
		args, err := op.Parse(request)
		require.NoError(t, err)
		require.NoError(t, op.Do(context.Background(), &ops.Request{Library: lib, Image: lib.Top(image), Args: args}).Err)
	}
	ask("create", ".", fmt.Sprintf("path=d.vhds size=%d block=1M", deepSize))
	disk, err := lib.Open(lib.Top("d.vhds"), ops.Write)
	require.NoError(t, err)
	for i := 1; i < first; i++ {
		_, err := disk.WriteAt(deepNumber(i), int64(i)*deepPlace)
		require.NoError(t, err)
		ask("snapshot", "d.vhds", fmt.Sprintf("s%d", i))
	}
	require.NoError(t, errors.Join(disk.Close(), lib.Close(), top.Close()))
}

func deepNumber(i int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(i)) }

func (d *deep) snapshot(i int) string { return d.m.Path("d.vhds", "snapshots", "s"+strconv.Itoa(i)) }

func (d *deep) write(i int) {
	d.Helper()
	_, err := d.disk.WriteAt(deepNumber(i), int64(i)*deepPlace)
	require.NoError(d, err)
}

// reads compares a state of the disk: places up to last are numbered.
func (d *deep) reads(raw string, last int) {
	d.Helper()
	b, err := os.ReadFile(raw)
	require.NoError(d, err)
	require.Len(d, b, deepSize)
	for i := range len(b) / deepPlace {
		want := make([]byte, deepPlace)
		if i <= last {
			copy(want, deepNumber(i))
		}
		require.True(d, bytes.Equal(want, b[i*deepPlace:][:deepPlace]), "%s: place %d", raw, i)
	}
}

// resident is the memory of the daemon in KiB.
func (d *deep) resident() (kib int) {
	d.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.m.cmd.Process.Pid))
	require.NoError(d, err)
	_, rss, _ := strings.Cut(string(b), "VmRSS:")
	_, err = fmt.Sscan(rss, &kib)
	require.NoError(d, err)
	return kib
}

// withFewFiles opens the chain with fewer descriptors than it needs.
func (d *deep) withFewFiles() {
	d.Helper()
	require.Empty(d, d.m.openImages(d))
	pid, usual := d.m.cmd.Process.Pid, unix.Rlimit{}
	require.NoError(d, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &usual))
	require.NoError(d, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: ops.MaxChain / 2, Max: usual.Max}, nil))
	_, err := os.Open(d.m.Path("d.vhds", "raw"))
	require.ErrorIs(d, err, unix.EMFILE)
	f, err := os.Open(filepath.Join(d.snapshot(2), "raw"))
	require.NoError(d, err, "a short chain opens")
	require.NoError(d, errors.Join(f.Close(), unix.Prlimit(pid, unix.RLIMIT_NOFILE, &usual, nil)))
	d.reads(d.m.Path("d.vhds", "raw"), ops.MaxChain)
}

// flattens deletes the snapshots from first on and gives their space back.
func (d *deep) flattens(first int) {
	d.Helper()
	for i := first; i < ops.MaxChain; i++ {
		require.NoError(d, os.Remove(d.snapshot(i)))
	}
	began := time.Now()
	require.NoError(d, os.WriteFile(d.m.Path("d.vhds", "optimize"), []byte("1"), 0))
	d.Logf("optimized in %v", time.Since(began))
	d.reads(d.m.Path("d.vhds", "raw"), ops.MaxChain)
	left, err := filepath.Glob(filepath.Join(d.m.Images, "*.avhdx"))
	require.NoError(d, err)
	require.Len(d, left, first)
}
