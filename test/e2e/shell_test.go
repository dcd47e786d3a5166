package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/need"
)

// eachShell runs a test with bash and with dash, each on a mount of its own.
func eachShell(t *testing.T, f func(t *testing.T, shell string)) {
	need.Tool(t, "jq")
	for _, shell := range []string{"bash", "dash"} {
		need.Tool(t, shell)
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			f(t, shell)
		})
	}
}

// sh is Try for a script that must succeed.
func (m *Mount) sh(t *testing.T, shell, script string) []string {
	t.Helper()
	out, err := m.Try(t, shell, script)
	require.NoError(t, err, "%s\n%s", script, out)
	return lines(out)
}

// All images of a folder at once: each answers for itself, the one that cannot in
// its own exit status.
func TestShellCompactsAllImages(t *testing.T) {
	eachShell(t, func(t *testing.T, shell string) {
		dir := t.TempDir()
		chainOfTwo(t, dir)
		m := Start(t, dir)
		got := m.sh(t, shell, `
			echo path=d.vhdx size=32M block=1M > .vhdfs/create
			echo path=e.vhd size=32M > .vhdfs/create
			echo path=f.vfd > .vhdfs/create-floppy
			for d in d.vhdx e.vhd; do
				head -c 8M /dev/zero | tr '\0' x | dd of=$d/raw bs=1M conv=notrunc,fsync status=none
				head -c 6M /dev/zero | dd of=$d/raw bs=1M conv=notrunc,fsync status=none
			done
			for i in */compact; do echo mode=full > $i & done; wait
			for i in */compact; do printf '%s ' "${i%/compact}"; jq -r '"\(.ReturnValue) \(.BlocksDropped)"' $i; done
			mv $IMAGES/base.vhdx $IMAGES/away
			p=
			for i in */compact; do echo mode=full > $i 2>> $IMAGES/said & p="$p $!"; done
			for pid in $p; do if wait $pid; then echo good; else echo bad; fi; done
			jq -r .Errno child.avhdx/compact
			cat $IMAGES/said
			rm $IMAGES/said; mv $IMAGES/away $IMAGES/base.vhdx`)
		require.Len(t, got, 9, got)
		require.Equal(t, []string{"base.vhdx 0 0", "child.avhdx 0 0", "d.vhdx 0 6", "e.vhd 0 3", "bad", "good", "good", "ENOLINK"}, got[:8])
		require.Contains(t, got[8], map[string]string{"bash": "Link has been severed", "dash": "I/O error"}[shell])
	})
}

// What goes wrong shows in the exit status, in what the shell says, on the handle
// that wrote, and to who reads the file later.
func TestShellSeesEachFailure(t *testing.T) {
	eachShell(t, func(t *testing.T, shell string) {
		dir := t.TempDir()
		chainOfTwo(t, dir)
		m := Start(t, dir)
		m.sh(t, shell, `echo path=other.vhdx size=64M > .vhdfs/create; echo path=small.vhd size=16M > .vhdfs/create`)
		for _, tt := range []struct{ control, request, errno, says, sentence string }{
			{"child.avhdx/set-parent", "parent=other.vhdx", "ESTALE", "Stale file handle", "other.vhdx"},
			{"child.avhdx/set-parent", "parent=none.vhdx", "ENOENT", "No such file or directory", "none.vhdx"},
			{"child.avhdx/merge", "into=other.vhdx", "EINVAL", "Invalid argument", "other.vhdx"},
			{"base.vhdx/resize", "96M", "EROFS", "Read-only file system", "child.avhdx"},
			{"small.vhd/resize", "8M", "EOPNOTSUPP", "Operation not supported", "16777216"},
			{"other.vhdx/resize", "many", "EINVAL", "Invalid argument", "many"},
			{"other.vhdx/compact", "mode=none", "EINVAL", "Invalid argument", "none"},
			{"other.vhdx/convert", "path=base.vhdx", "EEXIST", "File exists", "base.vhdx"},
			{"other.vhdx/convert-to-set", "label=x", "EINVAL", "Invalid argument", "label"},
			{".vhdfs/create", "path=new.vhdx size=1", "EINVAL", "Invalid argument", "3145728"},
		} {
			got := m.sh(t, shell, fmt.Sprintf(`c=%s; q='%s'
				{ echo "$q" > $c; } 2> $IMAGES/said && echo 0 || echo $?
				tail -n 1 $IMAGES/said
				exec 3<>$c; echo "$q" >&3 2>/dev/null || jq -r .Error <&3; exec 3>&-
				cat $c | jq -r '.Errno, .Error'
				rm $IMAGES/said`, tt.control, tt.request))
			what := tt.control + " " + tt.request
			require.Len(t, got, 5, "%s: %q", what, got)
			require.Contains(t, []string{"1", "2"}, got[0], what)
			says := tt.says
			if shell == "dash" { // it says so of every errno
				says = "I/O error"
			}
			require.Contains(t, got[1], says, what)
			require.Equal(t, got[2], got[4], what)
			require.Equal(t, tt.errno, got[3], what)
			require.Contains(t, got[4], tt.sentence, what)
		}
		require.Equal(t, []string{"0"}, m.sh(t, shell, `
			echo path=copy.vhdx > base.vhdx/convert
			exec 3<>child.avhdx/set-parent
			echo parent=copy.vhdx >&3 2>/dev/null || echo 'parent=copy.vhdx ignoreidmismatch=true' >&3
			jq .ReturnValue <&3`))
	})
}

