package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/fixture"
)

// shared is a folder with a chain, disks without children, one of them partitioned,
// and a differencing VHD; mounted twice.
func shared(t *testing.T) (dir string, a, b *Mount) {
	t.Helper()
	dir = t.TempDir()
	chainOfTwo(t, dir)
	require.NoError(t, fixture.VHD{Size: 8 * mib}.WriteFile(filepath.Join(dir, "other.vhd")))
	out, err := Command(t, dir, "create", "disk.vhdx", "size=64M")
	require.NoError(t, err, out)
	a, b = Start(t, dir), Start(t, dir)
	a.Shell(t, `echo 'label: dos
		start=2048, size=8192, type=83' | sfdisk -q --no-reread --no-tell-kernel disk.vhdx/raw > /dev/null`)
	return dir, a, b
}

// answer writes a request to a control file, which answers an errno's symbol, "" for
// success.
func (m *Mount) answer(t *testing.T, control, request string) string {
	t.Helper()
	f, err := os.OpenFile(m.Path(control), os.O_RDWR, 0)
	require.NoError(t, err, control)
	defer f.Close()
	_, werr := f.WriteString(request)
	if control[strings.LastIndex(control, "/")+1:] == "settings.json" {
		if werr == nil {
			return ""
		}
		var no unix.Errno
		require.ErrorAs(t, werr, &no)
		return unix.ErrnoName(no)
	}
	var answer struct{ Errno, Error string }
	require.NoError(t, json.NewDecoder(f).Decode(&answer), control)
	require.Equal(t, werr == nil, answer.Errno == "", "%s: %v", control, answer)
	if werr != nil {
		t.Logf("%s %s: %s", control, request, answer.Error)
	}
	return answer.Errno
}

// What one mount has open for writing the other one neither reads nor changes; what
// is known of it from its headers is answered all the same.
func TestTwoMountsOfOneFolder(t *testing.T) {
	dir, a, b := shared(t)
	for _, tt := range []struct {
		image string
		// with the errno of each while the other mount writes the image; changes of the
		// parent of an image that is written are refused for its child
		requests [][3]string // control file, request, errno
	}{
		{"disk.vhdx", [][3]string{
			{"compact", "1", "EBUSY"}, {"convert", "path=new.vhd", "EBUSY"}, {"resize", "128M", "EBUSY"},
			{"settings.json", `{"PhysicalSectorSize":512}`, "EBUSY"}, {"check", "repair=true", "EBUSY"},
			{"check", "1", ""}, {"validate", "1", ""},
		}},
		{"child.avhdx", [][3]string{
			{"compact", "1", "EBUSY"}, {"convert", "path=new.vhd", "EBUSY"}, {"resize", "128M", "EBUSY"},
			{"merge", "1", "EBUSY"}, {"set-parent", "base.vhdx", "EBUSY"},
			{"check", "repair=true", "EBUSY"}, {"check", "1", ""}, {"validate", "1", ""},
			{"attach", "device=none", "EBUSY"}, {"attach", "device=none readonly=true", "EBUSY"}, {"snapshot", "1", "EBUSY"},
			{"convert-to-set", "1", "EBUSY"},
		}},
	} {
		t.Run(tt.image, func(t *testing.T) {
			writer, err := os.OpenFile(a.Path(tt.image, "raw"), os.O_RDWR, 0)
			require.NoError(t, err)
			defer writer.Close()
			_, err = writer.WriteAt([]byte("of the first mount"), 1000)
			require.NoError(t, err)
			require.NoError(t, writer.Sync())

			for _, flags := range []int{os.O_RDONLY, os.O_RDWR, os.O_WRONLY} {
				_, err := os.OpenFile(b.Path(tt.image, "raw"), flags, 0)
				require.ErrorIs(t, err, unix.EBUSY)
			}
			_, err = os.ReadDir(b.Path(tt.image, "partitions"))
			require.ErrorIs(t, err, unix.EBUSY)
			for _, r := range tt.requests {
				require.Equal(t, r[2], b.answer(t, tt.image+"/"+r[0], r[1]), "%s %s", r[0], r[1])
			}
			require.NoFileExists(t, filepath.Join(dir, "new.vhd"))
			for _, doc := range []string{"settings.json", "state.json", "chain.json", "map.json", "partitions.json"} {
				var v any
				decode(t, b.Path(tt.image, doc), &v)
			}
			out, err := Command(t, dir, "ls", b.Dir)
			require.NoError(t, err, out)
			require.Contains(t, out, tt.image)
			b.Shell(t, "ls -l; ls -l "+tt.image+" > /dev/null; cat .vhdfs/graph.json > /dev/null")

			// Others go on.
			b.Shell(t, "cat other.vhd/raw > /dev/null; echo 1 > other.vhd/check")
			require.NoError(t, writer.Close())
		})
	}
}

