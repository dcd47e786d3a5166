package host

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/test/need"
)

// eachResolver runs a test with openat2 and with the walk of older kernels.
func eachResolver(t *testing.T, test func(t *testing.T, d *Dir, top string)) {
	for _, walk := range []bool{false, true} {
		t.Run(fmt.Sprintf("walk=%v", walk), func(t *testing.T) {
			top := t.TempDir()
			inside := filepath.Join(top, "vms")
			require.NoError(t, os.Mkdir(inside, 0o700))
			d, err := OpenDir(inside)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, d.Close()) })
			if !walk {
				require.False(t, d.walk, "this kernel has openat2")
			}
			d.walk = walk
			test(t, d, top)
		})
	}
}

func put(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
}

func TestPathsStayBeneath(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		put(t, top+"/secret", "s")
		put(t, top+"/vms/sub/a", "a")
		for link, target := range map[string]string{
			"link": "sub/a", "sub/up": "../sub/a", "sub/out": "../../secret", "abs": top + "/vms/sub/a",
			"loop": "loop", "dir": "sub", "outdir": "..", "magic": "/proc/self/exe",
		} {
			require.NoError(t, os.Symlink(target, top+"/vms/"+link))
		}
		for _, tt := range []struct {
			name string
			a    ops.Access
			want error
		}{
			{"sub/a", ops.Read, nil},
			{"sub/a", ops.NoFollow, nil},
			{"sub//a", ops.NoFollow, nil},
			{"./sub/../sub/./a", ops.NoFollow, nil},
			{"link", ops.Read, nil},
			{"link", ops.NoFollow, ops.ErrForbidden},
			{"dir/a", ops.Read, nil},
			{"dir/a", ops.NoFollow, ops.ErrForbidden},
			{"sub/up", ops.Read, nil},
			{"dir/up", ops.Read, nil},
			{"../secret", ops.Read, ops.ErrForbidden},
			{"sub/../../secret", ops.Read, ops.ErrForbidden},
			{"../vms/sub/a", ops.Read, ops.ErrForbidden},
			{top + "/secret", ops.Read, ops.ErrForbidden},
			{"/vms/sub/a", ops.Read, ops.ErrForbidden},
			{"sub/out", ops.Read, ops.ErrForbidden},
			{"outdir/secret", ops.Read, ops.ErrForbidden},
			{"abs", ops.Read, ops.ErrForbidden},
			{"magic", ops.Read, ops.ErrForbidden},
			{"loop", ops.Read, syscall.ELOOP},
			{"sub", ops.Read, ops.ErrForbidden},
			{".", ops.Read, ops.ErrForbidden},
			{"nothing", ops.Read, fs.ErrNotExist},
			{"", ops.Read, fs.ErrNotExist},
			{"sub/a/b", ops.Read, syscall.ENOTDIR},
			{"sub\x00", ops.Read, syscall.EINVAL},
		} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, tt.a), func(t *testing.T) {
				f, err := d.Open(tt.name, tt.a)
				if tt.want != nil {
					require.ErrorIs(t, err, tt.want)
					return
				}
				require.NoError(t, err)
				require.NoError(t, f.Close())
			})
		}
		for _, err := range []error{
			d.Mkdir("../new", 0o700), d.Remove("../secret"), d.Rename("sub/a", "../a"), d.Rename("../secret", "s"),
			d.Remove("outdir/secret"), d.Remove(".."), d.Sync("..", ""),
		} {
			require.ErrorIs(t, err, ops.ErrForbidden)
		}
		_, err := d.Create("outdir/new", 0o600)
		require.ErrorIs(t, err, ops.ErrForbidden)
		require.FileExists(t, top+"/secret")
	})
}

// Hostile case H34: nothing that is not a regular file is opened, or waited for.
func TestSpecialFilesAreRefusedWithoutWaiting(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		require.NoError(t, unix.Mkfifo(top+"/vms/fifo", 0o600))
		l, err := net.Listen("unix", top+"/vms/socket")
		require.NoError(t, err)
		defer l.Close()
		names := []string{"fifo", "socket"}
		if os.Geteuid() == 0 && unix.Mknod(top+"/vms/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) == nil {
			names = append(names, "device")
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, name := range names {
				for _, a := range []ops.Access{ops.Read, ops.Write, ops.NoFollow} {
					if _, err := d.Open(name, a); err == nil {
						panic(name + " was opened")
					}
				}
			}
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("opening a special file waits")
		}
		_, err = d.Open("fifo", ops.Read)
		require.ErrorIs(t, err, ops.ErrForbidden)
		require.ErrorContains(t, err, "not a regular file")
	})
}

