package fs

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

func serveFlat(t *testing.T, o terms, text string, size int64) *mounted {
	t.Helper()
	return serve(t, o, func(dir string) { flatFile(t, filepath.Join(dir, "a.flat"), text, size) })
}

func answerOf(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var a map[string]any
	require.NoError(t, json.Unmarshal(b, &a), "%s", b)
	return a
}

// shell runs a script with $F as the control file.
func shell(t *testing.T, sh, file, script string) (string, error) {
	t.Helper()
	cmd := exec.Command(need.Tool(t, sh), "-c", script)
	cmd.Env = append(os.Environ(), "F="+file)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestControlFileFromShells(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	f := m.path("a.flat", "validate")
	for i, sh := range []string{"bash", "dash"} {
		t.Run(sh, func(t *testing.T) {
			out, err := shell(t, sh, f, `echo run > "$F" && echo "ran and answered: $(cat "$F")"`)
			require.NoError(t, err, out)
			require.Equal(t, fmt.Sprintf(`ran and answered: {"Operation":"ValidateVirtualHardDisk","ReturnValue":0,"Job":"%d"}`+"\n", i+1), out)

			out, err = shell(t, sh, f, `echo bogus=1 > "$F" && echo not reached`)
			require.Error(t, err, out)
			require.NotContains(t, out, "not reached")

			before := m.metric(t, "vhdfs_operations_total")
			out, err = shell(t, sh, f, `: > "$F"; printf '' > "$F"`)
			require.NoError(t, err, out)
			require.Equal(t, before, m.metric(t, "vhdfs_operations_total"), "an empty write runs nothing")
		})
	}
	// The answer stands at the file position after the write, whether it failed or not.
	out, err := shell(t, "bash", f, `exec 3<>"$F"; echo run >&3 || exit 9; cat <&3; echo x=1 >&3 2>/dev/null && exit 8; cat <&3`)
	require.NoError(t, err, out)
	lines := strings.Split(out, "\n")
	require.Equal(t, `{"Operation":"ValidateVirtualHardDisk","ReturnValue":0,"Job":"3"}`, lines[0])
	a := answerOf(t, []byte(lines[1]))
	require.Equal(t, "EINVAL", a["Errno"])
	require.Contains(t, a["Error"], `unknown argument "x"`)
}

func TestControlFileProtocol(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	name := m.path("a.flat", "validate")

	b, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Contains(t, answerOf(t, b), "Usage")
	help, err := os.ReadFile(m.path(".vhdfs", "help", "validate"))
	require.NoError(t, err)
	require.Equal(t, help, b)

	f, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("nonsense")
	require.ErrorIs(t, err, syscall.EINVAL)
	b, err = io.ReadAll(f)
	require.NoError(t, err)
	failed := answerOf(t, b)
	require.Equal(t, float64(32773), failed["ReturnValue"])

	_, err = f.WriteString("1")
	require.NoError(t, err)
	b, err = io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, `{"Operation":"ValidateVirtualHardDisk","ReturnValue":0,"Job":"1"}`+"\n", string(b))

	_, err = f.Seek(0, io.SeekStart)
	require.NoError(t, err)
	again, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, b, again, "from the start the whole answer")

	fresh, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, b, fresh, "a fresh open shows the last answer")
	st, err := os.Stat(name)
	require.NoError(t, err)
	require.Equal(t, int64(len(b)), st.Size())
	require.Equal(t, os.FileMode(0o600), st.Mode())

	require.NoError(t, f.Truncate(0))
	require.ErrorIs(t, f.Truncate(5), syscall.EINVAL)
	require.NoError(t, f.Sync())

	_, err = f.Write(make([]byte, 64<<10+1))
	require.ErrorIs(t, err, syscall.E2BIG)
	_, err = f.Write([]byte("1" + strings.Repeat("\n", 64<<10-1)))
	require.NoError(t, err, "64 KiB are one request")
}

func TestDocumentsCannotBeWritten(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	for _, name := range []string{"a.flat/state.json", ".vhdfs/metrics", ".vhdfs/log"} {
		_, err := os.OpenFile(m.path(name), os.O_WRONLY, 0)
		require.ErrorIs(t, err, syscall.EACCES, name)
		require.Error(t, os.Truncate(m.path(name), 0), name)
		st, err := os.Stat(m.path(name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o444), st.Mode())
	}
}

func TestDocumentSizes(t *testing.T) {
	for cache, mode := range cacheModes {
		t.Run(cache, func(t *testing.T) { testDocumentSizes(t, serveFlat(t, terms{Cache: mode}, "a", mib)) })
	}
}

func testDocumentSizes(t *testing.T, m *mounted) {
	for _, name := range []string{"state.json", "settings.json", "chain.json", "partitions.json", "map.json", "check"} {
		f, err := os.Open(m.path("a.flat", name))
		require.NoError(t, err)
		st, err := f.Stat()
		require.NoError(t, err)
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NotEmpty(t, b)
		if name != "map.json" { // long, and opened for the first time
			require.Equal(t, int64(len(b)), st.Size(), name)
		}
		require.True(t, json.Valid(b), "%s: %s", name, b)
	}
	for _, name := range []string{"chain.json", "map.json"} {
		out, err := exec.Command(need.Tool(t, "tar"), "-C", m.path("a.flat"), "-cf", "-", name).Output()
		require.NoError(t, err)
		want, err := os.ReadFile(m.path("a.flat", name))
		require.NoError(t, err)
		require.True(t, bytes.Contains(out, want), "tar stores as much as stat shows of %s", name)
	}
}

