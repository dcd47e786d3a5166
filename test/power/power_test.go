// Package power cuts the power under a loaded daemon, over and over, and looks
// at what is left when it comes back.
//
// The images lie in a file system of their own, ext4 or xfs, on a loop device.
// The cut is the file system's shutdown ioctl without a flush of its journal:
// what had reached the device stays, everything else is gone, as in a real power
// cut, the kernel's memory of the host files included. So this proves that vhdfs
// asks the host for every sync that it needs, in the right order, with the
// journalling that people really have: of an ext4 as it comes, of one that
// commits every second, of one that hardly ever does, and of an xfs.
//
// A cycle is: mount the file system, mount the images, let four writers load
// each of two images, cut, kill the daemon, unmount, mount (the journal is
// replayed), check both images without a mount, mount, read every sector.
//
// VHDFS_CUTS is the number of cuts, VHDFS_SEED makes the same choices again;
// when the cut comes is up to the clock.
package power

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/budget"
	"vhdfs/test/e2e"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

func TestMain(m *testing.M) { os.Exit(mount.Main(m)) }

// cuts is the number with every change.
const cuts = 60

// longest a load runs before the cut. Commits of the journal and of ours have
// to meet in every order.
const longest = 300 * time.Millisecond

// hosts are the file systems below the images.
var hosts = []struct{ name, kind, opts string }{
	{"ext4", "ext4", ""},
	{"ext4 commit=1", "ext4", "data=ordered,commit=1"},
	{"ext4 commit=1000", "ext4", "commit=1000"},
	{"xfs", "xfs", ""},
}

func TestPowerCutLosesNothingFlushed(t *testing.T) {
	need.Fuse(t)
	need.Loop(t)
	seed, total := mount.Seed(t), mount.Count(t, "VHDFS_CUTS", cuts)
	done := budget.StartAt(t, "power", seed, "cuts", "fsyncs")
	for i, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			n := total*(i+1)/len(hosts) - total*i/len(hosts)
			p := newPlant(t, h.kind, h.opts)
			p.run(t, n, seed+uint64(i)<<32, done)
		})
	}
}

// plant is a host file system with one image of each kind.
type plant struct {
	host     *mount.FS
	images   string
	journals []*mount.Journal // of mount.Kinds
	parents  map[string]string
}

func newPlant(t *testing.T, kind, opts string) *plant {
	t.Helper()
	top := t.TempDir()
	device, dir := filepath.Join(top, "device"), filepath.Join(top, "host")
	require.NoError(t, os.WriteFile(device, nil, 0o600))
	require.NoError(t, os.Truncate(device, 640<<20)) // xfs wants 300 MB
	require.NoError(t, os.Mkdir(dir, 0o700))
	mount.Tool(t, "mkfs."+kind, "-q", device)
	p := &plant{host: mount.MountFS(t, mount.Loop(t, device), dir, kind, opts), images: filepath.Join(dir, "images"), parents: map[string]string{}}
	require.NoError(t, os.Mkdir(p.images, 0o700))
	for _, k := range mount.Kinds {
		k.Make(t, p.images, mount.Base(k.Size))
		p.journals = append(p.journals, mount.NewJournal(k.Size))
		if name := k.Parent(); name != "" {
			p.parents[name] = e2e.SHA256(t, filepath.Join(p.images, name))
		}
	}
	p.sync(t)
	return p
}

// sync makes all of the host's files durable; their making is not under test.
func (p *plant) sync(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(p.images, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Syncfs(fd))
	require.NoError(t, unix.Close(fd))
}

func (p *plant) run(t *testing.T, cycles int, seed uint64, done *budget.Run) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for n := range cycles {
		// Every kind takes its turn, in pairs that change.
		pair := []int{n % len(mount.Kinds), (n + 1 + n/len(mount.Kinds)%(len(mount.Kinds)-1)) % len(mount.Kinds)}
		p.cycle(t, pair, rng)
		m := e2e.Start(t, p.images)
		for _, i := range pair {
			k := mount.Kinds[i]
			require.NoError(t, p.journals[i].Judge(k.Raw(m)), "%s after cut %d of seed %d", k.Name, n+1, seed)
		}
		m.Stop(t)
	}
	var sum mount.Counts
	for i, k := range mount.Kinds {
		mount.Check(t, filepath.Join(p.images, k.File))
		k.JudgeQEMU(t, p.images, p.journals[i])
		sum.Add(&p.journals[i].Counts)
	}
	for name, sum := range p.parents {
		require.Equal(t, sum, e2e.SHA256(t, filepath.Join(p.images, name)), "a write reached %s", name)
	}
	t.Logf("%d cuts: %v", cycles, &sum)
	done.Add("cuts", cycles)
	done.Add("fsyncs", int(sum.Flushes.Load()))
}

// cycle loads a pair of images, cuts the power at a random instant and brings
// the host back.
func (p *plant) cycle(t *testing.T, pair []int, rng *rand.Rand) {
	t.Helper()
	m := e2e.Start(t, p.images)
	var loads []*mount.Load
	for _, i := range pair {
		l, err := p.journals[i].Load(mount.Kinds[i].Raw(m), rng.Uint64())
		require.NoError(t, err)
		loads = append(loads, l)
	}
	time.Sleep(time.Duration(rng.Int64N(int64(longest))))
	for i, l := range loads {
		require.NoError(t, l.Err(), "before the cut")
		p.journals[pair[i]].Seal()
	}
	p.host.Cut(t)
	m.Abort(t) // cut off first: killed alone it may wait for answers to its own notifications
	for _, l := range loads {
		_ = l.Stop() // the disk went away under it
	}
	p.host.Unmount(t)
	p.host.Mount(t)
	for _, i := range pair {
		mount.Check(t, filepath.Join(p.images, mount.Kinds[i].File))
	}
}
