package kill

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/budget"
	"vhdfs/test/e2e"
	"vhdfs/test/mount"
	"vhdfs/test/need"
)

// fio writes to the device of an attached dynamic disk and asks for a flush after each
// write, and the daemon is killed meanwhile. With the next mount the device is gone, the
// image has no error, and fio finds, by its own checksums, every block whose flush had
// returned. One cycle for fifty kills of the other test.
func TestKilledUnderAnAttachedDevice(t *testing.T) {
	need.Fuse(t)
	need.Loop(t)
	need.Tool(t, "fio")
	seed, cycles := mount.Seed(t), max(1, mount.Count(t, "VHDFS_KILLS", kills)/50)
	t.Parallel()
	done := budget.StartAt(t, "kill attached", seed, "kills", "flushes")
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	m := e2e.Start(t, dir)
	require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte("path=d.vhdx size=64M"), 0))
	for n := range cycles {
		device := attached(t, m)
		w := &writer{t: t, dir: t.TempDir(), seed: rng.Uint32(), direct: n % 2}
		before := w.written(device)
		cmd := w.start(device)
		require.Eventually(t, func() bool { return w.written(device) > before }, 20*time.Second, time.Millisecond)
		time.Sleep(time.Duration(rng.Int64N(int64(longest))))
		m.Crash(t)
		require.Error(t, cmd.Wait(), "fio ended before the kill: %s", &w.said)

		mount.Check(t, filepath.Join(dir, "d.vhdx"))
		m = e2e.Start(t, dir)
		require.Eventually(t, func() bool { return !strings.HasSuffix(under(device), "/d.vhdx/raw") },
			20*time.Second, 10*time.Millisecond, "%s is stuck over %s", device, under(device))
		flushed := w.flushed()
		if flushed > 0 {
			device := attached(t, m)
			out, err := w.verify(device, flushed)
			require.NoError(t, err, "%d blocks: %s", flushed, out)
			w.lose(device)
			out, err = w.verify(device, flushed)
			require.Error(t, err, "a block of %d that is not there is not missed: %s", flushed, out)
			require.NoError(t, os.WriteFile(m.Path("d.vhdx", "detach"), []byte("1"), 0))
		}
		done.Add("kills", 1)
		done.Add("flushes", flushed)
	}
}

// attached attaches the image and gives its device.
func attached(t *testing.T, m *e2e.Mount) string {
	t.Helper()
	require.NoError(t, os.WriteFile(m.Path("d.vhdx", "attach"), []byte("1"), 0))
	b, err := os.ReadFile(m.Path("d.vhdx", "attach"))
	require.NoError(t, err)
	var answer struct{ Device string }
	require.NoError(t, json.Unmarshal(b, &answer))
	require.NotEmpty(t, answer.Device, "%s", b)
	return answer.Device
}

// under is the path that the kernel shows of a device's file.
func under(device string) string {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// writer is fio at work: random blocks, each written once and flushed. The same seed
// makes the same blocks in the same order.
type writer struct {
	t      *testing.T
	dir    string // for its logs
	seed   uint32
	direct int
	said   bytes.Buffer // to be read after its end
}

// written is how many writes a device has had, ever.
func (w *writer) written(device string) int {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "stat"))
	require.NoError(w.t, err)
	n, err := strconv.Atoi(strings.Fields(string(b))[4])
	require.NoError(w.t, err)
	return n
}

func (w *writer) fio(device string, args ...string) *exec.Cmd {
	cmd := exec.Command("fio", append([]string{
		"--name=j", "--filename=" + device, "--rw=randwrite", "--bs=4k", "--size=64M", "--ioengine=psync", "--fsync=1",
		"--verify=crc32c", "--verify_fatal=1", "--allow_file_create=0", fmt.Sprintf("--randseed=%d", w.seed), fmt.Sprintf("--direct=%d", w.direct),
	}, args...)...)
	cmd.Dir = w.dir
	return cmd
}

func (w *writer) start(device string) *exec.Cmd {
	w.t.Helper()
	cmd := w.fio(device, "--do_verify=0", "--write_lat_log=log", "--log_offset=1")
	cmd.Stdout, cmd.Stderr = &w.said, &w.said
	require.NoError(w.t, cmd.Start())
	return cmd
}

// flushed is how many blocks were durable: each write that fio has noted came after
// the flush of the one before.
func (w *writer) flushed() int {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "log_lat.1.log"))
	require.NoError(w.t, err, "%s", &w.said)
	return max(0, bytes.Count(b, []byte("\n"))-1)
}

// verify looks for the first blocks that were written.
func (w *writer) verify(device string, blocks int) ([]byte, error) {
	return w.fio(device, "--verify_only=1", fmt.Sprintf("--number_ios=%d", blocks)).CombinedOutput()
}

// lose takes the first block away that was written: what a flush that did nothing could
// have cost.
func (w *writer) lose(device string) {
	w.t.Helper()
	log, err := os.ReadFile(filepath.Join(w.dir, "log_lat.1.log"))
	require.NoError(w.t, err)
	line, _, _ := strings.Cut(string(log), "\n")
	fields := strings.Split(line, ",") // time, latency, direction, block size, offset
	off, err := strconv.ParseInt(strings.TrimSpace(fields[4]), 10, 64)
	require.NoError(w.t, err, "%s", line)
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	require.NoError(w.t, err)
	_, err = f.WriteAt(make([]byte, 4096), off)
	require.NoError(w.t, errors.Join(err, f.Sync(), f.Close()))
}