// Without an inode of its own the second writer would wait in the kernel for the
// first, and get its turn in place of EBUSY.
func TestSecondWriterIsBusyAtOnce(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	w := m.startWriter(t, m.path("a.flat", "slow"), "1")
	require.Eventually(t, func() bool {
		f, err := os.OpenFile(m.path("a.flat", "slow"), os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.WriteString("1")
		require.ErrorIs(t, err, syscall.EBUSY)
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		return answerOf(t, b)["Errno"] == "EBUSY"
	}, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, w.cmd.Process.Signal(syscall.SIGTERM))
	<-w.exited
}

// writer is a process that writes to a control file.
type writer struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	thread int
	exited chan error
}

// startWriter returns when the operation runs.
func (m *mounted) startWriter(t *testing.T, name, text string) *writer {
	t.Helper()
	before := m.running(t)
	w := &writer{cmd: exec.Command(os.Args[0], name, text), exited: make(chan error, 1)}
	w.cmd.Env = append(os.Environ(), roleVariable+"=write")
	out, err := w.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, w.cmd.Start())
	t.Cleanup(func() { _ = w.cmd.Process.Kill() })
	w.out = bufio.NewReader(out)
	line, err := w.out.ReadString('\n')
	require.NoError(t, err)
	w.thread, err = strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	go func() {
		rest, _ := io.ReadAll(w.out)
		w.out = bufio.NewReader(strings.NewReader(string(rest)))
		w.exited <- w.cmd.Wait()
	}()
	require.Eventually(t, func() bool { return m.running(t) > before }, 5*time.Second, 5*time.Millisecond)
	return w
}

// running counts how often the slow operation began.
func (m *mounted) running(t *testing.T) int { return m.count(t, "a.flat", "Started") }

// A signal that the writer handles interrupts its request too, and must not end
// the operation; one that ends the writer must.
func TestOnlyFatalSignalsCancel(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	w := m.startWriter(t, m.path("a.flat", "slow"), "1")
	require.NoError(t, unix.Tgkill(w.cmd.Process.Pid, w.thread, syscall.SIGWINCH))
	select {
	case err := <-w.exited:
		t.Fatalf("a change of the window's size ended the operation: %v", err)
	case <-time.After(4 * signalPoll):
	}
	require.NoError(t, w.cmd.Process.Signal(syscall.SIGTERM))
	err := <-w.exited
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Eventually(t, func() bool {
		return m.do(t, "a.flat", "fault", "0")["Stopped"] == "context canceled"
	}, 5*time.Second, 10*time.Millisecond)
}

func TestOnlyOwnerAndRootOperate(t *testing.T) {
	need.Root(t)
	m := serve(t, terms{AllowOther: true}, func(dir string) {
		require.NoError(t, os.Chmod(dir, 0o755))
		flatFile(t, filepath.Join(dir, "a.flat"), "a", mib)
		flatFile(t, filepath.Join(dir, "private.flat"), "a", mib)
		require.NoError(t, os.Chmod(filepath.Join(dir, "private.flat"), 0o600))
	})
	require.NoError(t, os.Chmod(filepath.Dir(m.mnt), 0o755))
	f, err := os.OpenFile(m.path("a.flat", "validate"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	asNobody(t, func() {
		for name, flags := range map[string]int{
			"a.flat/validate": unix.O_WRONLY, "a.flat/raw": unix.O_WRONLY,
			"private.flat/raw": unix.O_RDONLY, "private.flat/state.json": unix.O_RDONLY,
		} {
			_, err := unix.Open(m.path(name), flags, 0)
			require.ErrorIs(t, err, unix.EACCES, name)
		}
		fd, err := unix.Open(m.path("a.flat/raw"), unix.O_RDONLY, 0)
		require.NoError(t, err, "what may be read on the host may be read here")
		require.NoError(t, unix.Close(fd))
		_, err = unix.Write(int(f.Fd()), []byte("1"))
		require.ErrorIs(t, err, unix.EPERM, "a descriptor that root opened is checked at each write")
	})
	_, err = f.WriteString("1")
	require.NoError(t, err)
}

// asNobody runs f with the rights of another user, on a thread of its own.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its rights
		if err := unix.Setfsgid(65534); err != nil {
			done <- err
			return
		}
		if err := unix.Setfsuid(65534); err != nil {
			done <- err
			return
		}
		f()
	}()
	require.NoError(t, <-done)
}

// A panic answers EIO and is counted; the mount lives.
func TestPanicIsAnError(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	f, err := os.OpenFile(m.path("a.flat", "panic"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("1")
	require.ErrorIs(t, err, syscall.EIO)
	require.NoError(t, f.Close())
	require.Equal(t, 1, m.metric(t, "vhdfs_panics_total"))
	require.FileExists(t, m.path("a.flat", "raw"))
	f, err = os.OpenFile(m.path("a.flat", "panic"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("1")
	require.ErrorIs(t, err, syscall.EIO, "not EBUSY for ever")
	require.NoError(t, f.Close())
}
