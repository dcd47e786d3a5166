package e2e

import (
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

// attachCases are images with the way in which they are attached.
var attachCases = []struct{ name, create, attach, way string }{
	{"dynamic VHDX", "path=d.vhdx size=64M", "1", "raw"},
	{"dynamic VHDX with sectors of 4096", "path=d4.vhdx size=64M sector=4096", "1", "raw"},
	{"fixed VHDX", "path=f.vhdx size=64M type=fixed", "1", "raw"},
	{"dynamic VHD", "path=d.vhd size=64M", "1", "raw"},
	{"fixed VHD", "path=f.vhd size=64M type=fixed", "1", "raw"},
	{"fixed VHDX, direct", "path=e.vhdx size=64M type=fixed", "direct=true", "direct"},
	{"fixed VHD, direct", "path=e.vhd size=64M type=fixed", "direct=true", "direct"},
}

// A file system that was made on the device is in the image, after a detach and a
// new mount.
func TestAttachKeepsWhatIsWritten(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "mkfs.ext4")
	dir := t.TempDir()
	m := Start(t, dir)
	for _, c := range attachCases {
		t.Run(c.name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte(c.create), 0))
			image, _, _ := strings.Cut(strings.TrimPrefix(c.create, "path="), " ")
			device := attach(t, m, image, c.attach)
			require.Contains(t, readFile(t, m.Path(image, "attach")), `"Way":"`+c.way+`"`)
			require.Contains(t, readFile(t, m.Path(".vhdfs", "mounted", oneMounted(t, m))), device)

			// Nobody else may write, or attach it again.
			_, err := os.OpenFile(m.Path(image, "raw"), os.O_RDWR, 0)
			require.ErrorIs(t, err, unix.EBUSY)
			require.ErrorIs(t, os.WriteFile(m.Path(image, "attach"), []byte("1"), 0), unix.EBUSY)

			disk := t.TempDir()
			shell(t, "mkfs.ext4 -q $1 && mount $1 $2", device, disk)
			t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }) // after a failure
			require.NoError(t, os.WriteFile(filepath.Join(disk, "file"), []byte("kept"), 0o600))
			require.ErrorIs(t, os.WriteFile(m.Path(image, "detach"), []byte("1"), 0), unix.EBUSY)
			require.Contains(t, readFile(t, m.Path(image, "detach")), "is mounted on "+disk)
			require.NoError(t, unix.Unmount(disk, 0))
			detach(t, m, image)
			require.NotContains(t, shell(t, "losetup -a"), m.Dir)
			require.NotContains(t, shell(t, "losetup -a"), dir)
			detach(t, m, image) // of what is not attached
		})
	}
	m.Stop(t)
	again := Start(t, dir)
	for _, c := range attachCases {
		image, _, _ := strings.Cut(strings.TrimPrefix(c.create, "path="), " ")
		device := attach(t, again, image, "readonly=true")
		disk := t.TempDir()
		shell(t, "fsck.ext4 -fn $1 && mount -o ro $1 $2", device, disk)
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
		require.Equal(t, "kept", readFile(t, filepath.Join(disk, "file")), c.name)
		require.NoError(t, unix.Unmount(disk, 0))
	}
	out, err := Command(t, dir, "umount", again.Dir) // which detaches all of them
	require.NoError(t, err, out)
	log := again.end()
	require.True(t, again.cmd.ProcessState.Success(), "%s", log)
	require.NotContains(t, shell(t, "losetup -a"), again.Dir)
}

