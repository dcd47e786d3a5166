package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// device is the kernel's end of a mount: requests are read from it, replies and
// notifications are written to it, one message each with one call.
type device struct {
	gofs.ServerCallbacks // nil: InodeNotify is the only notification that is ever sent

	file *os.File
	conn syscall.RawConn
}

// openDevice mounts: as root with mount(2), else with fusermount3. The mount
// answers when the device is served.
func openDevice(mountPoint string, o *fuse.MountOptions) (*device, error) {
	mount := mountByHelper
	if os.Geteuid() == 0 {
		mount = mountDirectly
	}
	fd, err := mount(mountPoint, o)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "/dev/fuse")
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &device{file: file, conn: conn}, nil
}

// kernelOptions are the options that the kernel itself knows.
func kernelOptions(o *fuse.MountOptions) []string {
	list := append([]string{fmt.Sprintf("max_read=%d", o.MaxWrite)}, o.Options...)
	if o.AllowOther {
		list = append(list, "allow_other")
	}
	return list
}

func mountDirectly(mountPoint string, o *fuse.MountOptions) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(mountPoint, &st); err != nil {
		return -1, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	data := append([]string{
		fmt.Sprintf("fd=%d", fd),
		fmt.Sprintf("rootmode=%o", st.Mode&unix.S_IFMT),
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
	}, kernelOptions(o)...)
	err = unix.Mount(o.FsName, mountPoint, "fuse."+o.Name, unix.MS_NOSUID|unix.MS_NODEV, strings.Join(data, ","))
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// mountByHelper lets fusermount3 mount, which passes the device over a socket.
func mountByHelper(mountPoint string, o *fuse.MountOptions) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()
	plain := strings.NewReplacer(`\`, `\\`, ",", `\,`)
	options := append(kernelOptions(o), "nosuid", "nodev", "fsname="+plain.Replace(o.FsName), "subtype="+plain.Replace(o.Name))
	helper := exec.Command("fusermount3", "-o", strings.Join(options, ","), "--", mountPoint)
	helper.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	helper.ExtraFiles = []*os.File{theirs}
	out, err := helper.CombinedOutput()
	if err := errors.Join(err, theirs.Close()); err != nil {
		return -1, fmt.Errorf("fusermount3: %w: %q", err, out)
	}
	return receiveDescriptor(pair[0])
}

func receiveDescriptor(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("fusermount3 passed no device")
}

// unmount takes the mount away, lazily even when it is in use.
func unmount(mountPoint string, lazily bool) error {
	if os.Geteuid() == 0 {
		flags := 0
		if lazily {
			flags = unix.MNT_DETACH
		}
		return unix.Unmount(mountPoint, flags)
	}
	args := []string{"-u", "--", mountPoint}
	if lazily {
		args = append([]string{"-z"}, args...)
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %q", err, out)
	}
	return nil
}

// pending tells whether a request waits to be read.
func (d *device) pending() bool {
	set := []unix.PollFd{{Events: unix.POLLIN}}
	var err error
	gone := d.conn.Control(func(fd uintptr) {
		set[0].Fd = int32(fd)
		_, err = unix.Poll(set, 0)
	})
	return gone == nil && err == nil && set[0].Revents&unix.POLLIN != 0
}

// close gives the device back when nobody reads or writes it any more.
func (d *device) close() error { return d.file.Close() }

// InodeNotify makes the kernel write back and drop the pages that it has of
// [off, off+n) of a node; n 0 means up to the end. It waits for that.
func (d *device) InodeNotify(node uint64, off, n int64) fuse.Status {
	var msg struct {
		head fuse.OutHeader
		what fuse.NotifyInvalInodeOut
	}
	msg.head = fuse.OutHeader{Length: uint32(unsafe.Sizeof(msg)), Status: -fuse.NOTIFY_INVAL_INODE}
	msg.what = fuse.NotifyInvalInodeOut{Ino: node, Off: off, Length: n}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&msg)), unsafe.Sizeof(msg))
	var err error
	if gone := d.conn.Control(func(fd uintptr) { _, err = unix.Write(int(fd), b) }); gone != nil {
		return fuse.ENODEV
	}
	return fuse.ToStatus(err)
}

// refusePoll lets the kernel ask once whether files of the mount can be polled,
// to be told no for all of them. The runtime polls what it opens, in a way that
// can keep the answer to such a request from being given.
func refusePoll(mountPoint string) error {
	fd, err := unix.Open(mountPoint+"/.go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0) // go-fuse's own name for it
	if err != nil {
		return err
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return errors.Join(err, unix.Close(fd))
}