// A reader in one mount keeps writers of the other one out, and changes; it reads
// beside readers.
func TestTwoMountsReadTogether(t *testing.T) {
	_, a, b := shared(t)
	reader, err := os.Open(a.Path("child.avhdx", "raw"))
	require.NoError(t, err)
	defer reader.Close()
	other, err := os.Open(b.Path("child.avhdx", "raw"))
	require.NoError(t, err)
	require.NoError(t, other.Close())
	_, err = os.ReadDir(b.Path("child.avhdx", "partitions"))
	require.NoError(t, err)
	_, err = os.OpenFile(b.Path("child.avhdx", "raw"), os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EBUSY)
	for _, r := range [][3]string{
		{"child.avhdx/resize", "128M", "EBUSY"}, {"child.avhdx/compact", "1", "EBUSY"}, {"child.avhdx/merge", "1", "EBUSY"},
		{"child.avhdx/set-parent", "base.vhdx", "EBUSY"}, {"child.avhdx/check", "repair=true", "EBUSY"},
		{"child.avhdx/convert", "path=copy.vhdx", ""}, {"child.avhdx/check", "1", ""}, {"child.avhdx/validate", "run", ""},
		// The parent is read, too.
		{"base.vhdx/compact", "1", "EBUSY"}, {"base.vhdx/settings.json", `{"PhysicalSectorSize":512}`, "EBUSY"},
		{"base.vhdx/resize", "128M", "EROFS"},
	} {
		require.Equal(t, r[2], b.answer(t, r[0], r[1]), "%s %s", r[0], r[1])
	}
}

// What one mount wrote the other one reads, whichever had it cached before.
func TestTwoMountsSeeOneAnothersWrites(t *testing.T) {
	_, a, b := shared(t)
	for i := range 4 {
		writer, reader := a, b
		if i%2 == 1 {
			writer, reader = b, a
		}
		for _, image := range []string{"child.avhdx", "disk.vhdx", "other.vhd"} {
			text := []byte(strings.Repeat(string(rune('a'+i)), 5000))
			f, err := os.OpenFile(writer.Path(image, "raw"), os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(text, 3<<20)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			got := make([]byte, len(text))
			var open error
			f = nil
			require.Eventually(t, func() bool { // its RELEASE comes after close
				f, open = os.Open(reader.Path(image, "raw"))
				return open == nil
			}, patience, 1000)
			_, err = f.ReadAt(got, 3<<20)
			require.NoError(t, err)
			require.Equal(t, string(text), string(got), "%s, round %d", image, i)
			require.NoError(t, f.Close())
		}
		// Sizes and partitions as well.
		size := string(rune('1'+i)) + "00M"
		require.Equal(t, "", writer.answer(t, "disk.vhdx/resize", size))
		st, err := os.Stat(reader.Path("disk.vhdx", "raw"))
		require.NoError(t, err)
		require.EqualValues(t, int64(i+1)*100<<20, st.Size())
		entries, err := os.ReadDir(reader.Path("disk.vhdx", "partitions"))
		require.NoError(t, err)
		require.Len(t, entries, 1)
	}
}

// A job of one mount keeps the other one from its image.
func TestTwoMountsAndAJob(t *testing.T) {
	dir := t.TempDir()
	bigDisk(t, dir)
	a, b := Start(t, dir), Start(t, dir)
	cmd := begun(t, a, "bash", "-c", "echo path=n.raw > big.vhd/convert")
	require.Equal(t, "EBUSY", b.answer(t, "big.vhd/check", "repair=true"))
	require.Equal(t, "EBUSY", b.answer(t, "big.vhd/resize", "2G"))
	_, err := os.OpenFile(b.Path("big.vhd", "raw"), os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EBUSY)
	require.Equal(t, "EEXIST", func() string { // the name is not taken before the end, but is then
		require.NoError(t, cmd.Wait())
		return b.answer(t, "big.vhd/convert", "path=n.raw")
	}())
}