// After kill -9 a device over raw is gone with the next mount, and what was synced
// is there; a direct one that is in use is attached again, and otherwise gone.
func TestAttachOutlivesItsDaemon(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "mkfs.ext4")
	dir := t.TempDir()
	m := Start(t, dir)
	disks := map[string]string{}
	for _, image := range []string{"raw.vhdx", "used.vhdx", "idle.vhdx"} {
		request := "path=" + image + " size=64M type=fixed"
		require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte(request), 0))
		how := "direct=true"
		if image == "raw.vhdx" {
			how = "1"
		}
		device := attach(t, m, image, how)
		disk := t.TempDir()
		shell(t, "mkfs.ext4 -q $1 && mount $1 $2 && echo kept > $2/file && sync -f $2/file", device, disk)
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
		disks[image] = disk
	}
	require.NoError(t, unix.Unmount(disks["idle.vhdx"], 0))
	require.NoError(t, m.cmd.Process.Kill())
	m.end()
	shell(t, "umount -l $1", m.Dir)

	again := Start(t, dir)
	require.Contains(t, readFile(t, again.Path("used.vhdx", "state.json")), `"Attached": true`)
	_, err := os.Open(again.Path("used.vhdx", "raw"))
	require.ErrorIs(t, err, unix.EBUSY)
	require.NoError(t, os.WriteFile(filepath.Join(disks["used.vhdx"], "more"), []byte("more"), 0o600))
	require.NoError(t, unix.Unmount(disks["used.vhdx"], 0))
	detach(t, again, "used.vhdx")
	require.NoError(t, unix.Unmount(disks["raw.vhdx"], 0))
	require.Eventually(t, func() bool { return !strings.Contains(shell(t, "losetup -a"), dir) }, patience, 10*time.Millisecond)
	require.NotContains(t, shell(t, "losetup -a"), m.Dir)
	for image := range disks {
		device := attach(t, again, image, "1")
		disk := t.TempDir()
		shell(t, "mount $1 $2", device, disk) // replays its journal
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
		require.Equal(t, "kept\n", readFile(t, filepath.Join(disk, "file")), image)
		require.NoError(t, unix.Unmount(disk, 0))
		detach(t, again, image)
	}
}

// A signal does not end the service while a device is in use; a stop says which.
func TestAttachedDevicesHoldTheService(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "mkfs.ext4")
	m := Start(t, t.TempDir())
	require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte("path=d.vhdx size=64M"), 0))
	device, disk := attach(t, m, "d.vhdx", "1"), t.TempDir()
	shell(t, "mkfs.ext4 -q $1 && mount $1 $2", device, disk)
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	require.ErrorIs(t, os.WriteFile(m.Path(".vhdfs", "stop"), []byte("1"), 0), unix.EBUSY)
	require.Contains(t, readFile(t, m.Path(".vhdfs", "stop")), "is mounted on "+disk)
	require.NoError(t, m.cmd.Process.Signal(unix.SIGTERM))
	time.Sleep(2 * time.Second) // more than it waits for who only has a look
	require.NoError(t, os.WriteFile(filepath.Join(disk, "file"), []byte("kept"), 0o600))
	require.NoError(t, unix.Unmount(disk, 0))
	require.NoError(t, m.cmd.Process.Signal(unix.SIGTERM))
	log := m.end()
	require.True(t, m.cmd.ProcessState.Success(), "%s", log)
	require.NotContains(t, shell(t, "losetup -a"), m.Dir)
}

