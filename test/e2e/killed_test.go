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
