package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// shared is a folder with a chain, disks without children, one of them partitioned,
// a set with a snapshot, and a VHD; mounted twice.
func shared(t *testing.T) (dir string, a, b *Mount) {
	t.Helper()
	dir = t.TempDir()
	chainOfTwo(t, dir)
	require.NoError(t, fixture.VHD{Size: 8 * mib}.WriteFile(filepath.Join(dir, "other.vhd")))
	for _, name := range []string{"disk.vhdx", "set.vhds"} {
		out, err := Command(t, dir, "create", name, "size=64M")
		require.NoError(t, err, out)
	}
	a, b = Start(t, dir), Start(t, dir)
	a.Shell(t, `mkdir set.vhds/snapshots/monday
		echo 'label: dos
		start=2048, size=8192, type=83' | sfdisk -q --no-reread --no-tell-kernel disk.vhdx/raw > /dev/null`)
	return dir, a, b
}

// answer writes a request to a control file, which answers an errno's symbol, "" for
// success.
func (m *Mount) answer(t *testing.T, control, request string) string {
	t.Helper()
	f, err := os.OpenFile(m.Path(control), os.O_RDWR, 0)
	require.NoError(t, err, control)
	defer f.Close()
	_, werr := f.WriteString(request)
	if control[strings.LastIndex(control, "/")+1:] == "settings.json" || strings.HasSuffix(control, "/info.json") {
		if werr == nil {
			return ""
		}
		var no unix.Errno
		require.ErrorAs(t, werr, &no)
		return unix.ErrnoName(no)
	}
	var answer struct{ Errno, Error string }
	require.NoError(t, json.NewDecoder(f).Decode(&answer), control)
	require.Equal(t, werr == nil, answer.Errno == "", "%s: %v", control, answer)
	if werr != nil {
		t.Logf("%s %s: %s", control, request, answer.Error)
	}
	return answer.Errno
}

// besideRow is a request with the errno that it gets while the other mount writes, and
// while it reads: "" for none.
type besideRow struct{ op, control, request, written, read string }

// besideAnother are the requests that a mount carries out, and those it refuses, while
// another one has the images open: for each operation of the table at least one.
var besideAnother = []besideRow{
	{"apply", "set.vhds/apply", "monday", "EBUSY", "EBUSY"},
	{"apply", "set.vhds/snapshots/monday/apply", "1", "EBUSY", "EBUSY"},
	{"attach", "disk.vhdx/attach", "device=none", "EBUSY", "EBUSY"},
	{"attach", "child.avhdx/attach", "device=none", "EBUSY", "EBUSY"},
	{"attach", "child.avhdx/attach", "device=none readonly=true", "EBUSY", ""},
	{"detach", "child.avhdx/detach", "1", "", ""},
	{"changes", "disk.vhdx/changes", "none", "EBUSY", "ENODATA"},
	{"check", "disk.vhdx/check", "1", "", ""},
	{"check", "child.avhdx/check", "1", "", ""},
	{"check", "set.vhds/check", "1", "", ""},
	{"check", "disk.vhdx/check", "repair=true", "EBUSY", "EBUSY"},
	{"check", "child.avhdx/check", "repair=true", "EBUSY", "EBUSY"},
	{"check", "set.vhds/check", "repair=true", "EBUSY", "EBUSY"},
	{"compact", "disk.vhdx/compact", "1", "EBUSY", "EBUSY"},
	{"compact", "child.avhdx/compact", "1", "EBUSY", "EBUSY"},
	{"compact", "base.vhdx/compact", "1", "EBUSY", "EBUSY"},
	{"compact", "set.vhds/compact", "1", "EBUSY", "EBUSY"},
	{"convert", "disk.vhdx/convert", "path=new-0.vhd", "EBUSY", ""},
	{"convert", "child.avhdx/convert", "path=new-1.vhdx", "EBUSY", ""},
	{"convert", "set.vhds/convert", "path=new-2.vhdx", "EBUSY", ""},
	{"convert-to-set", "disk.vhdx/convert-to-set", "1", "EBUSY", "EBUSY"},
	{"convert-to-set", "child.avhdx/convert-to-set", "1", "EBUSY", "EBUSY"},
	{"create", ".vhdfs/create", "path=new-4.vhdx source=disk.vhdx", "EBUSY", ""},
	{"create", ".vhdfs/create", "path=new-5.vhdx source=set.vhds", "EBUSY", ""},
	{"create-floppy", ".vhdfs/create-floppy", "path=new.vfd", "", ""},
	{"find", ".vhdfs/find", "disk.vhdx", "ENOENT", "ENOENT"},
	{"merge", "child.avhdx/merge", "1", "EBUSY", "EBUSY"},
	{"optimize", "set.vhds/optimize", "1", "EBUSY", "EBUSY"},
	{"request-state-change", ".vhdfs/request-state-change", "enabled", "", ""},
	{"resize", "disk.vhdx/resize", "128M", "EBUSY", "EBUSY"},
	{"resize", "child.avhdx/resize", "128M", "EBUSY", "EBUSY"},
	{"resize", "base.vhdx/resize", "128M", "EROFS", "EROFS"},
	{"resize", "set.vhds/resize", "128M", "EBUSY", "EBUSY"},
	{"set", "disk.vhdx/settings.json", `{"PhysicalSectorSize":512}`, "EBUSY", "EBUSY"},
	{"set", "base.vhdx/settings.json", `{"PhysicalSectorSize":512}`, "EBUSY", "EBUSY"},
	{"set-parent", "child.avhdx/set-parent", "base.vhdx", "EBUSY", "EBUSY"},
	{"set-snapshot", "set.vhds/set-snapshot", "monday label=tuesday", "EBUSY", "EBUSY"},
	{"set-snapshot", "set.vhds/snapshots/monday/info.json", `{"Label":"tuesday"}`, "EBUSY", "EBUSY"},
	{"snapshot", "set.vhds/snapshot", "tuesday", "EBUSY", "EBUSY"},
	{"start", ".vhdfs/start", "1", "", ""},
	{"stop", ".vhdfs/stop", "dryrun=true", "", ""},
	{"tracking", "disk.vhdx/tracking", "on", "EBUSY", "EBUSY"},
	{"tracking", "set.vhds/tracking", "on", "EBUSY", "EBUSY"},
	{"validate", "disk.vhdx/validate", "1", "", ""},
	{"validate", "child.avhdx/validate", "1", "", ""},
	{"validate", "set.vhds/validate", "1", "", ""},
	{"delete", "set.vhds/snapshots/monday/delete", "1", "EBUSY", "EBUSY"},
	{"delete", "set.vhds/delete", "monday", "EBUSY", "EBUSY"},
	{"validate-persistent-reservations", ".vhdfs/validate-persistent-reservations", "disk.vhdx", "EOPNOTSUPP", "EOPNOTSUPP"},
	// These make children, so they are the last ones.
	{"create", ".vhdfs/create", "path=new-3.avhdx parent=child.avhdx", "EBUSY", ""},
	{"snapshot", "disk.vhdx/snapshot", "1", "EBUSY", ""},
	{"snapshot", "child.avhdx/snapshot", "1", "EBUSY", ""},
}