// What cannot be attached as asked for says so.
func TestAttachRefuses(t *testing.T) {
	need.Loop(t)
	dir := t.TempDir()
	iso := make([]byte, 64<<10)
	copy(iso[16*2048:], "\x01CD001\x01")
	iso[16*2048+80], iso[16*2048+87] = 32, 32 // volume space, both endians
	require.NoError(t, os.WriteFile(filepath.Join(dir, "disc.iso"), iso, 0o600))
	m := Start(t, dir)
	require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte("path=d.vhdx size=64M"), 0))
	require.ErrorIs(t, os.WriteFile(m.Path("disc.iso", "attach"), []byte("readonly=false"), 0), unix.EOPNOTSUPP)
	require.Contains(t, readFile(t, m.Path("disc.iso", "attach")), `"ReturnValue":32770`)
	require.ErrorIs(t, os.WriteFile(m.Path("d.vhdx", "attach"), []byte("direct=true"), 0), unix.EOPNOTSUPP)
	require.ErrorIs(t, os.WriteFile(m.Path("d.vhdx", "attach"), []byte("direct=true device=none"), 0), unix.EINVAL)

	device := attach(t, m, "disc.iso", "direct=true")
	require.Equal(t, "1\n", shell(t, "blockdev --getro $1", device))
	require.Equal(t, "2048\n", shell(t, "blockdev --getss $1", device))
	detach(t, m, "disc.iso")

	f, err := os.OpenFile(m.Path("d.vhdx", "raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	require.ErrorIs(t, os.WriteFile(m.Path("d.vhdx", "attach"), []byte("1"), 0), unix.EBUSY)
	require.NoError(t, f.Close())

	// Only kept open: programs write through raw.
	require.NoError(t, os.WriteFile(m.Path("d.vhdx", "attach"), []byte("device=none"), 0))
	f, err = os.OpenFile(m.Path("d.vhdx", "raw"), os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	detach(t, m, "d.vhdx")
}

// The device has the size that a resize gave the disk.
func TestAttachedDeviceGrows(t *testing.T) {
	need.Loop(t)
	m := Start(t, t.TempDir())
	require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte("path=d.vhdx size=64M"), 0))
	device := attach(t, m, "d.vhdx", "1")
	require.NoError(t, os.WriteFile(m.Path("d.vhdx", "resize"), []byte("96M"), 0))
	require.Equal(t, "100663296\n", shell(t, "blockdev --getsize64 $1", device))
	detach(t, m, "d.vhdx")
}

// attach attaches an image and gives its device.
func attach(t *testing.T, m *Mount, image, request string) string {
	t.Helper()
	err := os.WriteFile(m.Path(image, "attach"), []byte(request), 0)
	answer := readFile(t, m.Path(image, "attach"))
	require.NoError(t, err, answer)
	_, rest, ok := strings.Cut(answer, `"Device":"`)
	require.True(t, ok, answer)
	device, _, _ := strings.Cut(rest, `"`)
	require.Regexp(t, `^/dev/loop[0-9]+$`, device, answer)
	return device
}

func detach(t *testing.T, m *Mount, image string) {
	t.Helper()
	err := os.WriteFile(m.Path(image, "detach"), []byte("1"), 0)
	require.NoError(t, err, readFile(t, m.Path(image, "detach")))
}

// oneMounted is the name of the only document of an attached image.
func oneMounted(t *testing.T, m *Mount) string {
	t.Helper()
	list, err := os.ReadDir(m.Path(".vhdfs", "mounted"))
	require.NoError(t, err)
	require.Len(t, list, 1)
	return list[0].Name()
}

// shell runs a command that must succeed, with arguments $1 and $2.
func shell(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("bash", append([]string{"-euc", script, "bash"}, args...)...).CombinedOutput()
	require.NoError(t, err, "%s %v\n%s", script, args, out)
	return string(out)
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(b)
}

// The kernel is asked to look for partitions unless partscan=false; where it knows any
// tables it shows them as devices.
func TestAttachAsksForPartitions(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "sfdisk")
	m := Start(t, t.TempDir())
	require.NoError(t, os.WriteFile(m.Path(".vhdfs", "create"), []byte("path=d.vhdx size=64M"), 0))
	m.Shell(t, `echo 'label: gpt
		start=2048, size=8192' | sfdisk -q --no-reread --no-tell-kernel d.vhdx/raw > /dev/null`)
	for request, asked := range map[string]string{"1": "1", "partscan=false": "0"} {
		device := attach(t, m, "d.vhdx", request)
		sys := filepath.Join("/sys/block", filepath.Base(device))
		require.Equal(t, asked+"\n", readFile(t, filepath.Join(sys, "loop", "partscan")), request)
		detach(t, m, "d.vhdx")
	}
	t.Run("devices", func(t *testing.T) {
		need.Partitions(t)
		device := attach(t, m, "d.vhdx", "1")
		require.Equal(t, "4194304\n", shell(t, "udevadm settle 2>/dev/null; blockdev --getsize64 $1", device+"p1"))
		detach(t, m, "d.vhdx")
	})
}
