package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// Loops are the loop devices of this machine. A device of ours says so in the name
// that the driver keeps for it:
//
//	vhdfs:WAY:PROCESS:START:NAMESPACE
//
// with the process that laid it, when that began, in ticks since the machine did,
// and the namespace in which its number counts. See [loopRecord] for devices that
// cannot say it any more.
type Loops struct{}

var _ ops.BlockDevices = Loops{}

const (
	loopControl = "/dev/loop-control"
	loopName    = "vhdfs"
	layTries    = 64 // against others who take the same free device
	lookWait    = 20 * time.Millisecond
	lookTries   = 50
)

// Permitted implements [ops.BlockDevices].
func (Loops) Permitted() error {
	fd, err := openRetry(unix.AT_FDCWD, loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return notPermitted(loopControl, err)
	}
	return unix.Close(fd)
}

// notPermitted is for what a container, or an ordinary user, lacks.
func notPermitted(what string, err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return ops.Wrapf(err, ops.ErrForbidden, 0, "loop devices cannot be made here: %s", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Lay implements [ops.BlockDevices].
func (Loops) Lay(path string, t ops.DeviceTerms) (device string, err error) {
	access := unix.O_RDWR
	if t.ReadOnly {
		access = unix.O_RDONLY
	}
	fd, err := openRetry(unix.AT_FDCWD, path, access|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Dev != t.On.Dev || t.On.Ino != 0 && st.Ino != t.On.Ino {
		return "", ops.Errorf(ops.ErrChanged, 0, "%s is another file now", path)
	}
	config, err := loopConfig(fd, t)
	if err != nil {
		return "", err
	}
	control, err := openRetry(unix.AT_FDCWD, loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", notPermitted(loopControl, err)
	}
	defer func() { err = errors.Join(err, unix.Close(control)) }()
	for range layTries {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", notPermitted(loopControl, err)
		}
		device := "/dev/loop" + strconv.Itoa(n)
		if err := configure(device, config); !errors.Is(err, unix.EBUSY) {
			return device, err
		}
	}
	return "", ops.Errorf(ops.ErrBusy, 0, "no free loop device after %d tries", layTries)
}

func loopConfig(fd int, t ops.DeviceTerms) (*unix.LoopConfig, error) {
	c := &unix.LoopConfig{Fd: uint32(fd), Size: t.Sector}
	c.Info.Offset, c.Info.Sizelimit = uint64(t.Offset), uint64(t.Length)
	// Without its own cache above that of the file a failed write is told to whoever
	// wrote. Where the file cannot be used that way the driver does without.
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if t.ReadOnly {
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if t.Scan {
		c.Info.Flags |= unix.LO_FLAGS_PARTSCAN
	}
	self, err := thisProgram()
	copy(c.Info.File_name[:len(c.Info.File_name)-1], fmt.Sprintf("%s:%s:%s", loopName, t.Way, self))
	return c, err
}

// configure makes the device in one step: nobody sees half of it.
func configure(device string, c *unix.LoopConfig) error {
	var fd int
	var err error
	for range lookTries { // its node may come late
		fd, err = openRetry(unix.AT_FDCWD, device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.ENOENT) {
			break
		}
		time.Sleep(lookWait)
	}
	if err != nil {
		return notPermitted(device, err)
	}
	err = retry(func() error { return unix.IoctlLoopConfigure(fd, c) })
	if err == nil {
		if err = recordLoop(device, c); err != nil {
			err = errors.Join(err, unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0))
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", device, err)
	}
	return errors.Join(err, unix.Close(fd))
}

// Remove implements [ops.BlockDevices].
func (Loops) Remove(device string, force bool) error {
	var err error
	for range lookTries {
		err = removeLoop(device, force)
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(lookWait)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return ops.Wrapf(err, ops.ErrBusy, ops.StatusOwned, "%s is in use", device)
	case err != nil:
		return fmt.Errorf("%s: %w", device, err)
	}
	return nil
}

// removeLoop opens the device so that nobody else can mount it meanwhile. With
// force that may be somebody's already.
func removeLoop(device string, force bool) (err error) {
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := openRetry(unix.AT_FDCWD, device, flags|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) && force {
		fd, err = openRetry(unix.AT_FDCWD, device, flags, 0)
	}
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	d, owner, err := describeLoop(fd, device)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return err
	}
	if mine, err := thisProgram(); err != nil || d.Path == "" || !d.Dead && owner != mine {
		return err
	}
	if err := retry(func() error { return unix.Fsync(fd) }); err != nil && !force {
		return err
	}
	if err := retry(func() error { return unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0) }); err != nil {
		return err
	}
	now, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) || force {
		return nil // it goes when this, or the last other descriptor, is closed
	}
	if err != nil {
		return err
	}
	now.Flags &^= unix.LO_FLAGS_AUTOCLEAR // somebody has it open: it stays
	return errors.Join(unix.EBUSY, unix.IoctlLoopSetStatus64(fd, now))
}

