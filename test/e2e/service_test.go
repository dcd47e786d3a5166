package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// writers write numbered sectors through raw, each fsynced before it counts as
// acknowledged, until the mount ends under them.
type writers struct {
	sync.WaitGroup
	acked [4]atomic.Int64
}

const sectorsOfAWriter = 4096

func (w *writers) start(t *testing.T, raw string) {
	for i := range w.acked {
		f, err := os.OpenFile(raw, os.O_RDWR, 0)
		require.NoError(t, err)
		w.Go(func() {
			defer f.Close()
			sector := make([]byte, 512)
			for n := int64(1); ; n++ {
				binary.BigEndian.PutUint64(sector, uint64(n))
				if _, err := f.WriteAt(sector, w.place(i, n)); err != nil {
					return
				}
				if f.Sync() != nil {
					return
				}
				w.acked[i].Store(n)
			}
		})
	}
}

// place spreads the sectors of a writer over the disk.
func (w *writers) place(writer int, n int64) int64 {
	slot := (n * 7919) % sectorsOfAWriter
	return (slot*int64(len(w.acked)) + int64(writer)) * 4096
}

// check reads what was acknowledged.
func (w *writers) check(t *testing.T, raw string) {
	t.Helper()
	f, err := os.Open(raw)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 8)
	for i := range w.acked {
		acked := w.acked[i].Load()
		require.Positive(t, acked, "writer %d", i)
		for n := max(1, acked-sectorsOfAWriter+1); n <= acked; n++ {
			_, err := f.ReadAt(b, w.place(i, n))
			require.NoError(t, err)
			got := int64(binary.BigEndian.Uint64(b))
			require.True(t, got >= n && (got-n)%sectorsOfAWriter == 0, "writer %d: sector %d holds %d", i, n, got)
		}
	}
}

// A service that is told to stop while programs write and jobs run: refused, with
// nothing disturbed, then by force. Whatever was acknowledged is there, no job has left
// anything behind, and the daemon's exit code is 0.
func TestStopWhileWritersAndJobsRun(t *testing.T) {
	for _, request := range [][3]string{{"stop", "1", "force=true"}, {"request-state-change", "shutdown", "4 force=true"}} {
		t.Run(request[0], func(t *testing.T) {
			dir := t.TempDir()
			bigDisk(t, dir)
			out, err := Command(t, dir, "create", "disk.vhdx", "size=256M", "block=1M")
			require.NoError(t, err, out)
			m := Start(t, dir)
			var w writers
			w.start(t, m.Path("disk.vhdx", "raw"))
			require.Eventually(t, func() bool {
				for i := range w.acked {
					if w.acked[i].Load() < 20 {
						return false
					}
				}
				return true
			}, patience, time.Millisecond)

			undisturbed := begun(t, m, "bash", "-c", "echo path=first.vhdx > big.vhd/convert")
			require.Equal(t, "EBUSY", m.answer(t, ".vhdfs/"+request[0], request[1]))
			out, err = Command(t, dir, "umount", m.Dir)
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			require.Equal(t, 6, exit.ExitCode(), out)
			require.Contains(t, out, dir+"/disk.vhdx")
			require.NoError(t, undisturbed.Wait(), "a stop that is refused cancels nothing")
			waiting := begun(t, m, "bash", "-c", "echo path=n.vhdx > big.vhd/convert")

			require.Equal(t, "", m.answer(t, ".vhdfs/"+request[0], request[2]))
			log := m.end()
			require.True(t, m.cmd.ProcessState.Success(), log)
			require.NotContains(t, log, "panic")
			w.Wait()
			require.Error(t, waiting.Wait())
			require.NoFileExists(t, filepath.Join(dir, "n.vhdx"))
			require.Empty(t, leftovers(t, dir))
			require.Empty(t, mountsBelow(filepath.Dir(m.Dir)))

			out, err = Command(t, dir, "check", "disk.vhdx")
			require.NoError(t, err, out)
			require.Contains(t, out, "0 errors, 0 warnings")
			again := Start(t, dir)
			w.check(t, again.Path("disk.vhdx", "raw"))
		})
	}
}

