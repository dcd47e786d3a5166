package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/need"
)

// big is a disk that takes seconds to copy: a gibibyte without a zero. It is made
// once; nobody writes it.
var big struct {
	sync.Once
	path string
	err  error
}

// bigDisk puts big.vhd into a folder.
func bigDisk(t *testing.T, dir string) {
	t.Helper()
	big.Do(func() {
		var home string
		if home, big.err = os.MkdirTemp("", "big"); big.err != nil {
			return
		}
		big.path = filepath.Join(home, "big.vhd")
		out, err := run(t, home, nil, "bash", "-euc", `"$VHDFS" create big.vhd size=1G type=fixed
yes 0123456 | dd of=big.vhd conv=notrunc bs=1M count=1024 iflag=fullblock status=none`)
		if err != nil {
			big.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	require.NoError(t, big.err)
	require.NoError(t, os.Link(big.path, filepath.Join(dir, "big.vhd")))
}

// leftovers are the names in the state folder besides the log.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, ".vhdfs-state"))
	require.NoError(t, err)
	list := []string{}
	for _, e := range entries {
		if e.Name() != "log" {
			list = append(list, e.Name())
		}
	}
	return list
}

func TestJobsFromShells(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	chainOfTwo(t, dir)
	bigDisk(t, dir)
	m := Start(t, dir)
	for _, shell := range []string{"bash", "dash"} {
		t.Run(shell, func(t *testing.T) {
			need.Tool(t, shell)
			out, err := m.Try(t, shell, `
				echo path=n.raw wait=false > big.vhd/convert
				answer=$(cat big.vhd/convert)
				job=.vhdfs/jobs/$(printf %s "$answer" | jq -r .Job)
				while test "$(jq .BytesDone $job/status.json)" = 0; do :; done
				echo path=m.raw > big.vhd/convert 2>/dev/null && exit 8
				busy=$(cat big.vhd/convert)
				status=$(cat $job/status.json)
				echo > child.avhdx/validate
				echo stop > $job/cancel
				printf %s "$answer" | jq -r '"\(.ReturnValue) \(.Operation)"'
				printf %s "$status" | jq -r '"\(.JobState) \(.JobType) \(.BytesInAll) \(.Name)"'
				printf %s "$busy" | jq -r '"\(.ReturnValue) \(.Errno)"'
				printf %s "$busy" | jq -r .Error | grep -c "job ${job##*/}, convert, runs on it"
				jq -r '"\(.JobState) \(.ErrorCode) \(.Answer.Errno)"' $job/wait
				jq -r '.[0].MessageID' $job/errors.json
				test ! -e $IMAGES/n.raw
				echo path=n.raw wait=false > child.avhdx/convert
				job=.vhdfs/jobs/$(jq -r .Job child.avhdx/convert)
				jq -r '"\(.JobState) \(.PercentComplete) \(.Answer.Path)"' $job/wait
				jq -r .ReturnValue child.avhdx/convert
				rm $IMAGES/n.raw`)
			require.NoError(t, err, out)
			require.Equal(t, strings.Join([]string{
				"4096 ConvertVirtualHardDisk", "4 6 1073741824 convert", "32774 EBUSY", "1", "8 32775 ECANCELED", "ECANCELED",
				"7 100 " + dir + "/n.raw", "0"}, "\n"), strings.TrimSpace(out))
			require.Empty(t, leftovers(t, dir))

			// The answer on the handle that wrote, whatever others asked meanwhile.
			out, err = m.Try(t, shell, `
				exec 3<>child.avhdx/convert
				echo path=none/n.raw >&3 2>/dev/null && exit 8
				echo bogus=1 > child.avhdx/convert 2>/dev/null || true
				jq -r .Errno <&3
				echo path=n.raw dryrun=true >&3
				jq -r '"\(.DryRun) \(.Format) \(.BytesToMove) \(.SpaceFree > .SpaceNeeded) \(.Makes[0])"' <&3
				test ! -e $IMAGES/n.raw`)
			require.NoError(t, err, out)
			require.Equal(t, "ENOENT\ntrue raw 7340032 true "+dir+"/n.raw", strings.TrimSpace(out))
		})
	}
}

// begun starts a program that converts big.vhd and returns when bytes were copied.
func begun(t *testing.T, m *Mount, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = m.Dir
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	before := lastJob(t, m)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	require.Eventually(t, func() bool {
		n := lastJob(t, m)
		return n > before && job(t, m, n).BytesDone > 0
	}, patience, time.Millisecond)
	return cmd
}

type jobStatus struct {
	JobState  int
	BytesDone int64
	Name      string
	Process   int
}

func job(t *testing.T, m *Mount, n int) (s jobStatus) {
	t.Helper()
	b, err := os.ReadFile(m.Path(".vhdfs", "jobs", strconv.Itoa(n), "status.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &s))
	return s
}

// ended waits for the end of a job.
func ended(t *testing.T, m *Mount, n int) (s jobStatus) {
	t.Helper()
	b, err := os.ReadFile(m.Path(".vhdfs", "jobs", strconv.Itoa(n), "wait"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &s))
	return s
}

func lastJob(t *testing.T, m *Mount) int {
	t.Helper()
	entries, err := os.ReadDir(m.Path(".vhdfs", "jobs"))
	require.NoError(t, err)
	last := 0
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		require.NoError(t, err)
		last = max(last, n)
	}
	return last
}

// A signal that a program handles does not end its operation; one that ends the
// program does, and a command then says so in its exit code.
func TestSignalsToWhoWaits(t *testing.T) {
	dir := t.TempDir()
	bigDisk(t, dir)
	m := Start(t, dir)
	const write = `trap : WINCH; echo path=n.raw > big.vhd/convert`
	command := []string{"convert", filepath.Join(dir, "big.vhd"), "path=" + dir + "/n.raw"}
	for _, tt := range []struct {
		name   string
		argv   []string
		signal syscall.Signal
		state  int
		exit   int // -1: by the signal
	}{
		{"window size, shell", []string{"bash", "-c", write}, syscall.SIGWINCH, 7, 0},
		{"window size, command", append([]string{program}, command...), syscall.SIGWINCH, 7, 0},
		{"interrupt, shell", []string{"bash", "-c", write}, syscall.SIGINT, 8, -1},
		{"kill, shell", []string{"dash", "-c", "echo path=n.raw > big.vhd/convert"}, syscall.SIGKILL, 8, -1},
		{"interrupt, command", append([]string{program}, command...), syscall.SIGINT, 8, 9},
		{"hang up, command", append([]string{program}, command...), syscall.SIGHUP, 8, 9},
		{"kill, command", append([]string{program}, command...), syscall.SIGKILL, 8, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := begun(t, m, tt.argv[0], tt.argv[1:]...)
			n := lastJob(t, m)
			require.Equal(t, cmd.Process.Pid, job(t, m, n).Process)
			require.NoError(t, cmd.Process.Signal(tt.signal))
			sent := time.Now()
			require.Equal(t, tt.state, ended(t, m, n).JobState)
			if tt.state == 8 {
				t.Logf("stopped after %v", time.Since(sent))
			}
			err := cmd.Wait()
			if tt.exit == 0 {
				require.NoError(t, err)
				require.NoError(t, os.Remove(filepath.Join(dir, "n.raw")))
			} else {
				var exit *exec.ExitError
				require.True(t, errors.As(err, &exit), "%v", err)
				require.Equal(t, tt.exit, exit.ExitCode())
				require.NoFileExists(t, filepath.Join(dir, "n.raw"))
			}
			if _, err := os.Stat(filepath.Join(dir, ".vhdfs-state")); err == nil {
				require.Empty(t, leftovers(t, dir))
			}
		})
	}
}

// The end of the daemon is the end of what runs, and leaves nothing half made.
func TestEndOfTheDaemonCancels(t *testing.T) {
	dir := t.TempDir()
	bigDisk(t, dir)
	for _, how := range []string{"SIGTERM", "umount"} {
		t.Run(how, func(t *testing.T) {
			m := Start(t, dir)
			m.Shell(t, `echo path=n.raw wait=false > big.vhd/convert`)
			if how == "umount" {
				out, err := Command(t, dir, "umount", m.Dir)
				require.NoError(t, err, out)
			} else {
				require.NoError(t, m.cmd.Process.Signal(syscall.SIGTERM))
			}
			log := m.end()
			require.True(t, m.cmd.ProcessState.Success(), log)
			require.NoFileExists(t, filepath.Join(dir, "n.raw"))
			require.Empty(t, leftovers(t, dir))
		})
	}
	// The log tells of both.
	b, err := os.ReadFile(filepath.Join(dir, ".vhdfs-state", "log"))
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(b), `"ReturnValue":32775`))
}

