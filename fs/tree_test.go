package fs

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

const mib = 1 << 20

// flatFile makes an image of the flat format with text at its start.
func flatFile(t *testing.T, name, text string, size int64) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
	require.NoError(t, os.Truncate(name, size))
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestTree(t *testing.T) {
	m := serve(t, terms{}, func(dir string) {
		require.NoError(t, fixture.VHDX{Size: 4 * mib}.WriteFile(filepath.Join(dir, "a.vhdx")))
		flatFile(t, filepath.Join(dir, "sub", "b.flat"), "b", mib)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o644))
		require.NoError(t, os.Mkdir(filepath.Join(dir, ".vhdfs-state"), 0o755))
	})
	require.Equal(t, []string{".vhdfs", "a.vhdx", "sub"}, list(t, m.mnt))
	require.Equal(t, []string{"b.flat"}, list(t, m.path("sub")))
	require.Equal(t, []string{"attach", "caches", "chain.json", "changes", "check", "compact", "convert", "convert-to-set", "detach", "fault", "hold", "long", "map.json", "panic", "partitions", "partitions.json",
		"raw", "resize", "settings.json", "slow", "snapshot", "stall", "state.json", "tracking", "validate"}, list(t, m.path("a.vhdx")))
	require.Equal(t, []string{"create", "create-floppy", "find", "help", "jobs", "log", "metrics", "mounted",
		"request-state-change", "start", "stop", "validate-persistent-reservations"}, list(t, m.path(".vhdfs")))
	help := []string{"fault", "hold", "slow", "long", "panic", "caches", "stall"}
	for _, op := range ops.All {
		help = append(help, op.Name)
	}
	require.ElementsMatch(t, help, list(t, m.path(".vhdfs", "help")))
	for _, hidden := range []string{"notes.txt", ".vhdfs-state", "sub/nothing.flat", "a.vhdx/nothing", "a.vhdx/partitions/p1"} {
		_, err := os.Stat(m.path(hidden))
		require.ErrorIs(t, err, os.ErrNotExist, hidden)
	}
}

func TestNamesAreNeverStale(t *testing.T) {
	m := serve(t, terms{}, func(dir string) { flatFile(t, filepath.Join(dir, "a.flat"), "a", mib) })
	require.FileExists(t, m.path("a.flat", "raw"))
	_, err := os.Stat(m.path("new.flat"))
	require.ErrorIs(t, err, os.ErrNotExist)

	flatFile(t, m.image("new.flat"), "new", 2*mib)
	st, err := os.Stat(m.path("new.flat", "raw"))
	require.NoError(t, err)
	require.Equal(t, int64(2*mib), st.Size())
	require.Contains(t, list(t, m.mnt), "new.flat")

	require.NoError(t, os.Rename(m.image("a.flat"), m.image("b.flat")))
	_, err = os.Stat(m.path("a.flat"))
	require.ErrorIs(t, err, os.ErrNotExist)
	b, err := os.ReadFile(m.path("b.flat", "raw")) // its node is the one that was a.flat's
	require.NoError(t, err)
	require.Equal(t, "a", string(b[:1]))

	// One of two names goes.
	require.NoError(t, os.Link(m.image("b.flat"), m.image("hard.flat")))
	require.FileExists(t, m.path("hard.flat", "raw"))
	require.FileExists(t, m.path("b.flat", "raw"))
	require.NoError(t, os.Remove(m.image("b.flat")))
	_, err = os.ReadFile(m.path("hard.flat", "raw"))
	require.NoError(t, err)
	require.NoError(t, os.Rename(m.image("hard.flat"), m.image("b.flat")))

	// Another file under a known name.
	flatFile(t, m.image("other"), "other", 3*mib)
	require.NoError(t, os.Rename(m.image("other"), m.image("b.flat")))
	b = make([]byte, 5)
	f, err := os.Open(m.path("b.flat", "raw"))
	require.NoError(t, err)
	defer f.Close()
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, "other", string(b))

	require.NoError(t, os.Remove(m.image("new.flat")))
	_, err = os.Stat(m.path("new.flat"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NotContains(t, list(t, m.mnt), "new.flat")

	require.NoError(t, os.Mkdir(m.image("new.flat"), 0o755)) // a folder with an image's name
	require.Empty(t, list(t, m.path("new.flat")))
}

func TestListingOpensNoImage(t *testing.T) {
	m := serve(t, terms{}, func(dir string) {
		for _, n := range []string{"a", "b", "c"} {
			flatFile(t, filepath.Join(dir, n+".flat"), n, mib)
		}
		flatFile(t, filepath.Join(dir, "x", "knob.flat"), "", mib)
	})
	out, err := exec.Command("ls", "-la", m.mnt).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "c.flat")
	require.Zero(t, m.count(t, "x/knob.flat", "Opens")-1, "only the image with the knob was opened")
}

