// Package e2e tests the real binary: it is built once, mounts in a child
// process, and is used by real programs. A test never serves and uses a mount in
// one process.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// patience is how long anything may take that ought to take moments: so long
// that a machine under load does not fail a test, short enough to see a hang.
const patience = 2 * time.Minute

// program is the binary under test; [Main] builds it.
var program string

// Main builds the program, runs the tests and looks for mounts left behind. Call
// it from TestMain.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vhdfs-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Folders of tests lie in it, where an ordinary user can reach them, so that
	// mounts of another run are not taken for ours.
	if err := errors.Join(os.Chmod(dir, 0o711), os.Setenv("TMPDIR", dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program = filepath.Join(dir, "vhdfs")
	if out, err := exec.Command("go", "build", "-o", program, "vhdfs/cmd/vhdfs").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	for _, mnt := range mountsBelow(dir) {
		fmt.Fprintln(os.Stderr, "a mount was left behind:", mnt)
		code = 1
	}
	return code
}

// mountsBelow are the vhdfs mounts in a folder.
func mountsBelow(dir string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if strings.Contains(line, " fuse.vhdfs ") && strings.HasPrefix(f[4], dir+"/") {
			list = append(list, f[4])
		}
	}
	return list
}

// Mount is a running daemon and its mount.
type Mount struct {
	Dir    string // the mount point
	Images string // what is mounted
	cmd    *exec.Cmd
	log    bytes.Buffer // to be read after the end
	ended  bool
}

// Start mounts images, a folder or a file, and waits until the mount is ready.
// The test's end unmounts it; a daemon that exits with an error, or that still
// has an image open when no program has, fails the test.
func Start(t testing.TB, images string, flags ...string) *Mount {
	t.Helper()
	need.Fuse(t)
	m := &Mount{Dir: t.TempDir(), Images: images}
	m.cmd = exec.Command(program, append([]string{"mount", "--log-level", "debug", images, m.Dir}, flags...)...)
	m.cmd.Stderr, m.cmd.Stdout = &m.log, &m.log
	if err := startReady(t, m.cmd); err != nil {
		t.Fatalf("%v\n%s", err, m.end())
	}
	t.Cleanup(func() { m.Stop(t) })
	return m
}

// startReady starts a daemon and waits until its mount is ready; after an error it has
// been killed. The daemon ends when this process does, in whichever way: the kernel
// tells it when the thread that started it ends, which Go's threads do no sooner.
func startReady(t testing.TB, daemon *exec.Cmd) error {
	t.Helper()
	ready := listen(t)
	daemon.Env = append(daemon.Environ(), "NOTIFY_SOCKET="+ready.LocalAddr().String())
	if daemon.SysProcAttr == nil {
		daemon.SysProcAttr = &syscall.SysProcAttr{}
	}
	daemon.SysProcAttr.Pdeathsig = unix.SIGTERM
	if err := daemon.Start(); err != nil {
		return err
	}
	require.NoError(t, ready.SetReadDeadline(time.Now().Add(patience)))
	b := make([]byte, 64)
	n, err := ready.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		_ = daemon.Process.Kill() // it may be gone already
		return fmt.Errorf("not ready: %w, %q", err, b[:n])
	}
	return nil
}

var sockets atomic.Int64 // made so far

// listen makes a socket that every user can write to.
func listen(t testing.TB) *net.UnixConn {
	t.Helper()
	name := fmt.Sprintf("@vhdfs-ready-%d-%d", os.Getpid(), sockets.Add(1)) // abstract: no file
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// end waits for the daemon and gives its log.
func (m *Mount) end() string {
	m.ended = true
	err := m.cmd.Wait()
	return fmt.Sprintf("%v\n%s", err, m.log.String())
}

// Stop unmounts with the program's own command and checks the daemon's end.
func (m *Mount) Stop(t testing.TB) {
	t.Helper()
	if m.ended {
		return
	}
	left := m.openImages(t)
	out, err := exec.Command(program, "umount", m.Dir).CombinedOutput()
	if err != nil {
		_ = m.cmd.Process.Kill()
		_ = unix.Unmount(m.Dir, unix.MNT_DETACH) // so that later tests can run
		t.Errorf("umount: %v %s\n%s", err, out, m.end())
		return
	}
	log := m.end()
	require.True(t, m.cmd.ProcessState.Success(), "%s", log)
	require.NotContains(t, log, "panic", "%s", log)
	require.Empty(t, left, "descriptors of images that nobody has open\n%s", log)
}

// openImages are the daemon's descriptors of image files. A RELEASE comes after
// close(2) has returned, so it waits a moment for the last ones to go.
func (m *Mount) openImages(t testing.TB) []string {
	t.Helper()
	var open []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		open = open[:0]
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.cmd.Process.Pid))
		require.NoError(t, err)
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue // closed meanwhile
			}
			if st, err := os.Stat(fd); err == nil && st.Mode().IsRegular() && strings.HasPrefix(target, filepath.Dir(m.Images)) {
				open = append(open, target)
			}
		}
		if len(open) == 0 {
			return nil
		}
	}
	return open
}

// Log is what the daemon has said, once it has ended.
func (m *Mount) Log() string { return m.log.String() }

// Path joins names to the mount point.
func (m *Mount) Path(names ...string) string {
	return filepath.Join(append([]string{m.Dir}, names...)...)
}

// Shell runs a script that must succeed in the mount point and gives its output.
// $IMAGES is what is mounted, $VHDFS the program.
func (m *Mount) Shell(t testing.TB, script string) string {
	t.Helper()
	out, err := m.Try(t, "bash", script)
	require.NoError(t, err, "%s\n%s", script, out)
	return out
}

// Try runs a script in the shell that is named; the output holds what it wrote
// to standard error too.
func (m *Mount) Try(t testing.TB, shell, script string) (string, error) {
	t.Helper()
	return run(t, m.Dir, []string{"IMAGES=" + m.Images, "MNT=" + m.Dir}, shell, "-euc", script)
}

// Command runs the program under test in a folder.
func Command(t testing.TB, dir string, args ...string) (string, error) {
	t.Helper()
	return run(t, dir, nil, program, args...)
}

func run(t testing.TB, dir string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	limit := patience
	if os.Getenv("VHDFS_ROUNDS") != "" {
		limit = time.Hour // a soak
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "VHDFS="+program, "LC_ALL=C.UTF-8"), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = errors.Join(err, fmt.Errorf("hung for %v", limit))
	}
	return out.String(), err
}
