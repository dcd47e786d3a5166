package fs

import (
	"math"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// apart runs f on a thread that holds no file of this process, the device of the
// mount least of all. f is what the daemon asks of the kernel's side of its own
// mount: it waits there, where nothing ends it, for answers of this very daemon.
// If the daemon were killed meanwhile, a thread that kept the device open would
// wait for ever, with every user of the mount: nobody answers, and nobody closes
// the connection. Without it the connection ends, and the thread with it.
//
// f opens what it needs and closes it again; it ends with system calls alone.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end: another one does it, while this one is held.
			done <- apart(f)
			runtime.UnlockOSThread()
			return
		}
		letGo()
		done <- f()
	}()
	return <-done
}

// letGo gives the thread a table of files of its own and closes in it what is not
// the runtime's. Where the kernel does not allow that, the thread stays as it is:
// f works all the same.
func letGo() {
	if unix.CloseRange(math.MaxInt32, math.MaxInt32, unix.CLOSE_RANGE_UNSHARE) != nil && unix.Unshare(unix.CLONE_FILES) != nil {
		return
	}
	for _, fd := range ownFiles() {
		var b [32]byte
		n, err := unix.Readlink(threadFile(fd), b[:])
		// The scheduler polls, and wakes a poller, from whatever thread it is on.
		if err == nil && !strings.HasPrefix(string(b[:n]), "anon_inode:[event") {
			_ = unix.Close(fd) // nothing was written through this copy
		}
	}
}

// ownFiles are the descriptors of the calling thread, but for the first three.
func ownFiles() []int {
	dir, err := unix.Open("/proc/thread-self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(dir)
	var names []string
	b := make([]byte, 16<<10)
	for {
		n, err := unix.ReadDirent(dir, b)
		if n <= 0 || err != nil {
			break
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
	var list []int
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 && fd != dir {
			list = append(list, fd)
		}
	}
	return list
}

// threadFile is a path to what a descriptor of the calling thread is of.
func threadFile(fd int) string { return "/proc/thread-self/fd/" + strconv.Itoa(fd) }

// ownThread tells whether a request came from a thread of this process.
func ownThread(id uint32) bool {
	return unix.Access("/proc/self/task/"+strconv.Itoa(int(id)), unix.F_OK) == nil
}
