package e2e

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What an operation puts in the place of a disk is what is read next, whether the
// kernel had read all of the old one or a program still has it open.
func TestReplacedDisksAreReadAnew(t *testing.T) {
	eachFormat(t, func(t *testing.T, ext, dir string) {
		content := dailies(t, dir, ext, 2)
		m := Start(t, dir)
		base, day1, day2 := "base."+ext, dailyName(ext, 1), dailyName(ext, 2)
		cached(t, m, base, content[0])
		cached(t, m, day1, content[1])
		cached(t, m, day2, content[2])
		m.Shell(t, `echo 1 > `+day1+`/merge`)
		cached(t, m, base, content[1])
		cached(t, m, day2, content[2])
		m.Shell(t, `echo into=`+base+` > `+day2+`/merge`)
		cached(t, m, base, content[2])
		if ext == "vhd" {
			return
		}

		m.Shell(t, `echo 1 > base.vhdx/convert-to-set`)
		cached(t, m, "base.vhds", content[2])
		m.Shell(t, `echo before > base.vhds/snapshot
			dd if=/dev/urandom of=base.vhds/raw bs=64K count=3 conv=notrunc,fsync status=none`)
		changed := cached(t, m, "base.vhds", nil)
		require.False(t, bytes.Equal(content[2], changed))
		m.Shell(t, `echo keep=changed > base.vhds/snapshots/before/apply`)
		cached(t, m, "base.vhds", content[2])

		raw, err := os.Open(m.Path("base.vhds", "raw"))
		require.NoError(t, err)
		defer raw.Close()
		mapped, err := unix.Mmap(int(raw.Fd()), 0, rescueSize, unix.PROT_READ, unix.MAP_SHARED)
		require.NoError(t, err)
		defer func() { require.NoError(t, unix.Munmap(mapped)) }()
		require.True(t, bytes.Equal(content[2], mapped))
		m.Shell(t, `echo 1 > base.vhds/snapshots/changed/apply`)
		got := make([]byte, rescueSize)
		_, err = raw.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(changed, got), "by who has it open")
		require.True(t, bytes.Equal(changed, mapped), "and mapped")
	})
}

// cached reads a disk twice, so that the kernel has its pages, and asks that it is
// want unless that is nil.
func cached(t *testing.T, m *Mount, image string, want []byte) []byte {
	t.Helper()
	first, err := os.ReadFile(m.Path(image, "raw"))
	require.NoError(t, err)
	again, err := os.ReadFile(m.Path(image, "raw"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(first, again), image)
	require.True(t, want == nil || bytes.Equal(want, first), image)
	return first
}
