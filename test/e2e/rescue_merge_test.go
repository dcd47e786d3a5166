package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// Backup software left a differencing disk for each of fifteen days: graph.json
// shows the chain, one merge folds all of it, and says before what it will take.
func TestRescueFifteenDays(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		content := dailies(t, dir, ext, 15)
		m := Start(t, dir)
		leaf := dailyName(ext, 15)
		out := m.Shell(t, `jq -r '.Images | max_by(.Depth) | .Path, .Depth' .vhdfs/graph.json
			echo into=base.`+ext+` dryrun=true > `+leaf+`/merge
			jq -r '.DryRun, (.Removes | length), .BytesToMove > 0, .SpaceFree > .SpaceNeeded' `+leaf+`/merge
			sha256sum < `+leaf+`/raw
			echo base.`+ext+` > `+leaf+`/merge
			sha256sum < base.`+ext+`/raw
			ls | wc -l
			echo 1 > base.`+ext+`/check`)
		all := sum(content[15]) + "  -"
		require.Equal(t, []string{filepath.Join(dir, leaf), "16", "true", "15", "true", "true", all, all, "1"}, lines(out))
		left, err := filepath.Glob(filepath.Join(dir, "[a-z]*"))
		require.NoError(t, err)
		require.Equal(t, []string{filepath.Join(dir, "base."+ext)}, left)
	})
}

// A merge that nobody can wait for: it says how far it is, can be cancelled, and
// leaves a disk that reads the same before, between and after.
func TestRescueMergeWithProgressAndCancel(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		m := Start(t, dir)
		out := m.Shell(t, `echo path=base.`+ext+` size=64M > .vhdfs/create
			echo path=day.a`+ext+` parent=base.`+ext+` > .vhdfs/create
			dd if=/dev/urandom of=day.a`+ext+`/raw bs=1M count=32 conv=notrunc,fsync status=none
			head -c 33554432 day.a`+ext+`/raw | sha256sum
			exec 3<>day.a`+ext+`/merge
			echo base.`+ext+` wait=false >&3
			job=.vhdfs/jobs/$(jq -r .Job <&3)
			exec 3>&-
			echo 1 > $job/cancel
			jq -r '.JobState, .BytesInAll >= 33554432, .BytesDone <= .BytesInAll, .PercentComplete <= 100' $job/wait
			if [ -e day.a`+ext+` ]; then # a fast machine was done by then
				head -c 33554432 day.a`+ext+`/raw | sha256sum
				echo 1 > day.a`+ext+`/merge
			fi
			head -c 33554432 base.`+ext+`/raw | sha256sum
			ls`)
		got := lines(out)
		if got[1] == "8" {
			require.Equal(t, got[0], got[5], "cancelled, and as it was")
			got = append(got[:5], got[6:]...)
		} else {
			require.Equal(t, "7", got[1])
		}
		require.Equal(t, []string{"true", "true", "true", got[0], "base." + ext}, got[2:])
	})
}

// The host's disk is too small for what the merge moves: it is refused before it
// begins, with both numbers, and nothing is lost.
func TestRescueMergeWithoutSpace(t *testing.T) {
	need.Root(t)
	eachFormat(t, func(t *testing.T, ext, _ string) {
		top := t.TempDir()
		require.NoError(t, unix.Mount("tmpfs", top, "tmpfs", 0, "size=64M"))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(top, 0)) })
		dir := filepath.Join(top, "vms")
		require.NoError(t, os.Mkdir(dir, 0o700))
		content := dailies(t, dir, ext, 2)
		leaf := dailyName(ext, 2)
		m := Start(t, dir)
		out := m.Shell(t, `dd if=/dev/zero of=`+top+`/fill bs=1M count=200 2> /dev/null || true
			exec 3<>`+leaf+`/merge; echo base.`+ext+` >&3 2> /dev/null && exit 9
			cat <&3 | jq -r '.Errno, .Error'
			sha256sum < `+leaf+`/raw
			rm `+top+`/fill
			echo base.`+ext+` > `+leaf+`/merge
			sha256sum < base.`+ext+`/raw`)
		got := lines(out)
		require.Equal(t, "ENOSPC", got[0])
		require.Regexp(t, `needs \d+ bytes, the host has \d+ left`, got[1])
		all := sum(content[2]) + "  -"
		require.Equal(t, []string{all, all}, got[2:])
		m.Stop(t)
	})
}

// The machine died in the middle of a merge. The disk reads as before, and the same
// request goes on.
func TestRescueInterruptedMerge(t *testing.T) {
	need.Tool(t, "strace")
	eachFormat(t, func(t *testing.T, ext, dir string) {
		content := dailies(t, dir, ext, 3)
		leaf, all := dailyName(ext, 3), sum(content[3])+"  -"
		interrupted := 0
		for kill := 5; ; kill += 12 { // the k-th sync of the command is its last
			out, _ := run(t, dir, nil, "strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=fdatasync,fsync:signal=KILL:when="+strconv.Itoa(kill),
				program, "merge", leaf, "into=base."+ext)
			if _, err := os.Stat(filepath.Join(dir, leaf)); err != nil {
				break
			}
			interrupted++
			m := Start(t, dir)
			require.Equal(t, all, strings.TrimSpace(m.Shell(t, `sha256sum < `+leaf+`/raw`)), "after sync %d: %s", kill, out)
			m.Stop(t)
		}
		require.NotZero(t, interrupted)
		m := Start(t, dir)
		// The end of a merge may be what was cut off: what is left goes with the next request.
		out := m.Shell(t, `for f in day*; do [ ! -e $f ] || echo 1 > $f/merge; done; sha256sum < base.`+ext+`/raw; echo 1 > base.`+ext+`/check; ls | grep -c day || true`)
		require.Equal(t, []string{all, "0"}, lines(out))
	})
}

// A VHD set is not merged: the refusal says what is done instead.
func TestRescueNoMergeOfASet(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	set, err := os.ReadFile(need.Corpus(t, "microsoft_WindowsProtocolTestSuites/rsvd.vhds"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "disk.vhds"), set, 0o600))
	m := Start(t, dir)
	out := m.Shell(t, `ls disk.vhds | grep -c merge || true; jq -r .Errno disk.vhds/state.json
		exec 3<>disk.vhds/validate; echo 1 >&3 2> /dev/null && exit 9; cat <&3 | jq -r '.Child, .Parent'`)
	got := lines(out)
	require.Equal(t, []string{"0", "ENOLINK", filepath.Join(dir, "disk.vhds")}, got[:3])
	leaf := got[3]
	m.Stop(t)
	out, err = Command(t, dir, "create", leaf, "size=16M")
	require.NoError(t, err, out)
	m = Start(t, dir)
	out = m.Shell(t, `echo 1 > disk.vhds/validate; ls disk.vhds | grep -c merge || true
		$VHDFS merge $IMAGES/disk.vhds 2>&1 || echo "exit $?"`)
	got = lines(out)
	require.Equal(t, "0", got[0])
	require.Contains(t, out, "is a set: its disks are merged by optimize")
	require.Equal(t, "exit 8", got[len(got)-1])
}
