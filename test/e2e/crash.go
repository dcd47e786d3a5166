package e2e

import (
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Pid is the daemon's process id.
func (m *Mount) Pid() int { return m.cmd.Process.Pid }

// Crash ends the daemon with SIGKILL, whatever it is doing, and takes the dead
// mount away.
func (m *Mount) Crash(t testing.TB) {
	t.Helper()
	_ = m.cmd.Process.Kill() // it may be gone already
	m.Gone(t)
}

// deathBed is how long the kernel may take to end a killed daemon.
const deathBed = 20 * time.Second

// Gone waits for a daemon that something else is killing, and takes the dead
// mount away. A daemon that cannot die, because the kernel waits for answers that
// only it could give, fails the test; its users are freed.
func (m *Mount) Gone(t testing.TB) {
	t.Helper()
	ended := make(chan string, 1)
	go func() { ended <- m.end() }()
	var log string
	select {
	case log = <-ended:
	case <-time.After(deathBed):
		m.abort()
		t.Errorf("the daemon could not be killed within %v\n%s", deathBed, <-ended)
	}
	m.detach(t)
	for _, never := range []string{"panic", "DATA RACE"} {
		require.NotContains(t, log, never, "%s", log)
	}
}

// Abort cuts the daemon off from the kernel, as umount -f does, kills it and
// takes the dead mount away. Unlike [Mount.Crash] it works whatever the daemon
// waits for; programs that use the mount get errors. It needs root.
func (m *Mount) Abort(t testing.TB) {
	t.Helper()
	m.abort()
	_ = m.cmd.Process.Kill() // it may be gone already
	log := m.end()
	m.detach(t)
	for _, never := range []string{"panic", "DATA RACE"} {
		require.NotContains(t, log, never, "%s", log)
	}
}

// abort ends the connection. While programs have files open the unmount that it
// is a part of answers EBUSY.
func (m *Mount) abort() { _ = unix.Unmount(m.Dir, unix.MNT_FORCE) }

// detach takes the mount away; it may have gone with the daemon.
func (m *Mount) detach(t testing.TB) {
	t.Helper()
	err := unix.Unmount(m.Dir, unix.MNT_DETACH)
	if err == unix.EPERM { // an ordinary user
		out, err := exec.Command("fusermount3", "-u", "-z", m.Dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	if err != unix.EINVAL {
		require.NoError(t, err)
	}
}
