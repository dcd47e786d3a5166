package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mountLine is a vhdfs mount of this machine, as the kernel tells.
type mountLine struct {
	point  string // the mount point
	source string // host path of the folder, or of the one image, that it shows
	user   string // id of the user whose mount it is
}

// vhdfsMounts are those that this process sees, the topmost last.
func vhdfsMounts() ([]mountLine, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(b)), nil
}

// parseMounts reads the table of /proc/PID/mountinfo. Binds of a part of a mount
// are left out.
func parseMounts(table string) []mountLine {
	var list []mountLine
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		i := slices.Index(f, "-")
		if i < 5 || len(f) < i+4 || f[i+1] != "fuse.vhdfs" || f[3] != "/" {
			continue
		}
		m := mountLine{point: mountEscapes.Replace(f[4]), source: mountEscapes.Replace(f[i+2])}
		for _, o := range strings.Split(f[i+3], ",") {
			if id, ok := strings.CutPrefix(o, "user_id="); ok {
				m.user = id
			}
		}
		list = append(list, m)
	}
	return list
}

// shows is where the mount shows a host path: in the mount, relative to it.
func (m mountLine) shows(hostPath string) (string, bool) {
	if hostPath == m.source {
		return filepath.Base(hostPath), true // all of the mount, where that is a folder
	}
	return beneath(m.source, hostPath)
}

// hostPath is the host's own path of what a path in the mount stands for.
func (m mountLine) hostPath(path string) (string, bool) {
	rel, ok := beneath(m.point, path)
	if !ok {
		return "", false
	}
	if rel == filepath.Base(m.source) && !isDir(m.source) {
		return m.source, true
	}
	return filepath.Join(m.source, rel), true
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// beneath is the path of name relative to dir, where it lies in there.
func beneath(dir, name string) (string, bool) {
	if dir == name {
		return ".", true
	}
	return strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// hostPathOf is the host's own path for one that may lead into a mount of ours.
func hostPathOf(mounts []mountLine, path string) string {
	for _, m := range slices.Backward(mounts) {
		if host, ok := m.hostPath(path); ok {
			return host
		}
	}
	return path
}

// showing is the mount that shows a host path, and where; that of the smallest
// folder, if there are several.
func showing(mounts []mountLine, hostPath string) (m mountLine, rel string, ok bool) {
	for _, l := range mounts {
		if r, shown := l.shows(hostPath); shown && len(l.source) >= len(m.source) {
			m, rel, ok = l, r, true
		}
	}
	return m, rel, ok
}

func (m mountLine) String() string { return fmt.Sprintf("the mount %s of user %s", m.point, m.user) }
