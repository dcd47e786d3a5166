package fs

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// stopped waits for the end of the child, which must be in order, and of the mount.
func (m *mounted) stopped(t *testing.T) {
	t.Helper()
	select {
	case err := <-m.exited:
		require.NoError(t, err, "%s", m.stderr)
		m.exited <- nil
	case <-time.After(20 * time.Second):
		t.Fatal("the service does not end")
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(b), m.mnt)
}

func TestStop(t *testing.T) {
	for name, request := range map[string][2]string{
		"stop":                 {"stop", "1"},
		"without waiting":      {"stop", "run wait=false"},
		"request-state-change": {"request-state-change", "4"},
	} {
		t.Run(name, func(t *testing.T) {
			m := serveFlat(t, terms{}, "a", mib)
			f, err := os.OpenFile(m.path("a.flat", "raw"), os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("written"), 4096)
			require.NoError(t, err)

			a, err := m.ask(t, ".vhdfs", request[0], request[1])
			require.ErrorIs(t, err, unix.EBUSY)
			require.EqualValues(t, 32774, a["ReturnValue"])
			require.Contains(t, a["Error"], m.image("a.flat"))
			require.NotContains(t, a, "Job")
			_, err = f.WriteAt([]byte("go on"), 8192)
			require.NoError(t, err, "a stop that was refused changes nothing")
			require.NoError(t, f.Close())

			a, err = m.ask(t, ".vhdfs", request[0], request[1]+" dryrun=true")
			require.NoError(t, err)
			require.EqualValues(t, 0, a["ReturnValue"])
			_, err = os.Stat(m.path("a.flat", "raw"))
			require.NoError(t, err, "a dry run changes nothing")

			a, err = m.ask(t, ".vhdfs", request[0], request[1])
			require.NoError(t, err)
			require.EqualValues(t, 0, a["ReturnValue"])
			m.stopped(t)
			b, err := os.ReadFile(m.image("a.flat"))
			require.NoError(t, err)
			require.Equal(t, "written", string(b[4096:4103]))
			require.Equal(t, "go on", string(b[8192:8197]))
		})
	}
}

// Between the answer and the unmount, which waits for the handle that asked, nothing
// begins any more; the answer can be read all the time.
func TestNothingBeginsOnceTheServiceStops(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	f, err := os.OpenFile(m.path(".vhdfs", "stop"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteString("1")
	require.NoError(t, err)
	validate := os.WriteFile(m.path("a.flat", "validate"), []byte("1"), 0)
	_, open := os.Open(m.path("a.flat", "raw"))
	_, again := m.ask(t, ".vhdfs", "request-state-change", "4")
	b := make([]byte, 100)
	n, err := f.ReadAt(b, 1)
	require.ErrorContains(t, err, "EOF")
	require.Equal(t, `{"Operation":"StopService","ReturnValue":0}`+"\n", string(b[:n]))
	require.NoError(t, f.Close())
	for _, err := range []error{validate, open, again} {
		require.ErrorIs(t, err, unix.EBUSY)
	}
	m.stopped(t)
}

// Who keeps a handle open, or stands in a directory of the mount, holds the end up
// for a moment only.
func TestStopDoesNotWaitForHandlesOfSmallFiles(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	user := exec.Command("sleep", "100")
	user.Dir = m.path("a.flat")
	require.NoError(t, user.Start())
	t.Cleanup(func() { _, _ = user.Process.Kill(), user.Wait() }) // it ends by that signal
	_, err := m.ask(t, ".vhdfs", "stop", "1")
	require.NoError(t, err)
	m.stopped(t)
}

// Jobs are cancelled, and their writers get that answer, before stop is answered.
func TestStopEndsJobs(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	waited := make(chan error, 1)
	go func() { waited <- os.WriteFile(m.path("a.flat", "slow"), []byte("1"), 0) }()
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(m.path(".vhdfs", "jobs", "1", "status.json"))
		return err == nil && strings.Contains(string(b), `"JobState": 4`)
	}, 20*time.Second, 10*time.Millisecond)
	f, err := os.OpenFile(m.path(".vhdfs", "stop"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteString("1")
	require.NoError(t, err)
	b, err := os.ReadFile(m.path(".vhdfs", "jobs", "1", "status.json"))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.EqualValues(t, 8, answerOf(t, b)["JobState"], "terminated")
	require.ErrorIs(t, <-waited, unix.ECANCELED)
	m.stopped(t)
}

// By force the service ends under its users, with all that they have written.
func TestStopByForce(t *testing.T) {
	m := serveFlat(t, terms{}, "a", 4*mib)
	f, err := os.OpenFile(m.path("a.flat", "raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	want := bytes.Repeat([]byte("in the cache of the kernel"), 40000)
	_, err = f.WriteAt(want, 4096)
	require.NoError(t, err)
	_, err = m.ask(t, ".vhdfs", "stop", "force=true")
	require.NoError(t, err)
	m.stopped(t)
	b, err := os.ReadFile(m.image("a.flat"))
	require.NoError(t, err)
	require.Equal(t, string(want), string(b[4096:4096+len(want)]))
	_, err = f.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, unix.ENOTCONN)
}

// By force the service ends though bytes are lost, and says so.
func TestStopByForceTellsOfALoss(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	f, err := os.OpenFile(m.path("a.flat", "raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("in the cache of the kernel"), 4096)
	require.NoError(t, err)
	m.fault(t, unix.ENOSPC)
	a, err := m.ask(t, ".vhdfs", "stop", "force=true")
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Contains(t, a["Error"], "stopped, with a loss")
	select {
	case err := <-m.exited:
		require.Error(t, err, "the end is no success")
		m.exited <- nil
	case <-time.After(20 * time.Second):
		t.Fatal("the service does not end")
	}
}