// Security case S04: somebody swaps a file for a link to a secret all the time.
func TestSwappedLinkNeverLeadsOutside(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		put(t, top+"/secret", "secret")
		put(t, top+"/vms/a", "harmless")
		require.NoError(t, os.Symlink("../secret", top+"/vms/b"))
		stop := make(chan struct{})
		swaps := make(chan int)
		go func() {
			n := 0
			for ; n < 50_000; n++ {
				select {
				case <-stop:
					swaps <- n
					return
				default:
				}
				if err := unix.Renameat2(unix.AT_FDCWD, top+"/vms/a", unix.AT_FDCWD, top+"/vms/b", unix.RENAME_EXCHANGE); err != nil {
					panic(err)
				}
			}
			swaps <- n
		}()
		opened, deadline := 0, time.After(2*time.Second)
		for n := -1; n < 0; {
			select {
			case n = <-swaps:
				t.Logf("%d swaps, %d opened", n, opened)
			case <-deadline:
				close(stop)
				deadline = nil
			default:
				f, err := d.Open("a", ops.Read)
				if err != nil {
					require.ErrorIs(t, err, ops.ErrForbidden)
					continue
				}
				b := make([]byte, 8)
				_, err = f.ReadAt(b, 0)
				require.NoError(t, err)
				require.Equal(t, "harmless", string(b))
				require.NoError(t, f.Close())
				opened++
			}
		}
	})
}

func TestRefusedDevice(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		put(t, top+"/vms/a", "a")
		st, err := d.Stat("a")
		require.NoError(t, err)
		d.Refuse(st.ID.Dev + 1)
		_, err = d.Stat("a")
		require.NoError(t, err)
		d.Refuse(st.ID.Dev)
		_, err = d.Open("a", ops.Read)
		require.ErrorIs(t, err, ops.ErrForbidden)
		require.ErrorContains(t, err, "mount of this program")
		_, err = d.Create("b", 0o600)
		require.ErrorIs(t, err, ops.ErrForbidden)
		_, err = d.List(".")
		require.ErrorIs(t, err, ops.ErrForbidden)
	})
}

func TestNamesAreNeverReplaced(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		put(t, top+"/vms/a", "a")
		put(t, top+"/vms/b", "b")
		_, err := d.Create("a", 0o600)
		require.ErrorIs(t, err, fs.ErrExist)
		require.ErrorIs(t, d.Rename("a", "b"), fs.ErrExist)
		require.ErrorIs(t, d.Mkdir("a", 0o700), fs.ErrExist)
		require.NoError(t, d.Mkdir("d", 0o700))
		require.NoError(t, d.Rename("a", "d/a"))
		require.ErrorIs(t, d.Remove("d"), syscall.ENOTEMPTY)
		require.NoError(t, d.Sync("d", "test"))
		require.NoError(t, d.Remove("d/a"))
		require.NoError(t, d.Remove("d"))
		require.ErrorIs(t, d.Remove("d"), fs.ErrNotExist)
		require.NoError(t, os.Symlink("nowhere", top+"/vms/dangling"))
		_, err = d.Create("dangling", 0o600)
		require.ErrorIs(t, err, fs.ErrExist)
		f, err := d.Create("c", 0o640)
		require.NoError(t, err)
		st, err := f.Stat()
		require.NoError(t, err)
		require.Equal(t, uint32(0o640), st.Mode)
		require.NoError(t, f.Close())
		got, err := os.ReadFile(top + "/vms/b")
		require.NoError(t, err)
		require.Equal(t, "b", string(got))
	})
}

// Where a rename cannot be told to replace nothing, it replaces nothing all the same,
// and what fails leaves both names as they were.
func TestRenameWithoutFlags(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		d.bare = true
		for _, name := range []string{"file", "empty/", "full/x", "from/x"} {
			if err := os.MkdirAll(filepath.Join(top, "vms", filepath.Dir(name+"x")), 0o700); err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(name, "/") {
				put(t, filepath.Join(top, "vms", name), name)
			}
		}
		require.NoError(t, os.Symlink("nowhere", top+"/vms/dangling"))
		for _, from := range []string{"file", "from"} {
			for _, taken := range []string{"file", "empty", "full", "dangling"} {
				if from != taken {
					require.ErrorIs(t, d.Rename(from, taken), fs.ErrExist, "%s to %s", from, taken)
				}
			}
			require.ErrorIs(t, d.Rename(from, "none/new"), fs.ErrNotExist)
		}
		require.ErrorIs(t, d.Rename("none", "new"), fs.ErrNotExist)
		require.ErrorIs(t, d.Rename("from", "from/sub"), syscall.EINVAL)
		require.NoFileExists(t, top+"/vms/new")
		require.NoDirExists(t, top+"/vms/from/sub")
		require.NoError(t, d.Rename("from", "full/to"))
		require.NoError(t, d.Rename("file", "empty/file"))
		require.NoDirExists(t, top+"/vms/from")
		require.NoFileExists(t, top+"/vms/file")
		for name, want := range map[string]string{"full/to/x": "from/x", "full/x": "full/x", "empty/file": "file"} {
			got, err := os.ReadFile(top + "/vms/" + name)
			require.NoError(t, err)
			require.Equal(t, want, string(got))
		}
	})
}

