package e2e

import (
	"encoding/json"
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

// alone is an image that nobody has mounted, and the command line.
type alone struct {
	*testing.T
	image string
}

func newAlone(t *testing.T, create ...string) *alone {
	t.Helper()
	need.Loop(t)
	need.Fuse(t)
	a := &alone{t, filepath.Join(t.TempDir(), "d.vhdx")}
	a.ok(append([]string{"create", a.image, "size=64M"}, create...)...)
	t.Cleanup(func() {
		for _, m := range a.services() { // after a failure
			t.Errorf("a service was left behind: %v", m)
			if m.PID > 0 {
				_ = unix.Kill(m.PID, unix.SIGKILL)
			}
			_ = unix.Unmount(m.MountPoint, unix.MNT_DETACH)
			_ = os.Remove(m.MountPoint)
		}
	})
	return a
}

func (a *alone) ok(args ...string) string {
	a.Helper()
	out, err := Command(a, "/", args...)
	require.NoError(a, err, "%v: %s", args, out)
	return out
}

// fails runs a command that must fail, and gives its exit code.
func (a *alone) fails(args ...string) (string, int) {
	a.Helper()
	out, err := Command(a, "/", args...)
	var exit *exec.ExitError
	require.ErrorAs(a, err, &exit, "%v: %s", args, out)
	return out, exit.ExitCode()
}

type service struct {
	MountPoint, Images, Error string
	PID                       int
	Attached                  []struct{ Name, PnpDevicePath string }
}

// services are those that show the image alone.
func (a *alone) services() []service {
	a.Helper()
	var status struct{ Mounts []service }
	require.NoError(a, json.Unmarshal([]byte(a.ok("status", "--json")), &status))
	var own []service
	for _, m := range status.Mounts {
		if m.Images == a.image {
			own = append(own, m)
		}
	}
	return own
}

// attach attaches the image and gives its device and its service.
func (a *alone) attach(args ...string) (string, service) {
	a.Helper()
	var answer struct{ Device string }
	require.NoError(a, json.Unmarshal([]byte(a.ok(append([]string{"attach", "--json", a.image}, args...)...)), &answer))
	own := a.services()
	require.Len(a, own, 1)
	require.Len(a, own[0].Attached, 1)
	require.Equal(a, a.image, own[0].Attached[0].Name)
	require.Equal(a, answer.Device, own[0].Attached[0].PnpDevicePath)
	return answer.Device, own[0]
}

// gone asks that nothing is left of a service.
func (a *alone) gone(s service) {
	a.Helper()
	require.Empty(a, a.services())
	require.Eventually(a, func() bool { return unix.Kill(s.PID, 0) == unix.ESRCH }, patience, time.Millisecond)
	require.NoDirExists(a, s.MountPoint)
}

// An image is attached without a mount of one's own: a service in the background keeps
// it so until it is detached, by its name or that of its device.
func TestAttachAlone(t *testing.T) {
	need.Tool(t, "mkfs.ext4")
	a := newAlone(t)
	device, s := a.attach()
	disk := t.TempDir()
	shell(t, "mkfs.ext4 -q $1 && mount $1 $2 && echo kept > $2/file", device, disk)
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })

	_, exit := a.fails("attach", a.image)
	require.Equal(t, 6, exit, "attached already")
	out, exit := a.fails("detach", a.image)
	require.Equal(t, 6, exit)
	require.Contains(t, out, device+" is mounted on "+disk)
	require.NoError(t, unix.Unmount(disk, 0))
	require.Equal(t, []service{s}, a.services())
	a.ok("resize", a.image, "96M")
	require.Equal(t, "100663296\n", shell(t, "blockdev --getsize64 $1", device), "operations go through the service")
	a.ok("detach", device)
	a.gone(s)
	a.ok("detach", a.image) // of what is not attached
	_, exit = a.fails("detach", device)
	require.Equal(t, 3, exit)

	device, s = a.attach("readonly=true")
	require.Equal(t, "1\n", shell(t, "blockdev --getro $1", device))
	shell(t, "mount -o ro $1 $2", device, disk)
	require.Equal(t, "kept\n", readFile(t, filepath.Join(disk, "file")))
	require.NoError(t, unix.Unmount(disk, 0))
	a.ok("detach", a.image)
	a.gone(s)
}

