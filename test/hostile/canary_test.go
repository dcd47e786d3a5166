package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/test/hostile/folder"
	"vhdfs/test/need"
)

// outsideFor lays out what a folder's images must not reach: beside the folder,
// parents with the right ids that are full of canaries, readable by nobody else.
func outsideFor(t *testing.T, dir string) string {
	t.Helper()
	outside := filepath.Join(filepath.Dir(dir), "outside")
	require.NoError(t, os.Mkdir(outside, 0o700))
	x, v := rootX(2), rootV(2)
	x.Creator, x.Writes = canary, guest([]byte(canary))
	v.Writes = guest([]byte(canary))
	folder.Add(t, outside, folder.Files{"p.vhdx": x, "p.vhd": v, "shadow": folder.Raw(canary)})
	for _, name := range []string{"p.vhdx", "p.vhd", "shadow"} {
		require.NoError(t, os.Chmod(filepath.Join(outside, name), 0o600))
	}
	return outside
}

// escapes are paths that lead, by one reading or another, from images/sub to
// outside/p.EXT. OUT stands for the host path of outside.
var escapes = []string{
	`..\..\outside\p.EXT`, `.\..\..\outside\p.EXT`, `../../outside/p.EXT`, `..\../outside\p.EXT`, `../..\outside/p.EXT`,
	`.\.\..\.\..\outside\.\p.EXT`, `x\..\..\..\outside\p.EXT`, `..\..\images\..\outside\p.EXT`, `..\.\..\\outside\\p.EXT`,
	`..\..\outside.\p.EXT.`, `.. \.. \outside\p.EXT`, `..\..\outside \p.EXT `, `...\..\..\..\outside\p.EXT`,
	`..\..\OUTSIDE\P.EXT`, `..\..\outside\shadow`, `..\..\..\..\..\..\..\..\..\..\..\..\etc\shadow`, `..\link\p.EXT`,
	`C:..\..\outside\p.EXT`, `C:\..\..\outside\p.EXT`, `C:/../../outside/p.EXT`, `\..\..\outside\p.EXT`,
	`\\?\C:\..\..\outside\p.EXT`, `\\.\C:\..\..\outside\p.EXT`, `\??\C:\..\..\outside\p.EXT`,
	`\\?\Volume{01234567-89ab-4cde-8f01-23456789abcd}\..\..\outside\p.EXT`,
	`\\server\share\..\..\..\outside\p.EXT`, `\\?\UNC\server\share\..\..\..\..\outside\p.EXT`, `\\?\GLOBALROOT\Device\..\..\outside\p.EXT`,
	`OUT/p.EXT`, `//OUT/p.EXT`, `OUT/../outside/p.EXT`, `\\?\OUT\p.EXT`, `C:OUT/p.EXT`,
	`file://OUT/p.EXT`, `file://localhostOUT/p.EXT`, `file:OUT/p.EXT`, `FILE://OUT/p.EXT`, `file://./../../outside/p.EXT`, `file://../../outside/p.EXT`,
	`file:///..%2f..%2foutside%2fp.EXT`, `file://.%2f..%2f..%2foutside%2fp.EXT`, `..%2f..%2foutside%2fp.EXT`, `file:///%2e%2e/%2e%2e/outside/p.EXT`,
	`/etc/passwd`, `/etc/shadow`, `/proc/self/environ`, `/proc/self/fd/0`, `/dev/zero`, `/dev/mem`, `C:`, `C:\`, `\`, `\\`, `\\?\`, `.`, `..`, `...`, ` `, `nul`, `CON`,
	`~/p.EXT`, `$HOME/p.EXT`, `%TEMP%\p.EXT`, `..\` + "\u2025" + `\outside\p.EXT`, "..\uff0f..\uff0foutside\uff0fp.EXT",
	strings.Repeat(`..\`, 300) + `outside\p.EXT`, strings.Repeat(`a\`, 5000) + `p.EXT`, strings.Repeat("p", 300) + ".EXT",
	"..\\..\\outside\\p.EXT\x00.txt", "..\\..\\outside\\p.EXT\n", "\x1b[2J..\\..\\outside\\p.EXT",
}

// escaping is a folder with a child for each escape, in both formats.
func escaping(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = folder.Make(t, folder.Files{"sub/readme.txt": folder.Raw("x"), "other/good.vhd": rootV(7)})
	outside := outsideFor(t, dir)
	require.NoError(t, os.Symlink("../outside", filepath.Join(dir, "link")))
	fill := func(ext, path string) string {
		return strings.NewReplacer("OUT", outside, "EXT", ext).Replace(path)
	}
	for i, e := range escapes {
		x, v := fmt.Sprintf("sub/x%02d.vhdx", i), fmt.Sprintf("sub/v%02d.vhd", i)
		path := fill("vhdx", e)
		child := childX(100+i, 2, "relative_path", path, "absolute_win32_path", path, "volume_path", path)
		child.Writes = nil
		path = fill("vhd", e)
		folder.Add(t, dir, folder.Files{
			x: child, v: childV(100+i, 2, "W2ru", path, "W2ku", path, "MacX", path, "Wi2r", path, "", fmt.Sprintf("%.250s", path)),
		})
		names = append(names, x, v)
	}
	return dir, names
}

func TestH32PathsOutside(t *testing.T) {
	folder.Watch(t)
	dir, names := escaping(t)
	folder.Untouched(t, dir)
	r, output := folder.LookInChild(t, dir, names)
	require.NotContains(t, string(output), "CANARY")
	for _, name := range names {
		o := r.Images[name]
		require.Contains(t, []string{"ENOLINK", "EUCLEAN"}, o.Errno, "%s: %s", name, o.Err)
		if strings.HasSuffix(name, ".vhd") {
			require.Equal(t, "ENOLINK", o.Errno, "%s: %s", name, o.Err)
		}
		require.NotRegexp(t, `[\x00-\x1f\x7f]`, o.Err, "%s: control characters", name)
	}
}

// opened is a call of strace -y that opened a file: what it was called by, and
// the path of what it got.
var opened = regexp.MustCompile(`open(?:at2?)?\(.*\) = \d+<([^>]*)>`)

// Not even to look at it: the system calls of a whole process that does all it
// can with each of them.
func TestH32H33CanariesAreNeverOpened(t *testing.T) {
	folder.Watch(t)
	strace := need.Tool(t, "strace")
	dir, names := escaping(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	folder.Add(t, dir, folder.Files{
		"p1.vhdx": folder.Link("../outside/p.vhdx"), "p2.vhdx": folder.Link(filepath.Join(outside, "p.vhdx")),
		"c1.vhdx": childX(201, 2, "relative_path", `.\p1.vhdx`), "c2.vhdx": childX(202, 2, "relative_path", `.\p2.vhdx`),
		"c3.vhdx": childX(203, 2, "relative_path", `.\link\p.vhdx`), "c4.vhd": childV(204, 2, "W2ru", `link\p.vhd`),
	})
	names = append(names, "c1.vhdx", "c2.vhdx", "c3.vhdx", "c4.vhd")
	trace := filepath.Join(t.TempDir(), "trace")
	r, output := folder.LookInChild(t, dir, names, strace, "-f", "--seccomp-bpf", "-y", "-s", "4096", "-e", "trace=open,openat,openat2", "-o", trace)
	require.NotContains(t, string(output), "CANARY")
	for _, name := range names {
		require.NotEmpty(t, r.Images[name].Err, name)
	}
	text, err := os.ReadFile(trace)
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, m := range opened.FindAllStringSubmatch(string(text), -1) {
		seen[m[1]] = true
		require.False(t, strings.HasPrefix(m[1], outside), "%s was opened", m[0])
		require.NotContains(t, []string{"/etc/shadow", "/etc/passwd", "/dev/zero", "/dev/mem", "/proc/self/environ"}, m[1])
	}
	for _, name := range names {
		require.True(t, seen[filepath.Join(dir, name)], "the trace does not show %s", name)
	}
}

func TestH33SymbolicLinks(t *testing.T) {
	outside := func(name string) folder.Maker {
		return folder.Func(func(path string) error {
			out := filepath.Join(filepath.Dir(filepath.Dir(path)), "outside")
			if err := os.MkdirAll(out, 0o700); err != nil {
				return err
			}
			x := rootX(2)
			x.Writes = guest([]byte(canary))
			if err := x.WriteFile(filepath.Join(out, "p.vhdx")); err != nil {
				return err
			}
			return os.Symlink(name, path)
		})
	}
	child := childX(1, 2, "relative_path", `.\p.vhdx`)
	missing := func(name string, more folder.Files) row {
		return row{name: name, file: child, more: more, class: ops.ErrParentMissing, says: "parent of ...disk.vhdx: no image with id a0010203"}
	}
	through := childX(1, 2, "relative_path", `.\dir\p.vhdx`)
	rows(t, "disk.vhdx", []row{
		missing("to a file outside", folder.Files{"p.vhdx": outside("../outside/p.vhdx")}),
		missing("to itself", folder.Files{"p.vhdx": folder.Link("p.vhdx")}),
		missing("to nothing", folder.Files{"p.vhdx": folder.Link("gone")}),
		missing("to a device", folder.Files{"p.vhdx": folder.Link("/dev/zero")}),
		missing("to /", folder.Files{"p.vhdx": folder.Link("/")}),
		{name: "a folder that leads outside", file: through, more: folder.Files{"dir": outside("../outside")}, class: ops.ErrParentMissing, says: "disk.vhdx: no image with id"},
		{
			name: "to a file inside, which is found by its id",
			file: child, more: folder.Files{"p.vhdx": folder.Link("real/q.vhdx"), "real/q.vhdx": rootX(2)},
			also: func(t *testing.T, s *folder.Sight) {
				t.Helper()
				require.Contains(t, fmt.Sprint(s.Chain[0].Passed), "p.vhdx")
			},
		},
	})
}

// The parent is swapped for a link to outside and back while children open it:
// they see the parent or an error, and never what the link leads to.
func TestH33SwappedBetweenCheckAndOpen(t *testing.T) {
	folder.Watch(t)
	dir := folder.Make(t, folder.Files{"disk.vhdx": childX(1, 2, "relative_path", `.\p.vhdx`), "p.vhdx": rootX(2)})
	outside := outsideFor(t, dir)
	link := filepath.Join(dir, "swap")
	require.NoError(t, os.Symlink(filepath.Join(outside, "p.vhdx"), link))
	var stop atomic.Bool
	done := make(chan error)
	go func() {
		var err error
		for !stop.Load() && err == nil {
			err = unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, filepath.Join(dir, "p.vhdx"), unix.RENAME_EXCHANGE)
		}
		done <- err
	}()
	good := 0
	for i := 0; i < 3000 && !(good > 50 && i > 300); i++ {
		l := folder.Open(t, dir)
		h, err := l.Open(l.Top("disk.vhdx"), ops.Read)
		if err != nil {
			continue
		}
		good++
		p := make([]byte, 512)
		_, err = h.ReadAt(p, 0)
		require.NoError(t, err)
		require.Equal(t, string(base[0].Data), string(p))
		require.NoError(t, h.Close())
		require.NoError(t, l.Close())
	}
	stop.Store(true)
	require.NoError(t, <-done)
	require.NotZero(t, good, "it never opened: the race was not run")
}
