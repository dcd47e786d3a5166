package kill

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/budget"
	"vhdfs/test/e2e"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

// optimizes is the number of cycles of optimize with every change.
const optimizes = 10

const (
	lifeSet = "d.vhds"
	// lifeSize is that of the set's disk, in bytes.
	lifeSize = 16 << 20
	// keptSnapshots is how many snapshots stay at most.
	keptSnapshots = 4
)

// life is a set whose disk is loaded while snapshots come and go.
type life struct {
	*testing.T
	dir  string
	j    *mount.Journal
	rng  *rand.Rand
	made int
	sums map[string][32]byte // of snapshots, by label
	list []string            // labels, the oldest first
}

// Snapshots of a set are taken and deleted while its disk is written, and the daemon
// is killed at a random moment of the optimize that follows: what an fsync covered is
// there, snapshots read as before, and asked again optimize ends what it began.
func TestKilledInOptimize(t *testing.T) {
	need.Fuse(t)
	seed, total := mount.Seed(t), mount.Count(t, "VHDFS_OPTIMIZES", optimizes)
	sum := budget.StartAt(t, "optimizes killed", seed, "optimizes", "broken", "fsyncs")
	l := &life{T: t, dir: t.TempDir(), j: mount.NewJournal(lifeSize), rng: rand.New(rand.NewPCG(seed, 5)), sums: map[string][32]byte{}}
	out, err := e2e.Command(t, l.dir, "create", lifeSet, fmt.Sprintf("size=%d", lifeSize), "block=1M")
	require.NoError(t, err, out)
	l.fill()
	broken := 0
	for n := range total {
		l.optimizeAndKill()
		if l.resume() {
			broken++
		}
		if t.Failed() {
			t.Fatalf("after %d optimizes of seed %d", n+1, seed)
		}
	}
	l.takeApart()
	t.Logf("%d optimizes, %d broken off in a merge: %v", total, broken, &l.j.Counts)
	sum.Add("optimizes", total)
	sum.Add("broken", broken)
	sum.Add("fsyncs", int(l.j.Counts.Flushes.Load()))
}

// fill stores what the journal takes a disk to hold in the beginning.
func (l *life) fill() {
	l.Helper()
	m := e2e.Start(l.T, l.dir)
	f, err := os.OpenFile(l.raw(m), os.O_WRONLY, 0)
	require.NoError(l, err)
	for _, w := range mount.Base(lifeSize) {
		_, err := f.WriteAt(w.Data, w.Off)
		require.NoError(l, err)
	}
	require.NoError(l, errors.Join(f.Sync(), f.Close()))
	m.Stop(l.T)
}

func (l *life) raw(m *e2e.Mount) string { return m.Path(lifeSet, "raw") }

// read is the sum of a snapshot's bytes.
func (l *life) read(m *e2e.Mount, label string) (sum [32]byte) {
	l.Helper()
	f, err := os.Open(m.Path(lifeSet, "snapshots", label, "raw"))
	require.NoError(l, err)
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(l, errors.Join(err, f.Close()))
	return [32]byte(h.Sum(nil))
}

// optimizeAndKill takes snapshots under load, deletes some, and kills the daemon at
// some moment of an optimize.
func (l *life) optimizeAndKill() {
	l.Helper()
	m := e2e.Start(l.T, l.dir)
	load, err := l.j.Load(l.raw(m), l.rng.Uint64())
	require.NoError(l, err)
	for range 3 {
		time.Sleep(longest / 4)
		l.made++
		label := fmt.Sprintf("s%d", l.made)
		require.NoError(l, os.Mkdir(m.Path(lifeSet, "snapshots", label), 0o700))
		l.sums[label] = l.read(m, label)
		l.list = append(l.list, label)
	}
	for len(l.list) > keptSnapshots || l.rng.IntN(2) == 0 && len(l.list) > 1 {
		i := l.rng.IntN(len(l.list))
		require.NoError(l, os.Remove(m.Path(lifeSet, "snapshots", l.list[i])))
		delete(l.sums, l.list[i])
		l.list = append(l.list[:i], l.list[i+1:]...)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.optimize(m) }()
	select {
	case err := <-ended:
		require.NoError(l, err)
		ended <- nil
	case <-time.After(time.Duration(l.rng.Int64N(int64(2 * longest)))):
	}
	require.NoError(l, load.Err(), "before the kill")
	m.Crash(l.T)
	_ = load.Stop() // the disk went away under them
	<-ended
}

func (l *life) optimize(m *e2e.Mount) error {
	return os.WriteFile(m.Path(lifeSet, "optimize"), []byte("1"), 0)
}

// resume judges the set as the kill left it, optimizes, and judges it again. It tells
// whether a merge had been broken off.
func (l *life) resume() bool {
	l.Helper()
	m := e2e.Start(l.T, l.dir)
	pending := l.pending(m)
	require.True(l, !pending || l.needed(m), "a merge is pending")
	l.judge(m, "as the kill left it")
	require.NoError(l, l.optimize(m))
	require.False(l, l.needed(m))
	require.False(l, l.pending(m))
	l.judge(m, "after optimize")
	m.Stop(l.T)
	out, err := e2e.Command(l.T, l.dir, "check", lifeSet)
	require.NoError(l, err, out)
	return pending
}

// pending tells whether any disk of the set says that a merge is.
func (l *life) pending(m *e2e.Mount) bool {
	l.Helper()
	files, err := filepath.Glob(filepath.Join(l.dir, "*.avhdx"))
	require.NoError(l, err)
	for _, f := range files {
		var state struct{ PendingMerge *struct{ Error string } }
		l.document(m.Path(filepath.Base(f), "state.json"), &state)
		if state.PendingMerge != nil {
			require.Empty(l, state.PendingMerge.Error)
			return true
		}
	}
	return false
}

func (l *life) needed(m *e2e.Mount) bool {
	l.Helper()
	var set struct{ OptimizeNeeded bool }
	l.document(m.Path(lifeSet, "set.json"), &set)
	return set.OptimizeNeeded
}

func (l *life) document(file string, into any) {
	l.Helper()
	b, err := os.ReadFile(file)
	require.NoError(l, err)
	require.NoError(l, json.Unmarshal(b, into))
}

func (l *life) judge(m *e2e.Mount, when string) {
	l.Helper()
	require.NoError(l, l.j.Judge(l.raw(m)), when)
	for label, want := range l.sums {
		require.Equal(l, want, l.read(m, label), "%s, %s", label, when)
	}
}

// takeApart deletes every snapshot: one disk is left.
func (l *life) takeApart() {
	l.Helper()
	m := e2e.Start(l.T, l.dir)
	for _, label := range l.list {
		require.NoError(l, os.Remove(m.Path(lifeSet, "snapshots", label)))
	}
	l.sums = nil
	require.NoError(l, l.optimize(m))
	l.judge(m, "taken apart")
	m.Stop(l.T)
	files, err := filepath.Glob(filepath.Join(l.dir, "*.avhdx"))
	require.NoError(l, err)
	require.Len(l, files, 1)
}