// count asks the test's own operation for one of its numbers.
func (m *mounted) count(t *testing.T, image, name string) int {
	t.Helper()
	a := m.do(t, image, "fault", "0")
	n, ok := a[name].(float64)
	require.True(t, ok, "%v", a)
	return int(n)
}

// do writes a request to a control file and gives its answer.
func (m *mounted) do(t *testing.T, image, op, text string) map[string]any {
	t.Helper()
	f, err := os.OpenFile(m.path(image, op), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString(text)
	require.NoError(t, err)
	var a map[string]any
	require.NoError(t, json.NewDecoder(f).Decode(&a))
	return a
}

// What a recursive delete asks for is refused, and nothing is gone afterwards:
// go-fuse answers success for an Unlink or Rmdir that a node does not have, and
// drops the name.
func TestNothingCanBeRemoved(t *testing.T) {
	m := serve(t, terms{}, func(dir string) {
		require.NoError(t, fixture.VHDX{Size: 4 * mib}.WriteFile(filepath.Join(dir, "sub", "a.vhdx")))
	})
	before := append(list(t, m.path("sub", "a.vhdx")), list(t, m.path(".vhdfs"))...)
	for what, err := range map[string]error{
		"rm -r":            os.RemoveAll(m.path("sub")),
		"unlink raw":       unix.Unlink(m.path("sub/a.vhdx/raw")),
		"unlink control":   unix.Unlink(m.path("sub/a.vhdx/validate")),
		"unlink service":   unix.Unlink(m.path(".vhdfs/log")),
		"rmdir image":      unix.Rmdir(m.path("sub/a.vhdx")),
		"rmdir partitions": unix.Rmdir(m.path("sub/a.vhdx/partitions")),
		"rmdir folder":     unix.Rmdir(m.path("sub")),
		"rmdir service":    unix.Rmdir(m.path(".vhdfs")),
		"mkdir":            unix.Mkdir(m.path("sub/a.vhdx/x"), 0o755),
		"rename image":     unix.Rename(m.path("sub/a.vhdx"), m.path("b.vhdx")),
		"rename raw":       unix.Rename(m.path("sub/a.vhdx/raw"), m.path("sub/a.vhdx/old")),
		"create":           unix.Mknod(m.path("sub/x"), unix.S_IFREG|0o644, 0),
		"open to create":   creat(m.path("sub/a.vhdx/x")),
		"symlink":          unix.Symlink("x", m.path("sub/x")),
		"link":             unix.Link(m.path("sub/a.vhdx/raw"), m.path("sub/a.vhdx/y")),
		"chmod":            unix.Chmod(m.path("sub/a.vhdx/raw"), 0o600),
		"chown":            unix.Chown(m.path("sub/a.vhdx/raw"), 1, 1),
		"chmod of folder":  unix.Chmod(m.path("sub"), 0o700),
	} {
		require.ErrorIs(t, err, syscall.EPERM, what)
	}
	require.Equal(t, before, append(list(t, m.path("sub", "a.vhdx")), list(t, m.path(".vhdfs"))...))
	require.FileExists(t, m.image("sub", "a.vhdx"))
	require.NoError(t, os.Chtimes(m.path("sub", "a.vhdx", "raw"), time.Now(), time.Unix(1, 0)), "times are accepted and ignored")
	st, err := os.Stat(m.image("sub", "a.vhdx"))
	require.NoError(t, err)
	require.NotEqual(t, int64(1), st.ModTime().Unix())
}

func creat(name string) error {
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func TestSingleImage(t *testing.T) {
	m := serve(t, terms{Single: "b.flat"}, func(dir string) {
		flatFile(t, filepath.Join(dir, "a.flat"), "a", mib)
		flatFile(t, filepath.Join(dir, "b.flat"), "b", mib)
	})
	require.Equal(t, []string{".vhdfs", "b.flat"}, list(t, m.mnt))
	require.FileExists(t, m.path("b.flat", "raw"))
	_, err := os.Stat(m.path("a.flat"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestBrokenImage(t *testing.T) {
	m := serve(t, terms{}, func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "bad.vhdx"), []byte("vhdxfile"+strings.Repeat("x", 1<<20)), 0o644))
		child := fixture.VHDX{Size: 4 * mib, Parent: &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", "{12345678-1234-1234-1234-123456789abc}"}, {"relative_path", `.\gone.vhdx`}}}}
		require.NoError(t, child.WriteFile(filepath.Join(dir, "child.vhdx")))
	})
	for _, tt := range []struct {
		image string
		want  syscall.Errno
	}{{"bad.vhdx", syscall.EUCLEAN}, {"child.vhdx", syscall.ENOLINK}} {
		t.Run(tt.image, func(t *testing.T) {
			got := list(t, m.path(tt.image))
			for _, name := range []string{"raw", "state.json", "chain.json", "validate", "check"} {
				require.Contains(t, got, name)
			}
			_, err := os.Open(m.path(tt.image, "raw"))
			require.ErrorIs(t, err, tt.want)
			for _, name := range []string{"state.json", "chain.json"} {
				b, err := os.ReadFile(m.path(tt.image, name))
				require.NoError(t, err)
				require.True(t, json.Valid(b), "%s", b)
			}
		})
	}
	target, err := os.Readlink(m.path("child.vhdx", "parent"))
	require.NoError(t, err)
	require.Equal(t, "../gone.vhdx", target)
	_, err = os.Stat(m.path("child.vhdx", "parent"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestParentLink(t *testing.T) {
	id := [16]byte{1, 2, 3}
	setup := func(dir string) {
		base := fixture.VHDX{Size: 4 * mib, DataWriteGUID: id, Writes: []fixture.Write{{Off: 0, Data: []byte("from the parent")}}}
		require.NoError(t, base.WriteFile(filepath.Join(dir, "base.vhdx")))
		child := fixture.VHDX{Size: 4 * mib, Parent: &fixture.Locator{Entries: [][2]string{
			{"parent_linkage", "{01020300-0000-0000-0000-000000000000}"}, {"relative_path", `..\base.vhdx`}}}}
		require.NoError(t, child.WriteFile(filepath.Join(dir, "sub", "child.vhdx")))
		child.Parent.Entries[1][1] = `.\base.vhdx`
		require.NoError(t, child.WriteFile(filepath.Join(dir, "beside.vhdx")))
	}
	m := serve(t, terms{}, setup)
	target, err := os.Readlink(m.path("sub", "child.vhdx", "parent"))
	require.NoError(t, err)
	require.Equal(t, "../../base.vhdx", target)
	f, err := os.Open(m.path("sub", "child.vhdx", "raw"))
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 15)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, "from the parent", string(b))
	_, err = os.Lstat(m.path("base.vhdx", "parent"))
	require.ErrorIs(t, err, os.ErrNotExist)

	m = serve(t, terms{Single: "beside.vhdx"}, setup)
	target, err = os.Readlink(m.path("beside.vhdx", "parent"))
	require.NoError(t, err)
	require.Equal(t, m.image("base.vhdx"), target, "not in the mount: the file on the host")
}

// A directory keeps its node while it stands for the same: who is in it stays.
func TestDirectoriesKeepTheirNodes(t *testing.T) {
	m := serve(t, terms{}, func(dir string) { flatFile(t, filepath.Join(dir, "sub", "a.flat"), "a", mib) })
	for _, dir := range []string{"sub", "sub/a.flat", "sub/a.flat/partitions", ".vhdfs", ".vhdfs/help"} {
		first, second := inode(t, m.path(dir)), inode(t, m.path(dir))
		require.Equal(t, first, second, dir)
		d, err := os.Open(m.path(dir))
		require.NoError(t, err)
		require.NoError(t, d.Sync(), dir)
		require.NoError(t, d.Close())
	}
	require.NotEqual(t, inode(t, m.path("sub/a.flat/validate")), inode(t, m.path("sub/a.flat/validate")),
		"a small file gets a new inode at each look-up")
}

func inode(t *testing.T, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(name, &st))
	return st.Ino
}

// An inode number is the same whatever was asked last, a change of attributes
// among it.
func TestInodeNumberAfterAChange(t *testing.T) {
	m := serveFlat(t, terms{}, "data", mib)
	for _, name := range []string{"a.flat/raw", "a.flat/validate", "a.flat"} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Open(m.path(name))
			require.NoError(t, err)
			defer f.Close()
			before := openInode(t, f)
			require.NotZero(t, before)
			require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), make([]unix.Timespec, 2), 0))
			require.Equal(t, before, openInode(t, f))
			_ = unix.Truncate(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), mib) // a SETATTR, whatever its answer
			require.Equal(t, before, openInode(t, f))
		})
	}
}

func openInode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	st, err := f.Stat()
	require.NoError(t, err)
	return st.Sys().(*syscall.Stat_t).Ino
}