// What cannot be attached leaves no service; a plan starts none.
func TestAttachAloneRefused(t *testing.T) {
	a := newAlone(t)
	a.ok("create", filepath.Join(filepath.Dir(a.image), "child.vhdx"), "type=differencing", "parent="+a.image)
	out, exit := a.fails("attach", a.image)
	require.Equal(t, 7, exit, "%s", out)
	require.Empty(t, a.services())
	require.Contains(t, a.ok("attach", a.image, "readonly=true", "dryrun=true"), "raw")
	require.Empty(t, a.services())
	_, exit = a.fails("attach", a.image, "readonly=true", "wait=false")
	require.Equal(t, 2, exit)
	require.Empty(t, a.services())
	left, err := filepath.Glob("/run/vhdfs/vhdfs-attach-*/child.vhdx")
	require.NoError(t, err)
	require.Empty(t, left)
}

// Where a mount shows the image it is asked, for the device too; no service is started.
func TestAttachAloneBesideAMount(t *testing.T) {
	a := newAlone(t)
	m := Start(t, filepath.Dir(a.image))
	a.ok("attach", a.image)
	require.Empty(t, a.services())
	device := readFile(t, m.Path(".vhdfs", "mounted", oneMounted(t, m)))
	_, device, _ = strings.Cut(device, `"PnpDevicePath": "`)
	device, _, _ = strings.Cut(device, `"`)
	a.ok("detach", device)
	list, err := os.ReadDir(m.Path(".vhdfs", "mounted"))
	require.NoError(t, err)
	require.Empty(t, list)
}

