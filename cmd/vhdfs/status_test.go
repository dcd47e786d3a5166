package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// pretend makes a folder look like a mount to who only reads its files.
func pretend(t *testing.T, files map[string]string) mountLine {
	t.Helper()
	m := mountLine{point: t.TempDir(), source: "/vms", user: "1000"}
	for _, dir := range []string{"mounted", "jobs"} {
		require.NoError(t, os.MkdirAll(filepath.Join(m.point, ".vhdfs", dir), 0o700))
	}
	for name, text := range files {
		path := filepath.Join(m.point, ".vhdfs", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	return m
}

func TestStatus(t *testing.T) {
	const daemon = `{"PID":42,"Version":"1","Images":"/vms","Started":null}`
	busy := pretend(t, map[string]string{
		"daemon.json":         daemon,
		"mounted/2.json":      `{"Name":"/vms/a.vhdx","Access":2,"PnpDevicePath":"/dev/loop3"}`,
		"mounted/3.json":      `{"Name":"/vms/b\u001b.iso","Access":1,"PnpDevicePath":""}`,
		"jobs/10/status.json": `{"Job":"10","Operation":"MergeVirtualHardDisk","Image":"/vms/c.avhdx","JobState":4,"PercentComplete":7}`,
		"jobs/9/status.json":  `{"Job":"9","Operation":"check","Image":"/vms/d.vhd","JobState":6,"PercentComplete":0}`,
		"jobs/8/status.json":  `{"Job":"8","Operation":"check","Image":"/vms/d.vhd","JobState":7,"PercentComplete":100}`,
	})
	idle := pretend(t, map[string]string{"daemon.json": daemon})
	broken := pretend(t, map[string]string{"daemon.json": "{"})
	hung := pretend(t, nil)
	require.NoError(t, syscall.Mkfifo(filepath.Join(hung.point, ".vhdfs", "daemon.json"), 0o600))
	list := statusOf([]mountLine{busy, idle, broken, hung}, 500*time.Millisecond)
	var b bytes.Buffer
	require.NoError(t, statusText(&b, list))
	require.Equal(t, busy.point+" shows /vms, user 1000, process 42\n"+
		"  attached  /dev/loop3            read-write  /vms/a.vhdx\n"+
		`  attached  no device             read-only   "/vms/b\x1b.iso"`+"\n"+
		"  job 9     check                 0 %         /vms/d.vhd\n"+
		"  job 10    MergeVirtualHardDisk  7 %         /vms/c.avhdx\n"+
		idle.point+" shows /vms, user 1000, process 42\n"+
		broken.point+" shows /vms, user 1000, "+list[2].Error+"\n"+
		hung.point+" shows /vms, user 1000, its daemon does not answer\n", b.String())
	require.Contains(t, list[2].Error, "daemon.json: unexpected end of JSON input")

	j, err := json.Marshal(list[1])
	require.NoError(t, err)
	require.JSONEq(t, `{"MountPoint":"`+idle.point+`","Images":"/vms","User":1000,"PID":42,"Version":"1","Started":null,"Attached":[],"Jobs":[]}`, string(j))
	b.Reset()
	require.NoError(t, statusText(&b, nil))
	require.Equal(t, "no mounts\n", b.String())
}

func TestStatusCommand(t *testing.T) {
	exit, out, stderr := command(t, "status", "--json")
	require.Zero(t, exit, stderr)
	var doc struct{ Mounts []map[string]any }
	require.NoError(t, json.Unmarshal([]byte(out), &doc))
	exit, _, _ = command(t, "status", "x")
	require.Equal(t, 2, exit)
}

// Operations of the service take what they are about in front: what is made, an image,
// a place, or the mount point of the service.
func TestSubjects(t *testing.T) {
	want := map[string]string{
		"create": "NEW", "create-floppy": "NEW", "find": "IMAGE", "validate-persistent-reservations": "PATH",
		"start": "MNT", "stop": "MNT", "request-state-change": "MNT",
	}
	for _, op := range ops.All {
		expected, service := want[op.Name]
		if !service {
			expected = "IMAGE"
		}
		if op.Name == "detach" {
			expected = "IMAGE|DEVICE"
		}
		require.Equal(t, op.Service, service, op.Name)
		require.Equal(t, expected, subject(op), op.Name)
	}
}

func TestServiceCommandsWithoutAMount(t *testing.T) {
	dir := folder(t)
	for _, tt := range []struct {
		args []string
		exit int
		says string
	}{
		{[]string{"find", filepath.Join(dir, "base.vhdx")}, 3, "base.vhdx: not attached"},
		{[]string{"find", dir}, 2, "is a folder"},
		{[]string{"find"}, 2, "IMAGE is missing"},
		{[]string{"start", dir}, 2, "is not the mount point of a vhdfs mount"},
		{[]string{"stop", dir}, 2, "is not the mount point of a vhdfs mount"},
		{[]string{"stop"}, 2, "MNT is missing"},
		{[]string{"request-state-change", dir, "4"}, 2, "is not the mount point of a vhdfs mount"},
		{[]string{"validate-persistent-reservations", filepath.Join(dir, "none")}, 3, "no such file"},
	} {
		exit, _, stderr := command(t, tt.args...)
		require.Equal(t, tt.exit, exit, "%v: %s", tt.args, stderr)
		require.Contains(t, stderr, tt.says, "%v", tt.args)
	}
	// What a machine that runs tests keeps its folders on is rarely shared.
	for _, path := range []string{dir, filepath.Join(dir, "base.vhdx")} {
		exit, out, stderr := command(t, "validate-persistent-reservations", path, "--json")
		var answer struct{ FileSystem, Error string }
		require.NoError(t, json.Unmarshal([]byte(out), &answer))
		require.NotEmpty(t, answer.FileSystem)
		if exit != 0 {
			require.Equal(t, 8, exit, stderr)
			require.Contains(t, answer.Error, answer.FileSystem)
		}
	}
}
