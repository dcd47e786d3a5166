package e2e

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Pid is the daemon's process id.
func (m *Mount) Pid() int { return m.cmd.Process.Pid }

// Crash ends the daemon with SIGKILL, whatever it is doing, and takes the dead
// mount away. One that has ended already, by a signal of the test's, is the same.
func (m *Mount) Crash(t testing.TB) {
	t.Helper()
	_ = m.cmd.Process.Kill() // it may be gone already
	m.Gone(t)
}

// Gone waits for a daemon that something else is killing, and takes the dead
// mount away.
func (m *Mount) Gone(t testing.TB) {
	t.Helper()
	log := m.end()
	if unix.Unmount(m.Dir, unix.MNT_DETACH) != nil {
		out, err := exec.Command("fusermount3", "-u", "-z", m.Dir).CombinedOutput() // an ordinary user
		require.NoError(t, err, "%s", out)
	}
	require.NotContains(t, log, "panic", "%s", log)
}
