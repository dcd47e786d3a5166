package guest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/e2e"
	"vhdfs/test/fixture"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

// handovers is how often QEMU and we take turns on one file.
const handovers = 10

// What QEMU wrote we go on writing, and the other way round, ten times on one
// file; a copy in a plain file is written beside it and compared at every turn.
// The disk with a dirty log has 10 GiB to compare, so that two turns are enough.
func TestQEMUAndWeTakeTurns(t *testing.T) {
	need.Fuse(t)
	need.Tool(t, "qemu-io")
	for _, tt := range []struct {
		name, format string
		turns        int
		make         func(t *testing.T, image string)
	}{
		{"new.vhdx", "vhdx", handovers, qemuImage("vhdx", "64M")},
		{"new.vhd", "vpc", handovers, qemuImage("vpc", "64M")},
		{"ours.vhdx", "vhdx", handovers, func(t *testing.T, p string) {
			require.NoError(t, fixture.VHDX{Size: 64 * mib, BlockSize: mib, Writes: []fixture.Write{noise(mib+512, 9*mib, 1)}}.WriteFile(p))
		}},
		{"ours.vhd", "vpc", handovers, func(t *testing.T, p string) {
			// In a file with data at multiples of 4 KiB, as Windows lays it out, a new
			// block of QEMU's shows the old footer as data: it expects that to be
			// directly behind the last block.
			require.NoError(t, fixture.VHD{Size: 64 * mib, Unaligned: true, Writes: []fixture.Write{noise(mib+512, 9*mib, 1)}}.WriteFile(p))
		}},
		{"dirty log.vhdx", "vhdx", 2, func(t *testing.T, p string) {
			mount.Tool(t, "cp", "--sparse=always", need.Corpus(t, "qemu_qemu/iotest-dirtylog-10G-4M.vhdx"), p)
			require.NoError(t, os.Chmod(p, 0o600))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			p := pair{image: filepath.Join(dir, tt.name), format: tt.format, plain: filepath.Join(t.TempDir(), "plain")}
			tt.make(t, p.image)
			p.start(t)
			rng := rand.New(rand.NewPCG(13, 13))
			for turn := range tt.turns {
				p.weWrite(t, rng, turn)
				p.qemuWrites(t, rng, turn)
			}
			mount.Check(t, p.image)
		})
	}
}

func qemuImage(format, size string) func(t *testing.T, image string) {
	return func(t *testing.T, image string) {
		mount.Tool(t, "qemu-img", "create", "-q", "-f", format, image, size)
	}
}

// pair is an image and a plain file that hold the same disk.
type pair struct {
	image, format, plain string
	size                 int64
}

// start makes the plain file of what QEMU reads; it replays a log on a copy.
func (p *pair) start(t *testing.T) {
	t.Helper()
	replayed := p.plain + ".copy"
	mount.Tool(t, "cp", "--sparse=always", p.image, replayed)
	mount.CheckQEMU(t, p.format, replayed, "-r", "all")
	mount.Tool(t, "qemu-img", "convert", "-f", p.format, "-O", "raw", replayed, p.plain)
	require.NoError(t, os.Remove(replayed))
	m := e2e.Start(t, filepath.Dir(p.image))
	p.size = size(t, m.Path(filepath.Base(p.image), "raw"))
	m.Stop(t)
	require.NoError(t, os.Truncate(p.plain, p.size)) // QEMU rounds a VHD up to its geometry
}

// weWrite compares, writes and punches through the mount, and compares again.
func (p *pair) weWrite(t *testing.T, rng *rand.Rand, turn int) {
	t.Helper()
	m := e2e.Start(t, filepath.Dir(p.image))
	raw := m.Path(filepath.Base(p.image), "raw")
	mount.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, p.plain)
	for i := range 8 {
		w := noise(rng.Int64N(p.size/512-256)*512, 512*(1+rng.Int64N(256)), uint64(turn*8+i))
		hole := [2]int64{rng.Int64N(p.size - 4*mib), 1 + rng.Int64N(4*mib)}
		for _, path := range []string{raw, p.plain} {
			with(t, path, func(f *os.File) {
				_, err := f.WriteAt(w.Data, w.Off)
				require.NoError(t, err)
				if i == 0 {
					require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, hole[0], hole[1]))
				}
			})
		}
	}
	mount.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, p.plain)
	m.Stop(t)
	mount.CheckQEMU(t, p.format, p.image)
	p.compare(t)
}

// qemuWrites lets qemu-io write patterns to the image.
func (p *pair) qemuWrites(t *testing.T, rng *rand.Rand, turn int) {
	t.Helper()
	script := []string{}
	for range 8 {
		write := fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), rng.Int64N(p.size/512-256)*512, 512*(1+rng.Int64N(256)))
		script = append(script, "-c", write)
	}
	script = append(script, "-c", "flush")
	mount.Tool(t, "qemu-io", append([]string{"-f", p.format, p.image}, script...)...)
	mount.Tool(t, "qemu-io", append([]string{"-f", "raw", p.plain}, script...)...)
	mount.Check(t, p.image)
	p.compare(t)
}

// compare lets QEMU compare; of a VHD it may see a longer disk with zeros behind.
func (p *pair) compare(t *testing.T) {
	t.Helper()
	mount.Tool(t, "qemu-img", "compare", "-f", p.format, "-F", "raw", p.image, p.plain)
}

// A differencing disk that was written through the mount reads the same in
// 7-Zip and libvhdi. libvhdi looks at neighbours' bits within a byte of a bitmap
// and takes blocks of zeros for the parent's: writes are whole pages, and none
// are zeros.
func TestDifferencingDisksInOtherReaders(t *testing.T) {
	need.Fuse(t)
	sevenZip, vhdimount := need.Tool(t, "7z"), need.Tool(t, "vhdimount")
	for _, k := range mount.Disks {
		if k.Parent() == "" {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			dir := t.TempDir()
			base := noise(mib, 9*mib, 2)
			k.Make(t, dir, []fixture.Write{base})
			want := make([]byte, k.Size)
			copy(want[base.Off:], base.Data)
			m := e2e.Start(t, dir)
			rng := rand.New(rand.NewPCG(17, 17))
			with(t, k.Raw(m), func(f *os.File) {
				for i := range 200 {
					w := noise(rng.Int64N(k.Size/4096-16)*4096, 4096*(1+rng.Int64N(16)), uint64(i))
					copy(want[w.Off:], w.Data)
					_, err := f.WriteAt(w.Data, w.Off)
					require.NoError(t, err)
				}
			})
			same(t, want, readAt(t, k.Raw(m), 0, k.Size))
			m.Stop(t)
			image := filepath.Join(dir, k.File)
			out, err := exec.Command(sevenZip, "e", "-so", "-t"+filepath.Ext(image)[1:], image).Output()
			require.NoError(t, err)
			same(t, want, out)

			mnt := t.TempDir()
			mount.Tool(t, vhdimount, image, mnt)
			t.Cleanup(func() { require.NoError(t, unix.Unmount(mnt, unix.MNT_DETACH)) })
			theirs := readAt(t, filepath.Join(mnt, "vhdi2"), 0, k.Size)
			same(t, want, theirs)
		})
	}
}
