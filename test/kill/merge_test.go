package kill

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

// merges is the number of cycles of merges with every change.
const merges = 30

// line is a chain of five whose leaf is loaded: names of images, the base first.
type line struct {
	*testing.T
	dir, ext string
	j        *mount.Journal
	names    []string
	made     int
	rng      *rand.Rand
}

// A chain of five is merged, from the leaf or from the middle, while its leaf is
// written all the time, and the daemon is killed at random instants: what an fsync
// covered is there, the merge goes on, and the disk reads as before.
func TestKilledInMerge(t *testing.T) {
	need.Fuse(t)
	seed, total := mount.Seed(t), mount.Count(t, "VHDFS_MERGES", merges)
	sum := budget.StartAt(t, "merges killed", seed, "merges", "resumed", "fsyncs")
	for i, k := range []mount.Kind{mount.Disks[2], mount.Disks[5]} {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			k.Make(t, dir, mount.Base(k.Size))
			l := &line{T: t, dir: dir, ext: filepath.Ext(k.File), j: mount.NewJournal(k.Size), rng: rand.New(rand.NewPCG(seed, uint64(i)))}
			l.names = []string{k.Parent(), k.File}
			done, resumed := 0, 0
			for n := range total / 2 {
				l.grow()
				w, over := l.mergeAndKill()
				if over {
					done++
				}
				if l.resume(w) {
					resumed++
				}
				if t.Failed() {
					t.Fatalf("after %d merges of seed %d", n+1, seed)
				}
			}
			t.Logf("%d merges, %d done before the kill, %d resumed: %v", total/2, done, resumed, &l.j.Counts)
			sum.Add("merges", total/2)
			sum.Add("resumed", resumed)
			sum.Add("fsyncs", int(l.j.Counts.Flushes.Load()))
			l.settle()
			k.File = l.leaf()
			k.Judge7Zip(t, dir, l.j)
		})
	}
}

func (l *line) leaf() string { return l.names[len(l.names)-1] }

func (l *line) raw(m *e2e.Mount, name string) string { return m.Path(name, "raw") }

// grow makes the chain five long, each image with something of its own.
func (l *line) grow() {
	l.Helper()
	for len(l.names) < 5 {
		l.made++
		name := fmt.Sprintf("layer%d%s", l.made, l.ext)
		out, err := e2e.Command(l.T, l.dir, "create", name, "parent="+l.leaf())
		require.NoError(l, err, out)
		l.names = append(l.names, name)
		l.write(name)
	}
}

// settle merges the whole chain in peace and makes another: kills leave logs, also
// in disks that became parents since, and 7-Zip refuses those.
func (l *line) settle() {
	l.Helper()
	if len(l.names) > 1 {
		out, err := e2e.Command(l.T, l.dir, "merge", l.leaf(), "into="+l.names[0])
		require.NoError(l, err, out)
		l.names = l.names[:1]
	}
	l.write(l.leaf())
	l.grow()
}

// write loads an image in peace, and closes it.
func (l *line) write(name string) {
	l.Helper()
	m := e2e.Start(l.T, l.dir)
	load, err := l.j.Load(l.raw(m, name), l.rng.Uint64())
	require.NoError(l, err)
	time.Sleep(longest / 4)
	require.NoError(l, load.Stop())
	m.Stop(l.T)
}

// merging is what was asked for: indexes of names.
type merging struct{ source, dest int }

// mergeAndKill loads the leaf, merges it or an image below it, and kills the
// daemon at some moment. It tells whether the merge was over by then.
func (l *line) mergeAndKill() (merging, bool) {
	l.Helper()
	m := e2e.Start(l.T, l.dir)
	load, err := l.j.Load(l.raw(m, l.leaf()), l.rng.Uint64())
	require.NoError(l, err)
	last := len(l.names) - 1
	w := merging{source: 1 + l.rng.IntN(last)}
	if l.rng.IntN(2) == 0 {
		w.source = last
	}
	w.dest = l.rng.IntN(w.source)
	merged := make(chan error, 1)
	go func() { merged <- l.ask(m, l.names[w.source], "into="+l.names[w.dest]) }()
	over := false
	select {
	case err := <-merged:
		require.NoError(l, err)
		over = true
	case <-time.After(time.Duration(l.rng.Int64N(int64(3 * longest)))):
	}
	if over {
		time.Sleep(time.Duration(l.rng.Int64N(int64(longest / 2))))
	}
	require.NoError(l, load.Err(), "before the kill")
	m.Crash(l.T)
	_ = load.Stop() // the disk went away under them
	if !over {
		over = <-merged == nil
	}
	return w, over
}

// ask writes a request to the control file; its error holds the answer.
func (l *line) ask(m *e2e.Mount, image, request string) error {
	f, err := os.OpenFile(m.Path(image, "merge"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(request)
	if err != nil {
		answer, _ := io.ReadAll(f) // none from a daemon that is gone
		err = fmt.Errorf("%w: %s", err, answer)
	}
	return errors.Join(err, f.Close())
}

func (l *line) exists(name string) bool {
	_, err := os.Stat(filepath.Join(l.dir, name))
	return err == nil
}

// pending tells whether any image says that a merge is.
func (l *line) pending(m *e2e.Mount) bool {
	l.Helper()
	for _, name := range l.names {
		if !l.exists(name) {
			continue
		}
		var state struct{ PendingMerge *struct{ Error string } }
		b, err := os.ReadFile(m.Path(name, "state.json"))
		require.NoError(l, err)
		require.NoError(l, json.Unmarshal(b, &state))
		if state.PendingMerge != nil {
			require.Empty(l, state.PendingMerge.Error)
			return true
		}
	}
	return false
}

// resume judges the disk as the kill left it, goes on with the merge if one is
// pending, and judges it again. It tells whether one was.
func (l *line) resume(w merging) bool {
	l.Helper()
	m := e2e.Start(l.T, l.dir)
	disk, pending := l.leaf(), l.pending(m)
	if f, err := os.Open(l.raw(m, disk)); err == nil {
		require.NoError(l, f.Close())
	} else {
		require.Equal(l, len(l.names)-1, w.source, "a leaf that is not merged does not open: %v", err)
		disk = l.names[w.dest]
	}
	require.NoError(l, l.j.Judge(l.raw(m, disk)), "as the kill left it")
	if pending {
		for i := w.source; i > w.dest; i-- {
			if l.exists(l.names[i]) {
				require.NoError(l, l.ask(m, l.names[i], "1"))
				break
			}
		}
	}
	if pending || !l.exists(l.names[w.source]) {
		l.names = slices.Delete(l.names, w.dest+1, w.source+1)
	}
	for _, name := range l.names {
		require.True(l, l.exists(name), name)
	}
	require.NoError(l, l.j.Judge(l.raw(m, l.leaf())), "after the merge")
	m.Stop(l.T)
	l.check()
	return pending
}

// check asks for errors in the chain. That a VHD's parent was changed since it was
// recorded is a warning, which stays when the parent got another parent.
func (l *line) check() {
	l.Helper()
	out, _ := e2e.Command(l.T, l.dir, "check", "--json", l.leaf()) // the exit code tells of warnings
	var report struct{ Images []struct{ Errors int } }
	require.NoError(l, json.NewDecoder(strings.NewReader(out)).Decode(&report), out)
	require.Len(l, report.Images, len(l.names))
	for _, im := range report.Images {
		require.Zero(l, im.Errors, out)
	}
}