// The service goes on while a program has raw open, and ends after that.
func TestAttachAloneEndsWithItsLastUser(t *testing.T) {
	a := newAlone(t)
	_, s := a.attach("device=none")
	raw, err := os.OpenFile(filepath.Join(s.MountPoint, "d.vhdx", "raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	a.ok("detach", a.image) // waits a few seconds for the end
	_, err = raw.WriteAt([]byte("goes on"), 4096)
	require.NoError(t, err)
	require.NoError(t, raw.Sync())
	require.NoError(t, raw.Close())
	require.Eventually(t, func() bool { return len(a.services()) == 0 }, patience, 10*time.Millisecond)
	a.gone(s)
}

// While it goes on for a program that reads raw, the service attaches the image again.
func TestAttachAloneAgain(t *testing.T) {
	a := newAlone(t)
	_, s := a.attach("readonly=true", "device=none")
	raw, err := os.Open(filepath.Join(s.MountPoint, "d.vhdx", "raw"))
	require.NoError(t, err)
	defer raw.Close()
	a.ok("detach", a.image) // waits a few seconds for the end
	_, again := a.attach("readonly=true", "device=none")
	require.Equal(t, s.PID, again.PID)
	require.NoError(t, raw.Close())
	a.ok("detach", a.image)
	a.gone(s)
}

// After a kill the image can be attached again: device and mount of the dead go.
func TestAttachAloneKilled(t *testing.T) {
	a := newAlone(t)
	dead, s := a.attach()
	require.NoError(t, unix.Kill(s.PID, unix.SIGKILL))
	require.Eventually(t, func() bool { return len(a.services()) == 1 && a.services()[0].Error != "" }, patience, 10*time.Millisecond)
	was := lies(dead)
	require.Contains(t, was, s.MountPoint)
	_, again := a.attach()
	require.NotEqual(t, s.MountPoint, again.MountPoint)
	require.NotEqual(t, was, lies(dead))
	require.NoDirExists(t, s.MountPoint)
	a.ok("detach", a.image)
	a.gone(again)
}

// Whoever asked for the service may be killed at any moment: what it did not attach is
// nobody's, and the service ends.
func TestAttachAloneAskerKilled(t *testing.T) {
	a := newAlone(t)
	for i := range 8 {
		cmd := exec.Command(program, "attach", a.image, "device=none")
		require.NoError(t, cmd.Start())
		kill := time.AfterFunc(time.Duration(i*i)*5*time.Millisecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // it was killed, or is done
		kill.Stop()
		var left []service
		require.Eventually(t, func() bool {
			left = a.services()
			return a.processes() == 0 || len(left) == 1 && len(left[0].Attached) == 1
		}, patience, 10*time.Millisecond, "a service with nothing attached goes on")
		if len(left) > 0 {
			a.ok("detach", a.image)
			a.gone(left[0])
		}
	}
}

// processes is how many programs run that were told of the image.
func (a *alone) processes() int {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(a, err)
	n := 0
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err == nil && strings.Contains(string(b), a.image) { // else it ended meanwhile
			n++
		}
	}
	return n
}

// A direct device that a killed service left is detached by its name, without a service.
func TestDetachOfADirectDeviceThatWasLeft(t *testing.T) {
	a := newAlone(t, "type=fixed")
	device, s := a.attach("direct=true")
	require.Equal(t, a.image, lies(device))
	require.NoError(t, unix.Kill(s.PID, unix.SIGKILL))
	require.Eventually(t, func() bool { return len(a.services()) == 1 && a.services()[0].Error != "" }, patience, 10*time.Millisecond)
	require.Equal(t, a.image, lies(device), "it goes on")
	a.ok("detach", device)
	require.NotEqual(t, a.image, lies(device))
	_, exit := a.fails("detach", device)
	require.Equal(t, 3, exit)
	_, again := a.attach() // which takes away what is left of the service
	require.NoDirExists(t, s.MountPoint)
	a.ok("detach", a.image)
	a.gone(again)
}

// Of several devices the one is detached that was named, while the service runs and
// after it was killed.
func TestDetachOfOneOfTwoDevices(t *testing.T) {
	need.Loop(t)
	dir := t.TempDir()
	m := Start(t, dir)
	m.Shell(t, "for n in a b; do echo path=$n.vhd type=fixed size=16M > .vhdfs/create; done")
	device := map[string]string{"a": attach(t, m, "a.vhd", "direct=true"), "b": attach(t, m, "b.vhd", "direct=true")}
	require.NotEqual(t, device["a"], device["b"])
	detachOne := func(name, left string) {
		t.Helper()
		out, err := Command(t, "/", "detach", device[name])
		require.NoError(t, err, out)
		require.NotEqual(t, filepath.Join(dir, name+".vhd"), lies(device[name]))
		require.Equal(t, filepath.Join(dir, left+".vhd"), lies(device[left]))
	}
	detachOne("b", "a")
	device["b"] = attach(t, m, "b.vhd", "direct=true")
	detachOne("a", "b")
	device["a"] = attach(t, m, "a.vhd", "direct=true")

	require.NoError(t, m.cmd.Process.Kill())
	m.end()
	require.NoError(t, unix.Unmount(m.Dir, unix.MNT_DETACH))
	detachOne("b", "a")
	Start(t, dir) // takes a's away
	require.NotEqual(t, filepath.Join(dir, "a.vhd"), lies(device["a"]))
}

// Nothing is guessed of a device whose service does not answer, or was killed: the next
// attach takes away what is over the raw of a dead one.
func TestDetachOfADeviceThatNobodyAnswersFor(t *testing.T) {
	a := newAlone(t, "type=fixed")
	device, s := a.attach("direct=true")
	require.NoError(t, unix.Kill(s.PID, unix.SIGSTOP))
	t.Cleanup(func() { _ = unix.Kill(s.PID, unix.SIGCONT) }) // when the test failed
	out, exit := a.fails("detach", device)
	require.NoError(t, unix.Kill(s.PID, unix.SIGCONT))
	require.Equal(t, 3, exit, out)
	require.Contains(t, out, "no image is attached as this device; of "+s.MountPoint+" nothing is known: ")
	require.Equal(t, a.image, lies(device))
	a.ok("detach", device)
	a.gone(s)

	device, s = a.attach()
	require.NoError(t, unix.Kill(s.PID, unix.SIGKILL))
	require.Eventually(t, func() bool { return len(a.services()) == 1 && a.services()[0].Error != "" }, patience, 10*time.Millisecond)
	out, exit = a.fails("detach", device)
	require.Equal(t, 3, exit, out)
	require.Contains(t, out, "no image is attached as this device; of "+s.MountPoint+" nothing is known: ")
	_, again := a.attach()
	require.NoDirExists(t, s.MountPoint)
	a.ok("detach", a.image)
	a.gone(again)
}
