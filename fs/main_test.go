package fs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/ops/host"
	"vhdfs/ops/part"
	"vhdfs/ops/view"
	"vhdfs/test/need"
	"vhdfs/vhd"
	"vhdfs/vhdx"
)

// A process that serves a mount and uses it can wait for itself. So the mount is
// served by a child, this very program in another role; tests use it from here.
const roleVariable = "VHDFS_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "serve":
		os.Exit(serveRole())
	case "write":
		os.Exit(writeRole(os.Args[1], os.Args[2]))
	}
	os.Exit(64)
}

// terms are the options of a mount that go to the child.
type terms struct {
	Folder, MountPoint string
	Single             string
	ReadOnly           bool
	AllowOther         bool
	Discard            bool
	Cache              CacheMode
}

// serveRole mounts and serves until its standard input ends.
func serveRole() int {
	var o terms
	if err := json.Unmarshal([]byte(os.Getenv("VHDFS_TEST_TERMS")), &o); err != nil {
		return fail(err)
	}
	dir, err := host.OpenDir(o.Folder)
	if err != nil {
		return fail(err)
	}
	k, sz := &knobs{}, &sizes{}
	lib := ops.NewLibrary(ops.LibraryOptions{Top: dir, Formats: []*ops.Format{vhdx.Format, vhd.Format, k.format(), sz.format()}, Tables: part.Tables{}})
	log := logrus.New()
	log.SetLevel(logrus.DebugLevel)
	var live atomic.Pointer[Server]
	s, err := Mount(context.Background(), Options{
		Library: lib, MountPoint: o.MountPoint, Single: o.Single,
		Ops: slices.Concat([]*ops.Op{k.faultOp(), k.holdOp(), k.slowOp(), longOp, panicOp}, sz.ops(), ops.All), Image: imageDocuments(lib, &live),
		ReadOnly: o.ReadOnly, AllowOther: o.AllowOther, Cache: o.Cache, Discard: o.Discard,
		OnMounted: dir.Refuse, Devices: host.LoopCaches{}, Log: log,
	})
	if err != nil {
		return fail(err)
	}
	live.Store(s)
	fmt.Println("ready")
	gone := make(chan struct{})
	go func() {
		s.Wait()
		close(gone)
	}()
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-gone:
	case <-s.Stopped():
		if err := s.Shutdown(); err != nil {
			return fail(err)
		}
	case <-ended:
		if err := s.Shutdown(); err != nil {
			return fail(err)
		}
	}
	if err := lib.Close(); err != nil {
		return fail(err)
	}
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func imageDocuments(lib *ops.Library, live *atomic.Pointer[Server]) []Document {
	var list []Document
	for _, d := range view.Documents {
		list = append(list, Document{Name: d.Name, Can: d.Can, Long: d.Long,
			Render: func(_ context.Context, ref ops.Ref, w io.Writer) error {
				return d.Render(w, &view.Source{Library: lib, Image: ref, Live: live.Load().Live(ref)})
			}})
	}
	return list
}

// writeRole writes text to a control file and tells the thread that does;
// SIGWINCH has a handler, as in an interactive program.
func writeRole(name, text string) int {
	runtime.LockOSThread()
	signal.Notify(make(chan os.Signal, 9), syscall.SIGWINCH)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return fail(err)
	}
	fmt.Println(unix.Gettid())
	if _, err := f.WriteString(text); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("done")
	return 0
}

// mounted is a mount that a child serves.
type mounted struct {
	dir, mnt string // the image folder and the mount point
	cmd      *exec.Cmd
	stdin    io.Closer
	stderr   *strings.Builder
	exited   chan error
}

// serve mounts what setup made in a new folder. The mount is gone when the test
// ends, however it ends.
func serve(t *testing.T, o terms, setup func(dir string)) *mounted {
	t.Helper()
	need.Fuse(t)
	m := &mounted{dir: t.TempDir(), mnt: t.TempDir(), stderr: &strings.Builder{}, exited: make(chan error, 1)}
	require.NoError(t, os.Mkdir(filepath.Join(m.dir, "sub"), 0o755))
	setup(m.dir)
	o.Folder = m.dir
	if o.MountPoint == "" {
		o.MountPoint = m.mnt
	} else {
		o.MountPoint = filepath.Join(m.dir, o.MountPoint)
		require.NoError(t, os.Mkdir(o.MountPoint, 0o755))
		m.mnt = o.MountPoint
	}
	j, err := json.Marshal(o)
	require.NoError(t, err)
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), roleVariable+"=serve", "VHDFS_TEST_TERMS="+string(j))
	m.cmd.Stderr = m.stderr
	m.stdin, err = m.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := m.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, m.cmd.Start())
	line, _ := bufio.NewReader(out).ReadString('\n')
	go func() { m.exited <- m.cmd.Wait() }()
	t.Cleanup(func() { m.end(t) })
	require.Equal(t, "ready\n", line)
	return m
}

// end asks the child to end and makes sure that it does.
func (m *mounted) end(t *testing.T) {
	if m.stdin == nil {
		return
	}
	_ = m.stdin.Close() // a child that is gone has closed it
	m.stdin = nil
	select {
	case err := <-m.exited:
		if err != nil {
			t.Errorf("the child that serves the mount: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the child that serves the mount does not end")
		_ = m.cmd.Process.Kill()
	}
	if err := unix.Unmount(m.mnt, unix.MNT_DETACH); err == nil {
		t.Error("the mount was still there")
	}
	if t.Failed() {
		t.Log(m.stderr)
	}
}

func (m *mounted) path(name ...string) string {
	return filepath.Join(append([]string{m.mnt}, name...)...)
}

func (m *mounted) image(name ...string) string {
	return filepath.Join(append([]string{m.dir}, name...)...)
}

// metric is the present value of one of the mount's counters.
func (m *mounted) metric(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile(m.path(".vhdfs", "metrics"))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		var n int
		if _, err := fmt.Sscanf(line, name+" %d", &n); err == nil {
			return n
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
