package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// heldEnv tells a run of this very program which mount to hold until it is killed.
const heldEnv = "VHDFS_TEST_HOLDS"

// Daemons of tests end with them, and their mounts do, even when they are killed.
func TestDaemonsEndWithTheirTests(t *testing.T) {
	if whose := os.Getenv(heldEnv); whose != "" {
		hold(t, whose)
		return
	}
	need.Fuse(t)
	self, err := os.Executable()
	require.NoError(t, err)
	for _, whose := range []string{"root", "nobody"} {
		t.Run(whose, func(t *testing.T) {
			if whose == "nobody" {
				need.Root(t)
				need.Tool(t, "fusermount3")
			}
			test := exec.Command(self, "-test.run=^TestDaemonsEndWithTheirTests$")
			test.Env = append(os.Environ(), heldEnv+"="+whose)
			out, err := test.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, test.Start())
			mnt := ""
			for lines := bufio.NewScanner(out); mnt == "" && lines.Scan(); {
				_, mnt, _ = strings.Cut(lines.Text(), heldEnv+"=")
			}
			t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }) // when it went on
			require.NoError(t, test.Process.Kill())
			require.Error(t, test.Wait())
			require.NotEmpty(t, mnt)
			require.Eventually(t, func() bool { return len(mountsBelow(filepath.Dir(mnt))) == 0 }, patience, 10*time.Millisecond)
		})
	}
}

// A daemon goes on when nobody reads its log any more, and ends as ever.
func TestDaemonOutlivesWhoReadsItsLog(t *testing.T) {
	need.Fuse(t)
	log, theirs, err := os.Pipe()
	require.NoError(t, err)
	m := &Mount{Dir: t.TempDir(), Images: t.TempDir()}
	m.cmd = exec.Command(program, "mount", "--log-level", "debug", m.Images, m.Dir)
	m.cmd.Stderr = theirs
	require.NoError(t, startReady(t, m.cmd))
	t.Cleanup(func() { _ = unix.Unmount(m.Dir, unix.MNT_DETACH) }) // when it died
	require.NoError(t, theirs.Close())
	require.NoError(t, log.Close())
	m.Shell(t, `echo path=d.vhdx size=4M > .vhdfs/create; echo 8M > d.vhdx/resize; printf abc > d.vhdx/raw`)
	require.NoError(t, m.cmd.Process.Signal(unix.SIGTERM))
	require.NoError(t, m.cmd.Wait())
	require.Empty(t, mountsBelow(filepath.Dir(m.Dir)))
}

// hold mounts, says where, and waits to be killed.
func hold(t *testing.T, whose string) {
	mnt := ""
	if whose == "nobody" {
		u := newOrdinary(t, func(string) {})
		u.mount(t)
		mnt = u.mnt
	} else {
		mnt = Start(t, t.TempDir()).Dir
	}
	fmt.Printf("%s=%s\n", heldEnv, mnt)
	time.Sleep(patience)
}
