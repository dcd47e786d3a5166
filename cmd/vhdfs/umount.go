package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// daemonPatience is how long umount waits for the daemon to close its images:
// all that the kernel held back was written before the unmount, what is left is
// a flush of each.
const daemonPatience = time.Minute

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Usage:     "unmount, and wait until every image is closed",
		ArgsUsage: "MNT",
		Category:  "mount",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "as root: cut off a daemon that hangs; what it has not flushed is lost"},
		},
		Action: func(c *cli.Context) error {
			args, err := positional(c, "MNT")
			if err != nil {
				return err
			}
			return umount(args[0], c.Bool("force"))
		},
	}
}

// umount asks the daemon to stop and waits for its end.
func umount(typed string, force bool) error {
	mnt, err := ourMountPoint(typed)
	if err != nil {
		return err
	}
	if force {
		return cutOff(mnt)
	}
	b, err := os.ReadFile(filepath.Join(mnt, ".vhdfs", "daemon.json"))
	if errors.Is(err, unix.ENOTCONN) {
		return unmount(mnt) // its daemon is dead: there is nothing to wait for
	}
	if err != nil {
		return err
	}
	var d daemonInfo
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("daemon.json: %w", err)
	}
	// Held before the unmount, the descriptor cannot mean another process later.
	pidfd, err := unix.PidfdOpen(d.PID, 0)
	if err != nil {
		return fmt.Errorf("daemon with process id %d: %w", d.PID, err)
	}
	err = stopService(mnt)
	if err == nil {
		err = waitForExit(pidfd, d.PID)
	}
	if err == nil {
		err = unmountLeft(mnt)
	}
	return errors.Join(err, unix.Close(pidfd))
}

// stopService asks for the end of the service in its own words, which are the error
// when it refuses.
func stopService(mnt string) error {
	file, err := os.OpenFile(filepath.Join(mnt, ".vhdfs", "stop"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString("run\n")
	if err != nil {
		var answer struct{ Error string }
		b, rerr := io.ReadAll(file)
		if rerr == nil && json.Unmarshal(b, &answer) == nil && answer.Error != "" {
			err = refused{answer.Error, err}
		}
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	return err
}

// refused is what a service answered, of the class of the errno that came with it.
type refused struct {
	text  string
	errno error
}

func (r refused) Error() string { return strings.TrimSuffix(r.text, ".") }
func (r refused) Unwrap() error { return r.errno }

// unmountLeft takes away what the end of a daemon in a namespace of its own leaves
// here.
func unmountLeft(mnt string) error {
	left, err := isMountPoint(mnt)
	if err != nil || !left {
		return err
	}
	return unmount(mnt)
}

func notMountPoint(typed string) error {
	return usagef("%s is not the mount point of a vhdfs mount", typed)
}

// cutOff aborts the connection between the kernel and a daemon, then takes the
// mount away. It asks the daemon nothing. A daemon that was killed while the
// kernel waited for it to take dirty pages ends in no other way: the kernel's
// wait holds its last descriptor of the connection.
func cutOff(mnt string) error {
	if os.Geteuid() != 0 {
		return ops.Errorf(ops.ErrForbidden, 0, "unmount %s by force: only root can", mnt)
	}
	err := unix.Unmount(mnt, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) { // aborted, and somebody still has files open
		err = unix.Unmount(mnt, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmount %s by force: %w", mnt, err)
	}
	return nil
}

// unmount fails with ErrBusy while somebody uses the mount.
func unmount(mnt string) error {
	if os.Geteuid() == 0 {
		if err := unix.Unmount(mnt, unix.UMOUNT_NOFOLLOW); err != nil {
			return classifyUnmount(mnt, err)
		}
		return nil
	}
	out, err := exec.Command("fusermount3", "-u", "--", mnt).CombinedOutput()
	if err != nil {
		return ops.Wrapf(err, ops.ErrBusy, 0, "unmount %s: %q", mnt, out)
	}
	return nil
}

// unmountDead takes a mount away whose daemon is dead, though programs, or a device, may
// still have files of it open.
func unmountDead(mnt string) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(mnt, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	return exec.Command("fusermount3", "-u", "-z", "--", mnt).Run()
}

func classifyUnmount(mnt string, err error) error {
	if errors.Is(err, unix.EBUSY) {
		return ops.Wrapf(err, ops.ErrBusy, 0, "unmount %s", mnt)
	}
	return fmt.Errorf("unmount %s: %w", mnt, err)
}

func waitForExit(pidfd, pid int) error {
	deadline := time.Now().Add(daemonPatience)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("unmounted, but the daemon with process id %d still closes images", pid)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n > 0:
			return nil
		}
	}
}

// ourMountPoint is the absolute path of what was typed, which has to be the mount
// point of a mount of ours.
func ourMountPoint(typed string) (string, error) {
	mnt, err := filepath.Abs(typed)
	if err != nil {
		return "", err
	}
	ours, err := isMountPoint(mnt)
	if err != nil {
		return "", err
	}
	if !ours {
		return "", notMountPoint(typed)
	}
	return mnt, nil
}

// isMountPoint tells whether a vhdfs is mounted on this very directory. It asks
// the kernel's table, which knows mounts of dead daemons too.
func isMountPoint(mnt string) (bool, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	ours := false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 4 && i+1 < len(f) && mountEscapes.Replace(f[4]) == mnt {
			ours = f[i+1] == "fuse.vhdfs" // the last line is the topmost mount
		}
	}
	return ours, nil
}

// mountEscapes are those of the kernel's table.
var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// isMount tells whether dir lies in a vhdfs mount whose service directory can
// be reached from it: dir is the root of the mount, or below it.
func isMount(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.FUSE_SUPER_MAGIC {
		return false
	}
	root, err := mountRoot(dir)
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(root, ".vhdfs", "daemon.json"))
	return err == nil
}

// mountRoot is the topmost directory on dir's device.
func mountRoot(dir string) (string, error) {
	var st, up unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", err
	}
	for dir != "/" {
		if err := unix.Stat(filepath.Dir(dir), &up); err != nil {
			return "", err
		}
		if up.Dev != st.Dev {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir, nil
}