// held are the images that the other mount has open meanwhile, one of them by way of
// its set.
var held = []string{"disk.vhdx", "child.avhdx", "set.vhds"}

// changesOfNames are requests that are made of names.
var changesOfNames = []struct {
	verb string
	do   func(m *Mount) error
}{
	{"mkdir", func(m *Mount) error { return os.Mkdir(m.Path("set.vhds", "snapshots", "tuesday"), 0o700) }},
	{"rmdir", func(m *Mount) error { return unix.Rmdir(m.Path("set.vhds", "snapshots", "monday")) }},
	{"mv", func(m *Mount) error {
		return unix.Rename(m.Path("set.vhds", "snapshots", "monday"), m.Path("set.vhds", "snapshots", "tuesday"))
	}},
	{"truncate", func(m *Mount) error { return os.Truncate(m.Path("disk.vhdx", "raw"), 128*mib) }},
}

// What one mount has open for writing the other one neither reads nor changes; what
// is known of it from its headers is answered all the same.
func TestTwoMountsOfOneFolder(t *testing.T) {
	_, a, b := shared(t)
	holdOpen(t, a, os.O_RDWR)
	requestsOf(t, b, func(r besideRow) string { return r.written })
	for _, image := range held {
		for _, flags := range []int{os.O_RDONLY, os.O_RDWR, os.O_WRONLY} {
			_, err := os.OpenFile(b.Path(image, "raw"), flags, 0)
			require.ErrorIs(t, err, unix.EBUSY, image)
		}
		_, err := os.ReadDir(b.Path(image, "partitions"))
		require.ErrorIs(t, err, unix.EBUSY, image)
	}
	answersAnyway(t, b)
	b.Shell(t, `cat base.vhdx/raw set.vhds/snapshots/monday/raw > /dev/null`) // parents are only read
}

// A reader in one mount keeps writers of the other one out, and changes; it reads
// beside readers.
func TestTwoMountsReadTogether(t *testing.T) {
	_, a, b := shared(t)
	holdOpen(t, a, os.O_RDONLY)
	requestsOf(t, b, func(r besideRow) string { return r.read })
	for _, image := range held {
		_, err := os.OpenFile(b.Path(image, "raw"), os.O_RDWR, 0)
		require.Error(t, err, image) // EBUSY, or EROFS with the children that it has by now
		f, err := os.Open(b.Path(image, "raw"))
		require.NoError(t, err, image)
		require.NoError(t, f.Close())
		_, err = os.ReadDir(b.Path(image, "partitions"))
		require.NoError(t, err, image)
	}
	answersAnyway(t, b)
}

