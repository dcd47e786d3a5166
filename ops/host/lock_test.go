package host

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/ops"
	"vhdfs/test/need"
)

// plainFile is a file to lock.
func plainFile(t *testing.T) *Dir {
	t.Helper()
	d, f := openTemp(t)
	require.NoError(t, f.Close())
	return d
}

// vhdxImage is a disk of 1 MiB by QEMU, whose formats lock as ours do; its raw
// driver shares everything.
func vhdxImage(t *testing.T) (*Dir, string) {
	t.Helper()
	d := plainFile(t)
	out, err := exec.Command(need.Tool(t, "qemu-img"), "create", "-f", "vhdx", d.Path("a"), "1M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return d, d.Path("a")
}

func openLocked(t *testing.T, d *Dir, write bool) ops.File {
	t.Helper()
	f, err := d.Open("a", ops.Write)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, f.Lock(write))
	return f
}

func TestHandlesExcludeEachOther(t *testing.T) {
	d := plainFile(t)
	r1, r2 := openLocked(t, d, false), openLocked(t, d, false)
	w, err := d.Open("a", ops.Write)
	require.NoError(t, err)
	defer w.Close()
	err = w.Lock(true)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.ErrorContains(t, err, "another open handle of this program")
	require.ErrorIs(t, r1.Lock(true), ops.ErrBusy)
	require.NoError(t, r2.Close())
	require.NoError(t, r1.Lock(true), "a failed upgrade left locks behind, or lost its own")
	require.ErrorIs(t, w.Lock(false), ops.ErrBusy)
	require.NoError(t, r1.Lock(false), "asking for less changes nothing")
	require.ErrorIs(t, w.Lock(false), ops.ErrBusy)
	require.NoError(t, r1.Close())
	require.NoError(t, w.Lock(true))
}

// QEMU's programs see our locks as they see their own.
func TestQEMUBesideUs(t *testing.T) {
	img := need.Tool(t, "qemu-img")
	qio := need.Tool(t, "qemu-io")
	for _, tt := range []struct {
		name          string
		write         bool
		reads, writes bool // what QEMU may do
	}{
		{"reader", false, true, false},
		{"writer", true, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, path := vhdxImage(t)
			f := openLocked(t, d, tt.write)
			runs := func(want bool, args ...string) {
				out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
				require.Equal(t, want, err == nil, "%v: %s", args, out)
				if !want {
					require.Contains(t, string(out), "lock", "%v", args)
				}
			}
			runs(tt.reads, img, "info", "-f", "vhdx", path)
			runs(true, img, "info", "-U", "-f", "vhdx", path)
			runs(tt.writes, qio, "-f", "vhdx", "-c", "write 0 512", path)
			require.NoError(t, f.Close())
			runs(true, qio, "-f", "vhdx", "-c", "write 0 512", path)
		})
	}
}

// We see QEMU's locks, and name it.
func TestWeBesideQEMU(t *testing.T) {
	qio := need.Tool(t, "qemu-io")
	for _, tt := range []struct {
		name          string
		args          []string
		reads, writes bool // what we may do
	}{
		{"reader", []string{"-r"}, true, false},
		{"writer", nil, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, path := vhdxImage(t)
			stop := startQemuIO(t, qio, append(tt.args, "-f", "vhdx", path)...)
			for _, c := range []struct{ write, want bool }{{false, tt.reads}, {true, tt.writes}} {
				f, err := d.Open("a", ops.Write)
				require.NoError(t, err)
				err = f.Lock(c.write)
				require.NoError(t, f.Close())
				if c.want {
					require.NoError(t, err)
					continue
				}
				require.ErrorIs(t, err, ops.ErrBusy)
				if os.Geteuid() == 0 {
					require.ErrorContains(t, err, `"qemu-io" (process `)
				}
			}
			stop()
			openLocked(t, d, true)
		})
	}
}

// startQemuIO runs qemu-io until the image is open; the result ends it.
func startQemuIO(t *testing.T, qio string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(qio, args...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.WriteString(in, "length\n")
	require.NoError(t, err)
	scan := bufio.NewScanner(out)
	for scan.Scan() && !strings.Contains(scan.Text(), "1 MiB") {
	}
	done := false
	stop = func() {
		if !done {
			done = true
			require.NoError(t, in.Close())
			require.NoError(t, cmd.Wait())
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestLockLinesOfTheKernel(t *testing.T) {
	id := ops.FileID{Dev: 0xfd01, Ino: 4711}
	for line, want := range map[string]bool{
		"1: OFDLCK  ADVISORY  READ -1 fd:01:4711 201 201":  true,
		"1: OFDLCK  ADVISORY  READ -1 fd:01:4711 200 203":  true,
		"1: OFDLCK  ADVISORY  READ -1 fd:01:4711 0 EOF":    true,
		"1: OFDLCK  ADVISORY  READ -1 fd:01:4711 202 EOF":  false,
		"1: OFDLCK  ADVISORY  READ -1 fd:01:4711 100 200":  false,
		"1: OFDLCK  ADVISORY  READ -1 fd:01:4712 201 201":  false,
		"1: OFDLCK  ADVISORY  READ -1 fd:02:4711 201 201":  false,
		"1: -> OFDLCK ADVISORY READ -1 fd:01:4711 201 201": false,
		"1: OFDLCK": false,
		"":          false,
	} {
		require.Equal(t, want, lockCovers(line, id, 201), line)
	}
}

// The bytes are a protocol with other programs: they are spelt out here.
func TestLockBytes(t *testing.T) {
	require.Equal(t, []int64{100, 201, 203}, readerLocks.bytes())
	require.Equal(t, []int64{100, 101, 103, 201, 203}, writerLocks.bytes())
	require.Equal(t, []int64{101, 103, 200}, readerLocks.conflicts())
	require.Equal(t, []int64{101, 103, 200, 201, 203}, writerLocks.conflicts())
}

// A child process that is being started has every open file for a moment. What was
// closed meanwhile is not locked any more.
func TestCloseGivesLocksBackThoughAChildHasTheFile(t *testing.T) {
	for _, write := range []bool{false, true} {
		d := plainFile(t)
		f, err := d.Open("a", ops.Write)
		require.NoError(t, err)
		require.NoError(t, f.Lock(write))
		child := -1
		require.NoError(t, f.(*File).control("dup", func(fd int) (err error) { child, err = unix.Dup(fd); return err }))
		require.NoError(t, f.Close())
		require.ErrorIs(t, f.Close(), os.ErrClosed)
		openLocked(t, d, true)
		require.NoError(t, unix.Close(child))
	}
}
