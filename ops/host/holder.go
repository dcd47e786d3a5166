package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// holder names who holds a lock on byte b of a file, for a message. Locks of
// open file descriptions have no process in /proc/locks; the descriptors of a
// process list them, where we may read those. mine is our own descriptor.
func holder(id ops.FileID, b int64, mine int) string {
	self := fmt.Sprintf("/proc/%d/fdinfo/%d", os.Getpid(), mine)
	infos, err := filepath.Glob("/proc/[0-9]*/fdinfo/[0-9]*")
	if err != nil {
		return "another program"
	}
	for _, name := range infos {
		if name == self {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			continue // of another user, or gone
		}
		for line := range strings.Lines(string(text)) {
			if lock, ok := strings.CutPrefix(line, "lock:"); ok && lockCovers(lock, id, b) {
				return process(strings.Split(name, "/")[2])
			}
		}
	}
	return holderByPID(id, b)
}

// holderByPID looks for locks of processes, which old programs take.
func holderByPID(id ops.FileID, b int64) string {
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return "another program"
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if lockCovers(line, id, b) && fields[4] != "-1" {
			return process(fields[4])
		}
	}
	return "another program"
}

// lockCovers reads a line such as "1: OFDLCK ADVISORY READ -1 fd:01:4711 100 103".
func lockCovers(line string, id ops.FileID, b int64) bool {
	f := strings.Fields(line)
	if len(f) < 8 || f[5] != fmt.Sprintf("%02x:%02x:%d", unix.Major(id.Dev), unix.Minor(id.Dev), id.Ino) {
		return false
	}
	first, err := strconv.ParseInt(f[6], 10, 64)
	if err != nil || b < first {
		return false
	}
	last, err := strconv.ParseInt(f[7], 10, 64)
	return f[7] == "EOF" || err == nil && b <= last
}

// process is a program's name and id.
func process(pid string) string {
	if pid == strconv.Itoa(os.Getpid()) {
		return "another open handle of this program"
	}
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("%q (process %s)", strings.TrimSpace(string(name)), pid)
}