// A snapshot that one mount reads is not deleted by the other one.
func TestTwoMountsAndASnapshot(t *testing.T) {
	_, a, b := shared(t)
	f, err := os.Open(a.Path("set.vhds", "snapshots", "monday", "raw"))
	require.NoError(t, err)
	require.Equal(t, "EBUSY", b.answer(t, "set.vhds/delete", "monday"))
	require.NoError(t, f.Close())
	a.Shell(t, `until [ "$(jq .OpenHandles set.vhds/state.json)" = 0 ]; do sleep 0.01; done`)
	require.Equal(t, "", b.answer(t, "set.vhds/delete", "monday"))
}

// holdOpen has the images open until the test ends, with something written where they
// are open for that.
func holdOpen(t *testing.T, m *Mount, flags int) {
	t.Helper()
	for _, image := range held {
		f, err := os.OpenFile(m.Path(image, "raw"), flags, 0)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, f.Close()) })
		if flags == os.O_RDONLY {
			continue
		}
		_, err = f.WriteAt([]byte("of the first mount"), 1000)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
	}
}

// requestsOf makes every request of a mount: each operation of the table has a row.
func requestsOf(t *testing.T, m *Mount, want func(besideRow) string) {
	t.Helper()
	for _, o := range ops.All {
		require.True(t, slices.ContainsFunc(besideAnother, func(r besideRow) bool { return r.op == o.Name }), "no row of %s", o.Name)
	}
	for _, c := range changesOfNames {
		require.ErrorIs(t, c.do(m), unix.EBUSY, c.verb)
	}
	for _, r := range besideAnother {
		require.Equal(t, want(r), m.answer(t, r.control, r.request), "%s %s", r.control, r.request)
	}
	for _, r := range besideAnother { // nothing is left of what was refused
		if _, path, found := strings.Cut(r.request, "path="); found && want(r) != "" {
			require.NoFileExists(t, filepath.Join(m.Images, strings.Fields(path)[0]))
		}
	}
}

// answersAnyway reads what is answered of an image whoever has it open.
func answersAnyway(t *testing.T, m *Mount) {
	t.Helper()
	docs := []string{"set.vhds/set.json", "set.vhds/snapshots/monday/info.json", ".vhdfs/graph.json"}
	for _, image := range held {
		for _, doc := range []string{"settings.json", "state.json", "chain.json", "map.json", "partitions.json"} {
			docs = append(docs, image+"/"+doc)
		}
	}
	for _, doc := range docs {
		var v any
		decode(t, m.Path(doc), &v)
	}
	out, err := Command(t, m.Images, "ls", m.Dir)
	require.NoError(t, err, out)
	for _, image := range held {
		require.Contains(t, out, image)
		m.Shell(t, "ls -l . "+image+" > /dev/null")
	}
	// Others go on.
	m.Shell(t, "cat other.vhd/raw > /dev/null; echo 1 > other.vhd/check")
}

// What one mount wrote the other one reads, whichever had it cached before.
func TestTwoMountsSeeOneAnothersWrites(t *testing.T) {
	_, a, b := shared(t)
	for i := range 4 {
		writer, reader := a, b
		if i%2 == 1 {
			writer, reader = b, a
		}
		for _, image := range []string{"child.avhdx", "disk.vhdx", "other.vhd"} {
			text := []byte(strings.Repeat(string(rune('a'+i)), 5000))
			f, err := os.OpenFile(writer.Path(image, "raw"), os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(text, 3<<20)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			got := make([]byte, len(text))
			var open error
			f = nil
			require.Eventually(t, func() bool { // its RELEASE comes after close
				f, open = os.Open(reader.Path(image, "raw"))
				return open == nil
			}, patience, 1000)
			_, err = f.ReadAt(got, 3<<20)
			require.NoError(t, err)
			require.Equal(t, string(text), string(got), "%s, round %d", image, i)
			require.NoError(t, f.Close())
		}
		// Sizes and partitions as well.
		size := string(rune('1'+i)) + "00M"
		require.Equal(t, "", writer.answer(t, "disk.vhdx/resize", size))
		st, err := os.Stat(reader.Path("disk.vhdx", "raw"))
		require.NoError(t, err)
		require.EqualValues(t, int64(i+1)*100<<20, st.Size())
		entries, err := os.ReadDir(reader.Path("disk.vhdx", "partitions"))
		require.NoError(t, err)
		require.Len(t, entries, 1)
	}
}

// A job of one mount keeps the other one from its image.
func TestTwoMountsAndAJob(t *testing.T) {
	dir := t.TempDir()
	bigDisk(t, dir)
	a, b := Start(t, dir), Start(t, dir)
	cmd := begun(t, a, "bash", "-c", "echo path=n.raw > big.vhd/convert")
	require.Equal(t, "EBUSY", b.answer(t, "big.vhd/check", "repair=true"))
	require.Equal(t, "EBUSY", b.answer(t, "big.vhd/resize", "2G"))
	_, err := os.OpenFile(b.Path("big.vhd", "raw"), os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EBUSY)
	require.Equal(t, "EEXIST", func() string { // the name is not taken before the end, but is then
		require.NoError(t, cmd.Wait())
		return b.answer(t, "big.vhd/convert", "path=n.raw")
	}())
}