// Commands of the service from a shell, on a mount of one's own.
func TestServiceFromShells(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	for _, shell := range []string{"bash", "dash"} {
		need.Tool(t, shell)
		out, err := m.Try(t, shell, `
			echo > .vhdfs/start && jq -c . .vhdfs/start
			echo 2 > .vhdfs/request-state-change && echo enabled
			echo 3 > .vhdfs/request-state-change 2>/dev/null || jq -c '[.ReturnValue,.Errno]' .vhdfs/request-state-change
			echo child.avhdx > .vhdfs/find 2>/dev/null || jq -c '[.ReturnValue,.Errno,.Image]' .vhdfs/find
			ls .vhdfs/mounted | wc -l
			echo . > .vhdfs/validate-persistent-reservations 2>/dev/null || true
			jq -r .Operation .vhdfs/validate-persistent-reservations
			"$VHDFS" status | grep -F "$MNT shows $IMAGES, user 0, process"
			"$VHDFS" start "$MNT"`)
		require.NoError(t, err, out)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		require.Equal(t, []string{`{"Operation":"StartService","ReturnValue":0}`, "enabled", `[1,"EOPNOTSUPP"]`, `[32789,"ENOENT",null]`, "0",
			"ValidatePersistentReservationSupport", m.Dir + " shows " + dir + ", user 0, process " + strconv.Itoa(m.cmd.Process.Pid), "start: OK"}, lines)
	}
	out, err := m.Try(t, "bash", `exec 3<>.vhdfs/stop; echo 1 >&3; cat <&3`)
	require.NoError(t, err, out)
	require.Equal(t, `{"Operation":"StopService","ReturnValue":0}`+"\n", out)
	log := m.end()
	require.True(t, m.cmd.ProcessState.Success(), log)
}

// Who left the mount by umount(8) has everything flushed, and the daemon's success.
func TestUmount8(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	chainOfTwo(t, dir)
	m := Start(t, dir)
	m.Shell(t, "printf umount8 | dd of=child.avhdx/raw conv=notrunc status=none")
	require.Eventually(t, func() bool { return unix.Unmount(m.Dir, 0) == nil }, patience, 10*time.Millisecond)
	log := m.end()
	require.True(t, m.cmd.ProcessState.Success(), log)
	again := Start(t, dir)
	require.Equal(t, "umount8", again.Shell(t, "head -c 7 child.avhdx/raw"))
}

// A service manager hears of the beginning and of the end, in whatever way that comes.
func TestServiceManagerIsTold(t *testing.T) {
	need.Fuse(t)
	dir := t.TempDir()
	chainOfTwo(t, dir)
	for name, end := range map[string]func(t *testing.T, cmd *exec.Cmd, mnt string){
		"signal": func(t *testing.T, cmd *exec.Cmd, _ string) { require.NoError(t, cmd.Process.Signal(unix.SIGTERM)) },
		"umount": func(t *testing.T, _ *exec.Cmd, mnt string) {
			out, err := Command(t, dir, "umount", mnt)
			require.NoError(t, err, out)
		},
		"stop": func(t *testing.T, _ *exec.Cmd, mnt string) {
			require.NoError(t, os.WriteFile(filepath.Join(mnt, ".vhdfs", "stop"), []byte("1"), 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			address := fmt.Sprintf("@vhdfs-test-%d-%s", os.Getpid(), name) // abstract, as containers have it
			conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
			hear := func() string {
				b := make([]byte, 100)
				n, err := conn.Read(b)
				require.NoError(t, err)
				return string(b[:n])
			}
			mnt := t.TempDir()
			var log bytes.Buffer
			cmd := exec.Command(program, "mount", dir, mnt)
			cmd.Stderr = io.MultiWriter(&log)
			cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+address)
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }) // when the test failed
			require.Equal(t, "READY=1", hear())
			require.FileExists(t, filepath.Join(mnt, "base.vhdx", "raw"))
			end(t, cmd, mnt)
			require.Equal(t, "STOPPING=1", hear())
			require.NoError(t, cmd.Wait(), "%s", log.String())
		})
	}
}