// jq tells by its own exit status how a job ended, and a second writer is refused
// while the first one waits.
func TestShellWaitsForJobs(t *testing.T) {
	eachShell(t, func(t *testing.T, shell string) {
		dir := t.TempDir()
		bigDisk(t, dir)
		m := Start(t, dir)
		require.Equal(t, []string{"good", "true", "0"}, m.sh(t, shell, `
			echo wait=false > big.vhd/validate
			jq -e .JobState==7 .vhdfs/jobs/$(jq -r .Job big.vhd/validate)/wait > /dev/null && echo good
			echo 1 > big.vhd/validate
			jq -e .JobState==7 .vhdfs/jobs/2/wait; echo $?`))
		require.Equal(t, []string{"16", "EBUSY", "waits", "false", "1", "bad", "ECANCELED"}, m.sh(t, shell, `
			echo path=n.raw > big.vhd/convert 2>/dev/null & first=$!
			until [ -e .vhdfs/jobs/3 ] && [ "$(jq .BytesDone .vhdfs/jobs/3/status.json)" != 0 ]; do :; done
			exec 3<>big.vhd/convert
			echo path=m.raw >&3 2>/dev/null || jq -r '.Errno | if . == "EBUSY" then 16 else . end' <&3
			( echo path=m.raw > big.vhd/convert ) 2>/dev/null || jq -r .Errno big.vhd/convert
			kill -0 $first && echo waits
			echo 1 > .vhdfs/jobs/3/cancel
			jq -e .JobState==7 .vhdfs/jobs/3/wait && exit 9 || echo $?
			if wait $first; then echo good; else echo bad; fi
			exec 3>&-
			jq -r .Errno big.vhd/convert`))
		require.NoFileExists(t, filepath.Join(dir, "n.raw"))
		require.NoFileExists(t, filepath.Join(dir, "m.raw"))
	})
}

// Signals to the shell that waits for a merge: those that it handles change nothing,
// Ctrl-C breaks the merge off, and the same request goes on.
func TestShellBreaksAMergeOff(t *testing.T) {
	eachShell(t, func(t *testing.T, shell string) {
		const size = 192 * mib
		dir := t.TempDir()
		m := Start(t, dir)
		m.Shell(t, fmt.Sprintf(`echo path=base.vhdx size=%d block=1M > .vhdfs/create
			echo path=day.avhdx parent=base.vhdx block=1M > .vhdfs/create
			yes 0123456 | dd of=day.avhdx/raw conv=notrunc,fsync bs=1M count=%d iflag=fullblock status=none`, size, size/mib))
		same := fmt.Sprintf(`yes 0123456 | head -c %d | cmp - `, size)
		merging := func(before int, request string) (*exec.Cmd, int) {
			cmd := exec.Command(shell, "-c", `trap : WINCH; trap : URG; echo `+request+` > day.avhdx/merge; exit $?`)
			cmd.Dir = m.Dir
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
			n := 0
			require.Eventually(t, func() bool {
				n = lastJob(t, m)
				return n > before && job(t, m, n).BytesDone > 0
			}, patience, time.Millisecond)
			return cmd, n
		}
		cmd, n := merging(lastJob(t, m), "base.vhdx")
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		sent := time.Now()
		require.Equal(t, 8, ended(t, m, n).JobState)
		t.Logf("stopped after %v, %d MiB done", time.Since(sent), job(t, m, n).BytesDone/mib)
		require.ErrorContains(t, cmd.Wait(), "interrupt")
		require.Equal(t, []string{"ECANCELED", "true", "busy"}, m.sh(t, shell, same+`day.avhdx/raw
			jq -r .Errno day.avhdx/merge
			jq '.PendingMerge != null' day.avhdx/state.json
			head -c 1 base.vhdx/raw > /dev/null 2>&1 || echo busy`))
		cmd, n = merging(n, "1")
		for _, harmless := range []syscall.Signal{syscall.SIGWINCH, syscall.SIGURG} {
			require.NoError(t, cmd.Process.Signal(harmless))
		}
		require.Equal(t, 7, ended(t, m, n).JobState)
		require.NoError(t, cmd.Wait())
		m.sh(t, shell, `[ ! -e day.avhdx ]
			`+same+`base.vhdx/raw
			echo 1 > base.vhdx/check`)
	})
}

