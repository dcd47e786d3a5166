package guest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/e2e"
	"vhdfs/test/fixture"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

// fstrim on a file system in a disk gives the space of deleted files back to the
// host, and harms nothing else.
func TestFstrimGivesSpaceBack(t *testing.T) {
	need.Fuse(t)
	need.Loop(t)
	for _, d := range disks[:2] {
		t.Run(d.file, func(t *testing.T) {
			dir := t.TempDir()
			image := filepath.Join(dir, d.file)
			require.NoError(t, d.make(image))
			m := e2e.Start(t, dir)
			raw := m.Path(d.file, "raw")
			dev := mount.Loop(t, raw)
			mount.Tool(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
			guest := mount.MountFS(t, dev, t.TempDir(), "ext4", "")
			keep, gone := filepath.Join(guest.Dir, "keep"), filepath.Join(guest.Dir, "gone")
			const deleted = 200 * mib
			for path, n := range map[string]int64{keep: 20 * mib, gone: deleted} {
				require.NoError(t, os.WriteFile(path, noise(0, n, uint64(n)).Data, 0o600))
			}
			want := e2e.SHA256(t, keep)
			mount.Tool(t, "sync", "-f", guest.Dir)
			before := blocks(t, raw)
			require.NoError(t, os.Remove(gone))
			mount.Tool(t, "sync", "-f", guest.Dir)
			mount.Tool(t, "fstrim", guest.Dir)
			mount.Tool(t, "sync", "-f", guest.Dir)
			require.Eventually(t, func() bool { return blocks(t, raw) < before-deleted*9/10 }, 1<<33, 1<<27,
				"%d bytes before, %d of a file deleted, %d after", before, int64(deleted), blocks(t, raw))
			guest.Unmount(t)
			fsck(t, "e2fsck -fn", dev)
			mount.Unloop(t, dev)
			m.Stop(t)
			mount.Check(t, image)
			mount.CheckQEMU(t, d.qemu, image)

			m = e2e.Start(t, dir)
			dev = mount.Loop(t, m.Path(d.file, "raw"), "--read-only")
			guest = mount.MountFS(t, dev, guest.Dir, "ext4", "ro")
			require.Equal(t, want, e2e.SHA256(t, keep))
			guest.Unmount(t)
			mount.Unloop(t, dev)
		})
	}
}

// A punched range reads as zeros at any alignment and its neighbours as before,
// now and after the next open; in a child it hides the parent's bytes.
func TestPunchedRangesAreZeros(t *testing.T) {
	need.Fuse(t)
	ranges := [][2]int64{
		{0, 1}, {511, 2}, {1024, 512}, {2047, 4098}, {mib - 1, 2}, {2*mib - 4096, 4096}, {3*mib + 17, 5*mib + 1},
		{10 * mib, 2 * mib}, {14*mib - 1, 2*mib + 2}, {20*mib + 512, 4096}, {32*mib - 1, 1},
	}
	for _, k := range mount.Disks {
		t.Run(k.Name, func(t *testing.T) {
			dir := t.TempDir()
			data := noise(0, k.Size, 5)
			k.Make(t, dir, []fixture.Write{data})
			want := bytes.Clone(data.Data)
			m := e2e.Start(t, dir)
			with(t, k.Raw(m), func(f *os.File) {
				for _, r := range ranges {
					require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r[0], r[1]), r)
					clear(want[r[0] : r[0]+r[1]])
				}
				same(t, want, readAt(t, k.Raw(m), 0, k.Size))
				require.NoError(t, f.Sync())
			})
			m.Stop(t)
			m = e2e.Start(t, dir)
			same(t, want, readAt(t, k.Raw(m), 0, k.Size))
		})
	}
}

func same(t *testing.T, want, got []byte) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		if want[i] != got[i] {
			require.Fail(t, fmt.Sprintf("byte %#x is %#02x, want %#02x", i, got[i], want[i]))
		}
	}
}

const (
	// spaceWrites is what a change is tested with; VHDFS_SPACE says more.
	spaceWrites = 5_000
	flushEvery  = 50
	// daemonMemory is what a daemon may use at most, in KiB.
	daemonMemory = 128 << 10
)

// A disk that saw many small writes and flushes has no more space than its
// blocks and 4 MiB, and the daemon stays small.
func TestManyFlushesNeedNoSpace(t *testing.T) {
	need.Fuse(t)
	n := mount.Count(t, "VHDFS_SPACE", spaceWrites)
	const blockSize = 2 * mib
	const bitmapSpace = 4 << 10 // before each block of a VHD, so that its data are at a multiple of 4 KiB
	for _, name := range []string{"dynamic.vhdx", "dynamic.vhd"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			image := filepath.Join(dir, name)
			const disk = 2 << 30
			perBlock := int64(blockSize)
			if filepath.Ext(name) == ".vhd" {
				perBlock += bitmapSpace
				require.NoError(t, fixture.VHD{Size: disk}.WriteFile(image))
			} else {
				require.NoError(t, fixture.VHDX{Size: disk, BlockSize: blockSize}.WriteFile(image))
			}
			m := e2e.Start(t, dir)
			live := map[int64]bool{}
			rng := rand.New(rand.NewPCG(11, 11))
			with(t, m.Path(name, "raw"), func(f *os.File) {
				b := noise(0, 4096, 1).Data
				for i := range n {
					// Nine of ten go to a tenth of the disk, as a guest's do.
					off := rng.Int64N(disk/10/4096) * 4096
					if i%10 == 0 {
						off = rng.Int64N(disk/4096) * 4096
					}
					live[off/blockSize] = true
					_, err := f.WriteAt(b, off)
					require.NoError(t, err)
					if i%flushEvery == flushEvery-1 {
						require.NoError(t, f.Sync())
					}
				}
			})
			peak := memoryPeak(t, m.Pid())
			m.Stop(t)
			require.LessOrEqual(t, size(t, image), int64(len(live))*perBlock+4*mib, "%d blocks hold a written sector", len(live))
			require.Less(t, peak, int64(daemonMemory), "KiB of memory")
			mount.Check(t, image)
			t.Logf("%d writes, %d flushes: %d blocks, %d bytes of file, %d KiB of memory", n, n/flushEvery, len(live), size(t, image), peak)
		})
	}
}

// memoryPeak is VmHWM of a process, in KiB.
func memoryPeak(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, ok := bytes.Cut(b, []byte("VmHWM:"))
	require.True(t, ok)
	var kib int64
	_, err = fmt.Sscan(string(rest), &kib)
	require.NoError(t, err)
	return kib
}
