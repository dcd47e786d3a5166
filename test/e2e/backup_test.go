package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// nightly is a disk with ext4 that is attached, changed and backed up day by day.
type nightly struct {
	m      *Mount
	images string
	store  string // folder of the backups
	mnt    string // of the ext4
	disk   string // name of the image by now
	id     string // that the last backup ends with
	names  []string
	hashes []string // of the disk, each day
}

// backup copies the disk as it is, and notes what it reads as.
func (n *nightly) backup(t *testing.T) {
	t.Helper()
	name := filepath.Join(n.store, fmt.Sprintf("day%02d", len(n.names)))
	args := []string{"backup", "--json", filepath.Join(n.images, n.disk), "to=" + name}
	if n.id != "" {
		args = append(args, "since="+n.id)
	}
	out, err := Command(t, n.images, args...)
	require.NoError(t, err, out)
	var a struct {
		ID    string `json:"ResilientChangeTrackingId"`
		Bytes int64
	}
	require.NoError(t, json.Unmarshal([]byte(out), &a))
	n.id, n.names = a.ID, append(n.names, name)
	n.hashes = append(n.hashes, SparseDigest(t, n.m.Path(n.disk, "raw")))
	t.Logf("day %d: %s, %d bytes", len(n.names)-1, n.disk, a.Bytes)
}

// attach mounts the ext4 of the disk.
func (n *nightly) attach(t *testing.T) string {
	t.Helper()
	device := attach(t, n.m, n.disk, "1")
	shell(t, `mount -o discard $1 $2`, device, n.mnt)
	return device
}

func (n *nightly) detach(t *testing.T) {
	t.Helper()
	shell(t, `umount $1`, n.mnt)
	detach(t, n.m, n.disk)
}

// change is what a day does to the files.
const change = `
	cd $1; day=$2
	for i in 1 2 3 4 5 6; do head -c $((day * 20000 + i * 3000)) /dev/urandom > f$day-$i; done
	rm -f f$((day - 3))-*
	echo "day $day" >> log
	if [ -e big ]; then dd if=/dev/urandom of=big bs=4k count=3 seek=$((day * 91)) conv=notrunc status=none
	else head -c 20M /dev/urandom > big; fi
	sync -f .`

// killed ends the daemon under a guest that writes, and mounts the folder again.
func (n *nightly) killed(t *testing.T) {
	t.Helper()
	shell(t, `head -c 3M /dev/urandom > $1/unsynced`, n.mnt)
	_ = n.m.cmd.Process.Kill()
	n.m.end()
	require.NoError(t, unix.Unmount(n.mnt, unix.MNT_DETACH))
	shell(t, `umount -l $1`, n.m.Dir)
	n.start(t)
}

// start mounts the folder; a test that fails takes the ext4 away before that.
func (n *nightly) start(t *testing.T) {
	n.m = Start(t, n.images)
	t.Cleanup(func() { _ = unix.Unmount(n.mnt, unix.MNT_DETACH) })
}

// Two weeks of a disk: ext4 on an attached device, a backup each night. The daemon is
// killed twice, the disk goes on in a child that is merged, and grows. Each day comes
// back as it was.
func TestEachNightIsRestored(t *testing.T) {
	need.Loop(t)
	need.Tool(t, "mkfs.ext4")
	need.Tool(t, "resize2fs")
	const days = 14
	n := &nightly{images: t.TempDir(), store: t.TempDir(), mnt: t.TempDir(), disk: "d.vhdx"}
	n.start(t)
	n.m.Shell(t, `echo path=d.vhdx size=128M > .vhdfs/create; echo on > d.vhdx/tracking`)
	device := attach(t, n.m, n.disk, "1")
	shell(t, `mkfs.ext4 -q $1; mount -o discard $1 $2`, device, n.mnt)
	for day := range days {
		switch day {
		case 4, 9:
			n.killed(t)
			device = n.attach(t)
		case 6: // the disk goes on in a child
			n.detach(t)
			n.m.Shell(t, `echo path=child.avhdx parent=d.vhdx > .vhdfs/create`)
			n.disk = "child.avhdx"
			device = n.attach(t)
		case 8: // and is folded back while it is used
			n.m.Shell(t, `echo 1 > child.avhdx/merge`)
			shell(t, `umount $1`, n.mnt)
			n.m.Shell(t, `echo 1 > child.avhdx/detach`)
			n.disk = "d.vhdx"
			device = n.attach(t)
		case 11:
			n.m.Shell(t, `echo +48M > d.vhdx/resize`)
			shell(t, `umount $2; e2fsck -fp $1 > /dev/null || [ $? = 1 ]; resize2fs $1 > /dev/null; mount -o discard $1 $2`, device, n.mnt)
		}
		shell(t, change, n.mnt, fmt.Sprint(day))
		shell(t, `fsfreeze -f $1`, n.mnt)
		n.backup(t)
		shell(t, `fsfreeze -u $1`, n.mnt)
	}
	n.detach(t)
	for day, want := range n.hashes {
		raw := filepath.Join(n.store, "raw")
		out, err := Command(t, n.store, append([]string{"restore", "to=" + raw}, n.names[:day+1]...)...)
		require.NoError(t, err, out)
		require.Equal(t, want, SparseDigest(t, raw), "day %d", day)
		require.NoError(t, os.Remove(raw))
	}
}

// What is written while it is copied is no backup; nothing is left of one.
func TestABackupOfADiskThatIsWritten(t *testing.T) {
	m := Start(t, t.TempDir())
	store := t.TempDir()
	m.Shell(t, `echo path=d.vhdx size=64M > .vhdfs/create; echo on > d.vhdx/tracking
		while :; do dd if=/dev/zero of=d.vhdx/raw bs=4k count=1 seek=5 conv=notrunc status=none; done & writer=$!
		fails=0
		"$VHDFS" backup d.vhdx to=`+store+`/full || fails=$?
		kill $writer
		[ $fails = 6 ]`)
	list, err := os.ReadDir(store)
	require.NoError(t, err)
	require.Empty(t, list)
}
