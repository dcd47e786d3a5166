// Package fsx uses raw as a program may, in every way that the kernel has, in
// random order, and compares every byte with a model.
//
// A disk has one size, so nothing is truncated. Operations are read, preadv,
// O_DIRECT in sectors, shared mappings, write, punch hole, zero range, fsync,
// fdatasync, SEEK_HOLE and SEEK_DATA (a hole must be zeros), drop caches, close
// and open, unmount and mount. Every read is compared, and the whole disk every
// thousand operations and at the end, when the image is checked as well.
//
// A list of operations follows from its seed alone. When one fails, halves,
// quarters and so on are taken out of it as long as it still fails, and what is
// left is printed with the seed.
//
// VHDFS_FSX is the number of operations over the six kinds of image, VHDFS_SEED
// makes the same lists again.
package fsx

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/budget"
	"vhdfs/test/e2e"
	"vhdfs/test/fixture"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

func TestMain(m *testing.M) { os.Exit(mount.Main(m)) }

const (
	operations   = 60_000 // with every change
	wholeEvery   = 1000
	shrinkFor    = time.Minute
	shownAtFirst = 200 // operations of a list that could not be shrunk
)

func TestEveryWayToUseADisk(t *testing.T) {
	need.Fuse(t)
	seed, total := mount.Seed(t), mount.Count(t, "VHDFS_FSX", operations)
	done := budget.StartAt(t, "fsx", seed, "operations")
	for i, k := range mount.Disks {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			ops := list(seed+uint64(i)<<32, total/len(mount.Disks), k.Size)
			if err := run(t, k, ops); err != nil {
				ops, err = shrink(ops, err, time.Now().Add(shrinkFor), func(ops []op) error { return run(t, k, ops) })
				t.Fatalf("seed %d: %v\n%s", seed, err, show(ops))
			}
			t.Logf("%d operations", len(ops))
			done.Add("operations", len(ops))
		})
	}
}

// run does a list of operations on a new image.
func run(t *testing.T, k mount.Kind, ops []op) error {
	t.Helper()
	dir := t.TempDir()
	model, base := content(k.Size)
	k.Make(t, dir, base)
	var parent string
	if p := k.Parent(); p != "" {
		parent = e2e.SHA256(t, filepath.Join(dir, p))
	}
	m := e2e.Start(t, dir)
	defer func() { m.Stop(t) }()
	d := newDisk(model)
	if err := d.open(k.Raw(m)); err != nil {
		return err
	}
	for i, o := range ops {
		var err error
		if o.kind == remount {
			err = d.close()
			m.Stop(t)
			if m = e2e.Start(t, dir); err == nil {
				err = d.open(k.Raw(m))
			}
		} else {
			err = d.do(o)
		}
		if err == nil && i%wholeEvery == wholeEvery-1 {
			err = d.whole()
		}
		if err != nil {
			_ = d.close() // the failure is what counts
			return fmt.Errorf("operation %d of %d, %v: %w", i+1, len(ops), o, err)
		}
	}
	if err := d.whole(); err != nil {
		_ = d.close()
		return fmt.Errorf("at the end: %w", err)
	}
	if err := d.close(); err != nil {
		return err
	}
	m.Stop(t)
	mount.Check(t, filepath.Join(dir, k.File))
	if k.QEMU != "" {
		mount.CheckQEMU(t, k.QEMU, filepath.Join(dir, k.File))
	}
	if parent != "" && parent != e2e.SHA256(t, filepath.Join(dir, k.Parent())) {
		return fmt.Errorf("a write reached the parent")
	}
	return os.RemoveAll(dir)
}

// content is what a disk shows at first: noise between holes, at no alignment.
func content(size int64) (model []byte, base []fixture.Write) {
	model = make([]byte, size)
	rng := rand.New(rand.NewPCG(7, 7))
	for off := int64(512); off < size; off += 512 * (200 + rng.Int64N(1000)) {
		b := make([]byte, min(512*(1+rng.Int64N(300)), size-off))
		fillNoise(b, uint64(off))
		base = append(base, fixture.Write{Off: off, Data: b})
		copy(model[off:], b)
	}
	return model, base
}

// shrink takes parts out of a list as long as what is left still fails.
func shrink(ops []op, err error, until time.Time, run func([]op) error) ([]op, error) {
	for part := (len(ops) + 1) / 2; part > 0; part /= 2 {
		for from := 0; from < len(ops) && time.Now().Before(until); {
			less := slices.Delete(slices.Clone(ops), from, min(from+part, len(ops)))
			if e := run(less); e != nil {
				ops, err = less, e
			} else {
				from += part
			}
		}
	}
	return ops, err
}

func show(ops []op) string {
	var b strings.Builder
	for i, o := range ops {
		if i == shownAtFirst {
			fmt.Fprintf(&b, "… and %d more; they follow from the seed\n", len(ops)-i)
			break
		}
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

func TestShrinkFindsTheCulprits(t *testing.T) {
	ops := list(1, 1000, 32*mib)
	culprits := []op{ops[123], ops[124], ops[900]}
	fails := func(less []op) error {
		for _, c := range culprits {
			if !slices.Contains(less, c) {
				return nil
			}
		}
		return fmt.Errorf("all %d there", len(culprits))
	}
	got, err := shrink(ops, fails(ops), time.Now().Add(time.Hour), fails)
	require.EqualError(t, err, "all 3 there")
	require.Equal(t, culprits, got)
}

// A plain file is a right disk; one that loses bytes is seen by each way to read.
func TestAPlainFile(t *testing.T) {
	model, base := content(8 * mib)
	path := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(int64(len(model))))
	for _, w := range base {
		_, err := f.WriteAt(w.Data, w.Off)
		require.NoError(t, err)
	}
	d := newDisk(model)
	require.NoError(t, d.open(path))
	for _, o := range list(2, 3000, int64(len(model))) {
		if o.kind != remount {
			require.NoError(t, d.do(o), o.String())
		}
	}
	require.NoError(t, d.whole())
	const off = 3 * mib
	require.NoError(t, d.do(op{kind: write, off: off, n: 8192}))
	require.NoError(t, d.do(op{kind: fsync}))
	d.model[off+600] ^= 1
	for _, k := range []kind{read, readVector, readDirect, mapRead} {
		require.ErrorContains(t, d.do(op{kind: k, off: off, n: 4096}), "1 bytes differ, the first at 0x300258", string(k))
	}
	d.model[off+600] ^= 1
	require.NoError(t, d.do(op{kind: punch, off: off, n: 8192}))
	d.model[off+600] = 1
	require.ErrorContains(t, d.do(op{kind: seek, off: off}), "leaves out 0x01 at 0x300258")
	require.NoError(t, d.close())
	require.NoError(t, f.Close())
}
