// Package kill ends the daemon with SIGKILL under load, over and over, and looks
// at what every crash left.
//
// It proves, for the program as it is shipped: what an acknowledged fsync covered
// is there afterwards or something newer; every other sector is a value that was
// written to it, whole; the image has no error and takes the next load. The
// kernel's memory of the host files survives a kill: what it cannot prove is the
// order of writes, which package power and the simulated crashes do.
//
// A cycle is: mount, let four writers write, punch and flush, kill, check the
// image without a mount, mount, read every sector, go on. One cycle in ten kills
// from inside a system call: strace makes the k-th write, sync or change of size
// of a host file the daemon's last. At the end QEMU replays a copy of what the
// last kill left, and reads it, and 7-Zip reads it after one more load that ended
// in peace.
//
// VHDFS_KILLS is the number of cycles over all kinds of image, VHDFS_SEED makes
// the same choices again; when the kill comes is up to the clock.
package kill

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/budget"
	"vhdfs/test/e2e"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

func TestMain(m *testing.M) { os.Exit(mount.Main(m)) }

// kills is the number of cycles with every change.
const kills = 150

// longest a load runs before the kill: many flushes, and a log that wraps.
const longest = 200 * time.Millisecond

func TestKilledDaemonLosesNothingFlushed(t *testing.T) {
	need.Fuse(t)
	need.Tool(t, "strace")
	seed, total := mount.Seed(t), mount.Count(t, "VHDFS_KILLS", kills)
	done := budget.StartAt(t, "kill", seed, "kills", "fsyncs")
	for i, k := range mount.Kinds {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			n := total*(i+1)/len(mount.Kinds) - total*i/len(mount.Kinds)
			run(t, k, n, seed+uint64(i)<<32, done)
		})
	}
}

func run(t *testing.T, k mount.Kind, cycles int, seed uint64, done *budget.Run) {
	dir := t.TempDir()
	k.Make(t, dir, mount.Base(k.Size))
	var parent string
	if p := k.Parent(); p != "" {
		parent = e2e.SHA256(t, filepath.Join(dir, p))
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	j := mount.NewJournal(k.Size)
	m := e2e.Start(t, dir)
	inCalls := 0
	for n := range cycles {
		require.NoError(t, j.Judge(k.Raw(m)), "after %d kills of seed %d", n, seed)
		l, err := j.Load(k.Raw(m), rng.Uint64())
		require.NoError(t, err)
		if kill(t, m, l, rng) {
			inCalls++
		}
		_ = l.Stop() // the disk went away under them
		mount.Check(t, filepath.Join(dir, k.File))
		m = e2e.Start(t, dir)
	}
	require.NoError(t, j.Judge(k.Raw(m)), "after %d kills of seed %d", cycles, seed)
	k.JudgeQEMU(t, dir, j)
	unharmed(t, k, m, j, rng.Uint64())
	k.JudgeQEMU(t, dir, j)
	k.Judge7Zip(t, dir, j)
	if parent != "" {
		require.Equal(t, parent, e2e.SHA256(t, filepath.Join(dir, k.Parent())), "a write reached the parent")
	}
	t.Logf("%d kills, %d of them inside a system call: %v", cycles, inCalls, &j.Counts)
	done.Add("kills", cycles)
	done.Add("fsyncs", int(j.Counts.Flushes.Load()))
}

// unharmed loads the disk once more, in peace.
func unharmed(t *testing.T, k mount.Kind, m *e2e.Mount, j *mount.Journal, seed uint64) {
	t.Helper()
	l, err := j.Load(k.Raw(m), seed)
	require.NoError(t, err)
	time.Sleep(longest)
	require.NoError(t, l.Stop())
	require.NoError(t, j.Judge(k.Raw(m)))
	m.Stop(t)
	mount.Check(t, filepath.Join(m.Images, k.File))
}

// kill ends the daemon at a random instant. Nothing may have failed by then. It
// tells whether that was inside a system call.
func kill(t *testing.T, m *e2e.Mount, l *mount.Load, rng *rand.Rand) (inCall bool) {
	t.Helper()
	if rng.IntN(10) == 0 {
		return killInCall(t, m, rng)
	}
	time.Sleep(time.Duration(rng.Int64N(int64(longest))))
	require.NoError(t, l.Err(), "before the kill")
	m.Crash(t)
	return false
}

// killInCall lets one thread of the daemon die in its k-th write, sync or change
// of size of a host file; strace counts for each thread. Where the call is never
// made the kill comes from outside.
func killInCall(t *testing.T, m *e2e.Mount, rng *rand.Rand) bool {
	t.Helper()
	calls := []string{"pwrite64", "fdatasync", "ftruncate,fallocate"}
	call := calls[rng.IntN(len(calls))]
	cmd := exec.Command("strace", "-f", "-q", "-o", filepath.Join(t.TempDir(), "trace"), "-p", strconv.Itoa(m.Pid()),
		"-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, 1+rng.IntN(40)))
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended: // with the daemon
	case <-time.After(2 * time.Second): // strace may be killing it just now
		m.Crash(t)
		<-ended
		return false
	}
	m.Gone(t)
	return true
}