// User implements [ops.BlockDevices].
func (Loops) User(device string) string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		for i, w := range f {
			// A partition is /dev/loop3p1; /dev/loop30 is another device.
			rest, ok := strings.CutPrefix(w, device)
			if i > 5 && ok && (rest == "" || rest[0] == 'p') && f[i-2] == "-" {
				return "is mounted on " + mountPath.Replace(f[4])
			}
		}
	}
	return "is open in another program"
}

// mountPath undoes the escapes of the kernel's table.
var mountPath = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// Ours implements [ops.BlockDevices].
func (Loops) Ours() ([]ops.Device, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var list []ops.Device
	for _, shown := range backing {
		d, ok, err := ourLoop("/dev/" + filepath.Base(filepath.Dir(filepath.Dir(shown))))
		if err != nil {
			return nil, err
		}
		file, err := os.ReadFile(shown)
		if !ok || err != nil { // not ours, or taken away meanwhile
			continue
		}
		d.File = strings.TrimSuffix(string(file), "\n")
		list = append(list, d)
	}
	return list, nil
}

// ourLoop is what is known of a device; false for one that is not ours, or that we
// may not open.
func ourLoop(device string) (ops.Device, bool, error) {
	var d ops.Device
	err := withDevice(device, unix.O_RDONLY, func(fd int) (err error) {
		d, _, err = describeLoop(fd, device)
		return err
	})
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return ops.Device{}, false, nil
	case err != nil:
		return ops.Device{}, false, fmt.Errorf("loop device %s: %w", device, err)
	}
	return d, d.Path != "", nil
}

// describeLoop is an open device of ours and the program that laid it; a zero Device
// for one of somebody else's, or that nobody can tell whose it is. ENXIO: it has no
// file.
func describeLoop(fd int, device string) (d ops.Device, owner string, err error) {
	info, err := unix.IoctlLoopGetStatus64(fd)
	var r loopRecord
	switch {
	case err == nil:
		r.Name, r.ReadOnly = unix.ByteSliceToString(info.File_name[:]), info.Flags&unix.LO_FLAGS_READ_ONLY != 0
		d.On = ops.FileID{Dev: info.Device, Ino: info.Inode}
	case mute(err):
		r, _ = recordOf(device)
	default:
		return ops.Device{}, "", err
	}
	o, ours := parseLoopName(r.Name)
	if !ours {
		return ops.Device{}, "", nil
	}
	d.Path, d.Way, d.ReadOnly, d.Dead = device, o.way, r.ReadOnly, o.dead()
	return d, o.program(), nil
}

// mute tells that a device lies over a file that cannot be asked what it is: that of
// a mount whose daemon is dead.
func mute(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.EIO)
}

// loopOwner is who laid a device.
type loopOwner struct {
	way                       ops.Way
	process, start, namespace string
}

func parseLoopName(name string) (loopOwner, bool) {
	f := strings.Split(name, ":")
	if len(f) != 5 || f[0] != loopName {
		return loopOwner{}, false
	}
	return loopOwner{ops.Way(f[1]), f[2], f[3], f[4]}, true
}

// program is the part of a device's name that [thisProgram] gives.
func (o loopOwner) program() string { return o.process + ":" + o.start + ":" + o.namespace }

// dead tells whether the process has surely ended: of one in another namespace
// nothing is known.
func (o loopOwner) dead() bool {
	space, err := processSpace()
	if err != nil || space != o.namespace {
		return false
	}
	start, err := processStart(o.process)
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || err == nil && start != o.start
}

// thisProgram is the part of a device's name that tells who laid it.
func thisProgram() (string, error) {
	start, err := processStart("self")
	if err != nil {
		return "", err
	}
	space, err := processSpace()
	return fmt.Sprintf("%d:%s:%s", os.Getpid(), start, space), err
}

// processStart is field 22 of /proc/PID/stat; the name before it may hold anything.
func processStart(pid string) (string, error) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const start = 22 - 3
	if len(f) <= start {
		return "", fmt.Errorf("/proc/%s/stat has %d fields", pid, len(f)+2)
	}
	if f[0] == "Z" || f[0] == "X" {
		return "", fs.ErrNotExist
	}
	return f[start], nil
}

func processSpace() (string, error) {
	s, err := os.Readlink("/proc/self/ns/pid")
	return strings.Trim(strings.TrimPrefix(s, "pid:"), "[]"), err
}
