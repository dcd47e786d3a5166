// Package need says what a test needs of the machine. What is missing skips the
// test at a desk, with the reason, and fails it where CI is set in the
// environment: a suite that silently did not run proves nothing.
package need

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// missing ends the test: skipped at a desk, failed where CI is set.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("needed in CI: "+format, args...)
	}
	t.Skipf("needs: "+format, args...)
}

// otherName is what a program is called elsewhere: Debian 12 has 7-Zip as 7zz.
var otherName = map[string]string{"7z": "7zz"}

// Tool is the path of a program that the test runs.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if other := otherName[name]; err != nil && other != "" {
		path, err = exec.LookPath(other)
	}
	if err != nil {
		missing(t, "the program %s (%v)", name, err)
	}
	return path
}

// Root asks for user id 0.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root (user id is %d)", os.Geteuid())
	}
}

// Fuse asks for what mounting takes: /dev/fuse, and fusermount3 for ordinary users.
func Fuse(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		missing(t, "FUSE (%v)", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		Tool(t, "fusermount3")
	}
}

// Loop asks for the right to make loop devices.
func Loop(t testing.TB) {
	t.Helper()
	Root(t)
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		missing(t, "loop devices (%v)", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Partitions asks for a kernel that reads partition tables. No package brings one, so
// that is a skip in CI too.
func Partitions(t testing.TB) {
	t.Helper()
	for _, name := range []string{"/proc/config.gz", "/boot/config-" + kernelRelease()} {
		if out, err := exec.Command("zgrep", "-qE", "^CONFIG_(EFI|MSDOS)_PARTITION=y", name).CombinedOutput(); err == nil {
			return
		} else if code := (*exec.ExitError)(nil); errors.As(err, &code) && code.ExitCode() == 1 && len(out) == 0 {
			t.Skip("needs: a kernel that reads partition tables")
		}
	}
}

func kernelRelease() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