// What somebody puts into the folder that holds the new name stays.
func TestRenameFolderReplacesNothing(t *testing.T) {
	top := t.TempDir()
	require.NoError(t, os.MkdirAll(top+"/from", 0o700))
	require.NoError(t, os.MkdirAll(top+"/to/theirs", 0o700))
	at, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(at)
	require.Contains(t, []error{unix.EEXIST, unix.ENOTEMPTY}, takePlace(at, "from", at, "to"))
	require.DirExists(t, top+"/to/theirs")
	require.DirExists(t, top+"/from")
	require.NoError(t, os.Remove(top+"/to/theirs"))
	require.ErrorIs(t, takePlace(at, "none", at, "to"), fs.ErrNotExist)
	require.NoDirExists(t, top+"/to", "the name is given back")
}

func TestListFollowsLinksBeneath(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		put(t, top+"/secret", "s")
		put(t, top+"/vms/b", "b")
		put(t, top+"/vms/sub/x", "x")
		require.NoError(t, os.Symlink("b", top+"/vms/a"))
		require.NoError(t, os.Symlink("sub", top+"/vms/c"))
		require.NoError(t, os.Symlink("../secret", top+"/vms/out"))
		require.NoError(t, os.Symlink("none", top+"/vms/dangling"))
		require.NoError(t, unix.Mkfifo(top+"/vms/z", 0o600))
		list, err := d.List(".")
		require.NoError(t, err)
		require.Equal(t, []ops.DirEntry{
			{Name: "a", IsRegular: true}, {Name: "b", IsRegular: true}, {Name: "c", IsDir: true},
			{Name: "sub", IsDir: true}, {Name: "z"},
		}, list)
		list, err = d.List("c")
		require.NoError(t, err)
		require.Equal(t, []ops.DirEntry{{Name: "x", IsRegular: true}}, list)
		_, err = d.List("b")
		require.ErrorIs(t, err, syscall.ENOTDIR)
	})
}

func TestStatIsOfTheTarget(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		put(t, top+"/vms/a", "12345")
		require.NoError(t, os.Symlink("a", top+"/vms/b"))
		require.NoError(t, os.Link(top+"/vms/a", top+"/vms/c"))
		a, err := d.Stat("a")
		require.NoError(t, err)
		for _, name := range []string{"b", "c"} {
			st, err := d.Stat(name)
			require.NoError(t, err)
			require.Equal(t, a.ID, st.ID)
		}
		var raw unix.Stat_t
		require.NoError(t, unix.Stat(top+"/vms/a", &raw))
		require.Equal(t, ops.FileID{Dev: raw.Dev, Ino: raw.Ino}, a.ID)
		require.Equal(t, []int64{5, raw.Blocks, raw.Ctim.Sec}, []int64{a.Size, a.Blocks, a.Ctime.Unix()})
		require.Equal(t, []bool{true, false}, []bool{a.IsRegular, a.IsDir})
		require.Equal(t, top+"/vms/a", d.Path("a"))
		_, err = d.Stat("nothing")
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorContains(t, err, top+"/vms/nothing")
	})
}

// A mount below the folder is another file system, and images may lie there.
func TestMountsBelowAreFollowed(t *testing.T) {
	need.Root(t)
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		tmpfs(t, top+"/vms/mnt", "1m")
		put(t, top+"/vms/mnt/a", "a")
		f, err := d.Open("mnt/a", ops.NoFollow)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		st, err := d.Stat("mnt/a")
		require.NoError(t, err)
		d.Refuse(st.ID.Dev)
		_, err = d.Open("mnt/a", ops.Read)
		require.ErrorIs(t, err, ops.ErrForbidden)
	})
}

func tmpfs(t *testing.T, at, size string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(at, 0o700))
	require.NoError(t, unix.Mount("tmpfs", at, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(at, 0)) })
}

func TestFree(t *testing.T) {
	eachResolver(t, func(t *testing.T, d *Dir, top string) {
		require.NoError(t, os.Mkdir(top+"/vms/sub", 0o700))
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(top, &st))
		for _, name := range []string{".", "sub"} {
			free, err := d.Free(name)
			require.NoError(t, err)
			require.Positive(t, free)
			require.LessOrEqual(t, free, int64(st.Blocks)*st.Frsize)
		}
		_, err := d.Free("none")
		require.ErrorIs(t, err, fs.ErrNotExist)
		_, err = d.Free("..")
		require.ErrorIs(t, err, ops.ErrForbidden)
	})
}