// A disk's partitions are mounted, trimmed, measured and copied as those of a disk
// are, and what cannot be is refused to the tool.
func TestShellMountsAndTrims(t *testing.T) {
	need.Loop(t)
	for _, tool := range []string{"sfdisk", "mkfs.ext4", "fstrim", "du", "e2fsck"} {
		need.Tool(t, tool)
	}
	eachShell(t, func(t *testing.T, shell string) {
		dir, mnt := t.TempDir(), t.TempDir()
		chainOfTwo(t, dir)
		m := Start(t, dir)
		got := m.sh(t, shell, `M=`+mnt+`
			trap 'umount $M 2>/dev/null || true' EXIT
			echo path=d.vhdx size=96M block=1M > .vhdfs/create
			printf 'label: gpt\nstart=2048,size=16384\nstart=18432,size=131072\n' | sfdisk -q -w never d.vhdx/raw
			mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 d.vhdx/partitions/p2
			mount -o loop d.vhdx/partitions/p2 $M
			head -c 1M /dev/urandom > $M/kept; sum=$(sha256sum < $M/kept)
			head -c 32M /dev/urandom > $M/filler; sync
			full=$(du -k d.vhdx/raw | cut -f1)
			rm $M/filler; sync
			fstrim $M; umount $M
			less=$(du -k d.vhdx/raw | cut -f1)
			[ $full -gt 33000 ] && [ $less -lt $((full - 31000)) ] && echo trimmed || echo "$full then $less"
			cp --sparse=auto d.vhdx/raw $IMAGES/copy.img
			cmp d.vhdx/raw $IMAGES/copy.img
			[ $(du -k $IMAGES/copy.img | cut -f1) -le $less ] && echo sparse
			rm $IMAGES/copy.img
			mount -o loop,ro,offset=9437184,sizelimit=67108864 d.vhdx/raw $M
			[ "$sum" = "$(sha256sum < $M/kept)" ] && echo same
			if echo 128M > d.vhdx/resize 2>/dev/null; then stat -c %s d.vhdx/raw; else cat d.vhdx/resize; fi
			umount $M
			e2fsck -fn d.vhdx/partitions/p2 > /dev/null 2>&1 && echo clean
			mkfs.ext4 -q -F d.vhdx/raw
			mount -o loop d.vhdx/raw $M; echo hello > $M/hello; umount $M
			mount -o loop,ro d.vhdx/raw $M; cat $M/hello; umount $M
			mv $IMAGES/base.vhdx $IMAGES/away
			if mount -o loop child.avhdx/raw $M 2>/dev/null; then echo mounted; else echo 'not mounted'; fi
			if cp --sparse=auto child.avhdx/raw $IMAGES/copy.img 2> $IMAGES/said; then echo copied; else cat $IMAGES/said; fi
			mv $IMAGES/away $IMAGES/base.vhdx`)
		require.Equal(t, []string{"trimmed", "sparse", "same", fmt.Sprint(128 * mib), "clean", "hello", "not mounted"}, got[:7])
		require.Contains(t, strings.Join(got[7:], " "), "Link has been severed")
	})
}
