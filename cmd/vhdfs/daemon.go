package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyFD names the descriptor on which a daemon tells the process that
// started it that the mount is ready. It is in the environment, because the
// arguments stay those that the user typed.
const readyFD = "VHDFS_READY_FD"

// leashFD names the descriptor that holds a daemon which was started to attach an
// image: it may end when the other end is closed and nothing is attached.
const leashFD = "VHDFS_LEASH_FD"

// isDaemon tells whether this process was started by [startDaemon].
func isDaemon() bool { return os.Getenv(readyFD) != "" }

// background starts this very command again as a daemon.
func background(stderr io.Writer) error {
	daemon, err := startDaemon(stderr, os.Args[1:], nil)
	if err != nil {
		return err
	}
	return daemon.Release()
}

// startDaemon starts this program in a session of its own and returns when its mount
// is ready, or with its exit code when there will be none. What the daemon has to
// say until then goes to stderr. leash, if not nil, is what it is held by.
func startDaemon(stderr io.Writer, args []string, leash *os.File) (*os.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), readyFD+"=3")
	cmd.ExtraFiles = []*os.File{w}
	if leash != nil {
		cmd.Env = append(cmd.Env, leashFD+"=4")
		cmd.ExtraFiles = append(cmd.ExtraFiles, leash)
	}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if n, _ := r.Read(make([]byte, 1)); n == 1 {
		return cmd.Process, nil
	}
	err = cmd.Wait() // the pipe closed without a word: it failed
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return nil, reported{exit.ExitCode()}
	}
	return nil, fmt.Errorf("the daemon ended before its mount was ready: %v", cmd.ProcessState)
}

// takeLeash is the leash of this process; nil where there is none. What it starts
// does not have it.
func takeLeash() (*os.File, error) {
	if os.Getenv(leashFD) == "" {
		return nil, nil
	}
	unix.CloseOnExec(4)
	return os.NewFile(4, "leash"), os.Unsetenv(leashFD)
}

// tellReady tells who waits for the mount: the starter of a daemon, and the
// service manager.
func tellReady() error {
	if err := notify("READY=1"); err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	if !isDaemon() {
		return nil
	}
	return detach()
}

// detach lets go of the starter: its pipe, its directory and its terminal.
func detach() error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	pipe := os.NewFile(3, "ready")
	if _, err := pipe.Write([]byte{1}); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return err
		}
	}
	return errors.Join(pipe.Close(), null.Close(), os.Unsetenv(readyFD))
}

// notify sends a state to the service manager, where there is one.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}
