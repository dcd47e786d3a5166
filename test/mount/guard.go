// Package mount is what the engines share that load a mounted vhdfs and crash
// it: the writable kinds of image, writers whose every sector says who wrote it,
// the judgement of what a crash left, and a guard that takes away what a failed
// run leaves behind. The mount itself is that of package e2e.
package mount

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vhdfs/test/e2e"
)

// guarded is set in the process that runs the tests.
const guarded = "VHDFS_TEST_GUARDED"

// Main runs the tests of a package in a child process, with a temporary folder
// and a process group of its own. However that process ends, by a panic or a
// signal too, its processes are killed, and the mounts and loop devices of its
// folder taken away; what was still there fails the run. Call it from TestMain.
func Main(m *testing.M) int {
	if os.Getenv(guarded) != "" {
		return e2e.Main(m)
	}
	code, err := guard()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// guard runs this program again and cleans up behind it.
func guard() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "vhdfs-")
	if err != nil {
		return 1, err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(stop)

	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), guarded+"=1", "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 1, errors.Join(err, os.RemoveAll(dir))
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-stop:
		case <-overdue():
		case <-ended:
			return
		}
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // it may be gone already
		abortBelow(dir)                               // or it waits for a daemon that has
	}()
	err = cmd.Wait()
	close(ended)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), errors.Join(err, sweep(dir, cmd.Process.Pid), os.RemoveAll(dir))
}

// overdue is when the tests' own time-out must have ended them; never without one.
func overdue() <-chan time.Time {
	flag.Parse()
	f := flag.Lookup("test.timeout")
	if f == nil {
		return nil
	}
	limit, err := time.ParseDuration(f.Value.String())
	if err != nil || limit == 0 {
		return nil
	}
	return time.After(limit + 10*time.Second)
}

// abortBelow frees every program that waits for a daemon below dir. A process
// that is killed with such a wait cannot end before.
func abortBelow(dir string) {
	for _, m := range mountsBelow(dir) {
		if strings.HasPrefix(m.kind, "fuse") {
			_ = unix.Unmount(m.path, unix.MNT_FORCE) // EBUSY, once the connection has ended
		}
	}
}

// sweep takes away what tests left and says what it was. File systems go before
// the devices that they are on, and those before the mount that holds them.
func sweep(dir string, group int) error {
	var left []error
	note := func(what, which string) { left = append(left, fmt.Errorf("left behind: %s %s", what, which)) }
	for _, pid := range members(group) {
		note("process", strconv.Itoa(pid))
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
	}
	abortBelow(dir)
	unmount := func(fuse bool) {
		for _, m := range slices.Backward(mountsBelow(dir)) {
			if strings.HasPrefix(m.kind, "fuse") == fuse {
				note("mount", m.path)
				if err := unix.Unmount(m.path, unix.MNT_DETACH); err != nil {
					left = append(left, err)
				}
			}
		}
	}
	unmount(false)
	for _, dev := range loopsOn(dir) {
		note("loop device", dev)
		if err := clearLoop(dev); err != nil {
			left = append(left, err)
		}
	}
	unmount(true)
	return errors.Join(left...)
}

// members are the living processes of a group.
func members(group int) []int {
	var list []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is good
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// The name of a program stands in brackets and may hold anything; state,
		// parent and group follow it.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if f[0] != "Z" && f[2] == strconv.Itoa(group) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err == nil {
				list = append(list, pid)
			}
		}
	}
	return list
}

type mountPoint struct{ path, kind string }

// mountsBelow are the mounts in a folder, oldest first.
func mountsBelow(dir string) []mountPoint {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var list []mountPoint
	for line := range strings.Lines(string(b)) {
		place, device, _ := strings.Cut(line, " - ")
		path, kind := strings.Fields(place)[4], strings.Fields(device)[0]
		if strings.HasPrefix(path, dir+"/") {
			list = append(list, mountPoint{path, kind})
		}
	}
	return list
}

// loopsOn are the loop devices on files in a folder.
func loopsOn(dir string) []string {
	var list []string
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is good
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && strings.HasPrefix(string(b), dir+"/") {
			list = append(list, "/dev/"+strings.Split(name, "/")[3])
		}
	}
	return list
}

func clearLoop(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	return errors.Join(err, f.Close())
}