// What a daemon that was killed left of a copy goes with the next operation there.
func TestKilledDaemonsLeftoversGo(t *testing.T) {
	dir := t.TempDir()
	bigDisk(t, dir)
	m := Start(t, dir)
	m.Shell(t, `echo path=n.raw wait=false > big.vhd/convert
while test "$(jq .BytesDone .vhdfs/jobs/1/status.json)" = 0; do :; done`)
	m.Crash(t)
	require.Len(t, leftovers(t, dir), 1)
	out, err := Command(t, dir, "create", "other.vhdx", "size=1G")
	require.NoError(t, err, out)
	require.Empty(t, leftovers(t, dir))
}

// Without a mount Ctrl-C leaves nothing half made either.
func TestInterruptWithoutAMount(t *testing.T) {
	dir := t.TempDir()
	bigDisk(t, dir)
	cmd := exec.Command(program, "convert", "big.vhd", "path=n.raw")
	cmd.Dir = dir
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	require.Eventually(t, func() bool {
		entries, err := os.ReadDir(filepath.Join(dir, ".vhdfs-state"))
		return err == nil && len(entries) > 0
	}, patience, time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.Equal(t, 9, exit.ExitCode())
	require.NoFileExists(t, filepath.Join(dir, "n.raw"))
	require.Empty(t, leftovers(t, dir))
}

// A terminal sees how far a command is; others see nothing.
func TestProgressOnATerminal(t *testing.T) {
	script := need.Tool(t, "script")
	dir := t.TempDir()
	bigDisk(t, dir)
	line := "convert: "
	convert := program + " convert big.vhd path=n.raw"
	out, err := run(t, dir, nil, script, "-qefc", convert, filepath.Join(dir, "typescript"))
	require.NoError(t, err, out)
	require.Contains(t, out, line)
	require.Regexp(t, `convert: \d+%, [0-9.]+ [KMG]iB of 1.0 GiB`, out)
	require.NoError(t, os.Remove(filepath.Join(dir, "n.raw")))
	m := Start(t, dir)
	out, err = run(t, dir, nil, script, "-qefc", convert, filepath.Join(dir, "typescript"))
	require.NoError(t, err, out)
	require.Regexp(t, `convert: \d+%, [0-9.]+ [KMG]iB of 1.0 GiB`, out, "through the mount too")
	require.Equal(t, "convert", job(t, m, 1).Name)
	require.NoError(t, os.Remove(filepath.Join(dir, "n.raw")))
	out, err = run(t, dir, nil, "sh", "-c", convert)
	require.NoError(t, err, out)
	require.NotContains(t, out, line)
}

// A command on the file of an image that is mounted goes through the mount.
func TestCommandsGoThroughTheMount(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	content := chainOfTwo(t, dir)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	m := Start(t, dir)
	for i, tt := range []struct {
		dir  string
		args []string
		made string
		jobs int // of the mount
	}{
		{dir, []string{"validate", "child.avhdx"}, "", 1},
		{dir, []string{"convert", "child.avhdx", "path=n.raw"}, "n.raw", 2},
		{filepath.Join(dir, "sub"), []string{"convert", "../child.avhdx", "path=n.vhd", "type=fixed"}, "sub/n.vhd", 3},
		{dir, []string{"create", "new.vhdx", "size=1G"}, "new.vhdx", 4},
		{filepath.Join(dir, "sub"), []string{"create", "leaf.avhdx", "parent=../child.avhdx"}, "sub/leaf.avhdx", 5},
		{m.Path("sub"), []string{"create", "more.vhdx", "size=1G"}, "sub/more.vhdx", 6},
		{m.Dir, []string{"convert", "child.avhdx", "path=sub/c.avhdx", "parent=base.vhdx"}, "sub/c.avhdx", 7},
		// What the mount does not do is done without it.
		{dir, []string{"convert", "child.avhdx", "path=" + elsewhere + "/n.raw"}, "", 7},
		{m.Dir, []string{"validate", "child.avhdx", "--search", elsewhere}, "", 7},
	} {
		out, err := Command(t, tt.dir, tt.args...)
		require.NoError(t, err, "%v: %s", tt.args, out)
		if tt.made != "" {
			require.FileExists(t, filepath.Join(dir, tt.made))
			require.Contains(t, out, filepath.Join(dir, tt.made))
		}
		require.Equal(t, tt.jobs, lastJob(t, m), "%d %v", i, tt.args)
	}
	for _, name := range []string{filepath.Join(dir, "n.raw"), filepath.Join(elsewhere, "n.raw")} {
		require.Equal(t, sum(content), SHA256(t, name))
	}
	out, err := Command(t, dir, "convert", "child.avhdx", "path=again.raw", "wait=false")
	require.NoError(t, err, out)
	require.Equal(t, "Job  8\n", out)
	require.Equal(t, 7, ended(t, m, 8).JobState)
	out, err = Command(t, dir, "convert", "child.avhdx", "path=n.raw")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 2, exit.ExitCode())
	require.Contains(t, out, "nothing is ever overwritten")
	out, err = Command(t, dir, "merge", "base.vhdx")
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 8, exit.ExitCode())
	require.Contains(t, out, "it has no parent that it could be merged into")

	// A mount whose daemon is dead is in nobody's way.
	m.cmd.Process.Kill()
	m.end()
	out, err = Command(t, dir, "validate", "child.avhdx")
	require.NoError(t, err, out)
	m.detach(t)
}

// Another user's mount is named, with whose it is.
func TestCommandOnAnImageInAnotherUsersMount(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	chainOfTwo(t, dir)
	open := func(path string) {
		for ; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
			require.NoError(t, os.Chmod(path, 0o755))
		}
	}
	open(dir)
	require.NoError(t, os.Chmod(filepath.Join(dir, "child.avhdx"), 0o644))
	for _, tt := range []struct {
		flags []string
		text  string
	}{
		{nil, "which you may not use"},
		{[]string{"--allow-other"}, "who alone may operate there"},
	} {
		m := Start(t, dir, tt.flags...)
		open(filepath.Dir(m.Dir))
		cmd := exec.Command(program, "validate", filepath.Join(dir, "child.avhdx"))
		asNobody(cmd)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, "%s", out)
		require.Equal(t, 7, exit.ExitCode(), "%s", out)
		require.Contains(t, string(out), tt.text)
		require.Contains(t, string(out), "the mount "+m.Dir+" of user 0")
		m.Stop(t)
	}
}
