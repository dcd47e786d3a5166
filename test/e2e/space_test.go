package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/need"
)

// Kinds of disks that change their size and give space back, with the block size.
var spaceKinds = []struct {
	name, create string
	block        int64
	shrinks      bool
}{
	{"d.vhdx", "path=d.vhdx block=1M", mib, true},
	{"d.vhd", "path=d.vhd type=dynamic", 2 * mib, false},
	{"f.vhdx", "path=f.vhdx type=fixed", 0, true},
	{"f.vhd", "path=f.vhd type=fixed", 0, false},
}

// field is one value of the last answer of a control file.
func (m *Mount) field(t *testing.T, control, name string) any {
	t.Helper()
	b, err := os.ReadFile(m.Path(control))
	require.NoError(t, err)
	var a map[string]any
	require.NoError(t, json.Unmarshal(b, &a))
	return a[name]
}

// Sizes change from both shells, and what is wrong shows in the exit status, in
// the message, and in the file.
func TestResizeFromShells(t *testing.T) {
	need.Tool(t, "jq")
	dir := t.TempDir()
	m := Start(t, dir)
	for _, k := range spaceKinds {
		m.Shell(t, `echo size=64M `+k.create+` > .vhdfs/create`)
		for i, shell := range []string{"bash", "dash"} {
			t.Run(k.name+" "+shell, func(t *testing.T) {
				need.Tool(t, shell)
				try := func(script string) string {
					out, err := m.Try(t, shell, "cd "+k.name+"; "+script)
					require.NoError(t, err, out)
					return strings.TrimSpace(out)
				}
				size := 64 + 32*i
				require.Equal(t, fmt.Sprintf("ok\n%d", (size+8)*mib), try(fmt.Sprintf(`echo %dM > resize && echo ok; stat -c %%s raw`, size+8)))
				require.Equal(t, fmt.Sprint((size+16)*mib), try(`echo +8M > resize; stat -c %s raw`))
				require.Equal(t, fmt.Sprint((size+32)*mib), try(fmt.Sprintf(`truncate -s %dM raw; stat -c %%s raw`, size+32)))
				require.Equal(t, "0\n"+fmt.Sprint((size+32)*mib), try(`truncate -s +0 raw; jq .ReturnValue,.MaxInternalSize resize`))
				require.Equal(t, fmt.Sprint((size+32)*mib), try(`jq .MaxInternalSize settings.json`))
				out := try(`if echo 1M > resize; then echo wrong; else jq -r .Errno,.ReturnValue,.JobCompletionStatusCode,.Error resize; fi 2>&1`)
				if k.shrinks {
					require.Contains(t, out, "EINVAL\n32773\n3225026598\n") // 0xC03A0026
					require.Contains(t, out, "it has no partition table, so nothing says what would be cut off")
				} else {
					require.Contains(t, out, "EOPNOTSUPP\n32770\n3225026587\n") // 0xC03A001B
				}
				if shell == "bash" {
					require.Contains(t, out, map[bool]string{true: "Invalid argument", false: "Operation not supported"}[k.shrinks])
				}
				require.Contains(t, try(`truncate -s 1M raw 2>&1 || true`), "Operation not permitted")
				require.Contains(t, try(`truncate -s 4096T raw 2>&1 || jq -r .Error resize`), "size")
				require.Equal(t, fmt.Sprint((size+32)*mib), try(`stat -c %s raw`))
			})
		}
	}
	m.Shell(t, `echo path=f.vfd > .vhdfs/create-floppy; test ! -e f.vfd/resize; test ! -e f.vfd/compact
! truncate -s 2M f.vfd/raw 2>/dev/null`)
}

// A file system on a loop device over raw grows while it is mounted, and what is
// on it is whole.
func TestGrowUnderAFileSystem(t *testing.T) {
	need.Loop(t)
	for _, tool := range []string{"mkfs.ext4", "resize2fs", "e2fsck", "losetup", "blockdev", "dumpe2fs"} {
		need.Tool(t, tool)
	}
	for _, k := range spaceKinds[:2] {
		for way, grow := range map[string]string{"resize": `echo 96M > $D/resize`, "truncate": `truncate -s 96M $D/raw`} {
			t.Run(k.name+" "+way, func(t *testing.T) {
				dir, mnt := t.TempDir(), t.TempDir()
				m := Start(t, dir)
				out := m.Shell(t, `echo size=32M `+k.create+` > .vhdfs/create
D=`+k.name+`
mkfs.ext4 -q $D/raw
L=$(losetup --find --show $D/raw)
end() { umount `+mnt+` 2>/dev/null || true; losetup -d $L; }
trap end EXIT
mount $L `+mnt+`
head -c 8M /dev/urandom > `+mnt+`/before; A=$(sha256sum < `+mnt+`/before)
`+grow+`
blockdev --getsize64 $L; stat -c %s $D/raw
if ! resize2fs $L >/dev/null 2>&1; then # a mounted one takes a right of its own
	umount `+mnt+`; e2fsck -fp $L >/dev/null; resize2fs $L >/dev/null 2>&1; mount $L `+mnt+`
fi
head -c 56M /dev/urandom > `+mnt+`/after; B=$(sha256sum < `+mnt+`/after)
umount `+mnt+`; mount $L `+mnt+`
[ "$A" = "$(sha256sum < `+mnt+`/before)" ]; [ "$B" = "$(sha256sum < `+mnt+`/after)" ]
umount `+mnt+`
e2fsck -fn $L >/dev/null 2>&1 && echo clean`)
				require.Equal(t, "100663296\n100663296\nclean\n", out)
				m.Stop(t)
				if need.Tool(t, "qemu-img"); k.name == "d.vhdx" {
					sh(t, dir, "qemu-img check -q -f vhdx d.vhdx")
				}
			})
		}
	}
}

// The backup GPT goes with the end of the disk, as partitioning tools want it.
func TestMoveGPTWithTheDisk(t *testing.T) {
	need.Tool(t, "sfdisk")
	need.Tool(t, "jq")
	for _, k := range spaceKinds {
		t.Run(k.name, func(t *testing.T) {
			m := Start(t, t.TempDir())
			verify := `sfdisk --verify $D/raw 2>&1; jq -c '[.Anomalies[].Name]' $D/partitions.json; `
			m.Shell(t, `echo size=64M `+k.create+` > .vhdfs/create
printf 'label: gpt\nstart=2048,size=65536,name=system\n' | sfdisk -q `+k.name+`/raw`)
			out := m.Shell(t, `D=`+k.name+`; echo 128M > $D/resize; jq -r '.Warnings[]' $D/resize; jq -c '[.Anomalies[].Name]' $D/partitions.json`)
			require.Contains(t, out, "the backup GPT is not at the end of the disk")
			require.Contains(t, out, `["part.gpt.backup-place"]`)
			out = m.Shell(t, `D=`+k.name+`; echo 128M movegpt=true > $D/resize; `+verify)
			require.Contains(t, out, "No errors detected.")
			require.NotContains(t, out, "PMBR")
			require.Contains(t, out, "[]\n")
			out = m.Shell(t, `D=`+k.name+`; echo size=+64M movegpt=true > $D/resize; stat -c %s $D/raw; `+verify)
			require.Contains(t, out, fmt.Sprint(192*mib))
			require.Contains(t, out, "No errors detected.")
			if !k.shrinks {
				return
			}
			out = m.Shell(t, `D=`+k.name+`; echo min movegpt=true > $D/resize; stat -c %s $D/raw; `+verify)
			require.Contains(t, out, fmt.Sprint(33*mib+33*512)) // the partition's end and the backup
			require.Contains(t, out, "No errors detected.")
			out = m.Shell(t, `D=`+k.name+`; ! echo min > $D/resize 2>/dev/null; jq .JobCompletionStatusCode $D/resize
! echo 33M > $D/resize 2>/dev/null; jq .JobCompletionStatusCode $D/resize`)
			require.Equal(t, "3225026599\n3225026597\n", out) // 0xC03A0027, 0xC03A0025
		})
	}
}

// wslSize is how much is written to the disk and deleted again.
func wslSize(t *testing.T) int64 {
	s := os.Getenv("VHDFS_WSL")
	if s == "" {
		return 64 * mib
	}
	n, err := strconv.ParseInt(s, 10, 64)
	require.NoError(t, err, "VHDFS_WSL is in MiB")
	return n * mib
}

// A disk that was filled and emptied, as a WSL distribution's is, becomes small:
// with fstrim while it is mounted, or by its zeros when it is not.
func TestADiskThatWasEmptiedBecomesSmall(t *testing.T) {
	need.Loop(t)
	for _, tool := range []string{"mkfs.ext4", "fstrim", "e2fsck", "jq"} {
		need.Tool(t, tool)
	}
	size := wslSize(t)
	for _, k := range spaceKinds[:2] {
		for way, free := range map[string]string{
			"fstrim":         `fstrim $M; sync; before; echo mode=full > $D/compact; after; umount $M`,
			"zeros, offline": `dd if=/dev/zero of=$M/zeros bs=1M status=none 2>/dev/null || true; sync; rm $M/zeros; sync; umount $M; before; echo mode=prezeroed > $D/compact; after`,
		} {
			t.Run(k.name+" "+way, func(t *testing.T) {
				dir, mnt := t.TempDir(), t.TempDir()
				m := Start(t, dir)
				image := filepath.Join(dir, k.name)
				out := m.Shell(t, `echo size=`+fmt.Sprint(size+size/4+64*mib)+` `+k.create+` > .vhdfs/create
D=`+k.name+` M=`+mnt+`
before() { echo "before $(stat -c %s `+image+`)"; }
after() { echo "after $(stat -c %s `+image+`)"; }
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 $D/raw
mount -o loop $D/raw $M
trap 'umount $M 2>/dev/null || true' EXIT
head -c 4M /dev/urandom > $M/kept; A=$(sha256sum < $M/kept)
head -c `+fmt.Sprint(size)+` /dev/urandom > $M/filler; sync
rm $M/filler; sync
`+free+`
mount -o loop,ro $D/raw $M; [ "$A" = "$(sha256sum < $M/kept)" ]; umount $M
e2fsck -fn $D/raw >/dev/null 2>&1 && echo clean`)
				require.Contains(t, out, "clean")
				var before, after int64
				_, err := fmt.Sscanf(out, "before %d\nafter %d\n", &before, &after)
				require.NoError(t, err, out)
				require.Greater(t, before, size)
				limit := live(t, m.Path(k.name, "raw"), k.block)*k.block + 8*mib
				t.Logf("%d MiB became %d, the limit is %d", before/mib, after/mib, limit/mib)
				require.LessOrEqual(t, after, limit)
				require.NoError(t, m.check(t, k.name))
			})
		}
	}
}

// check looks for anything odd about an image.
func (m *Mount) check(t *testing.T, name string) error {
	out, err := m.Try(t, "bash", `echo 1 > `+name+`/check || cat `+name+`/check`)
	if err == nil && out != "" {
		err = fmt.Errorf("%s", out)
	}
	return err
}

// live is how many blocks of a disk are not all zeros.
func live(t *testing.T, raw string, block int64) int64 {
	t.Helper()
	f, err := os.Open(raw)
	require.NoError(t, err)
	defer f.Close()
	var n int64
	b, zero := make([]byte, block), make([]byte, block)
	for off := int64(0); ; off += block {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return n
		}
		require.NoError(t, err)
		off = data / block * block
		got, err := f.ReadAt(b, off)
		if err != io.EOF {
			require.NoError(t, err)
		}
		if !bytes.Equal(b[:got], zero[:got]) {
			n++
		}
	}
}

// Space outside of partitions is given up where a GPT proves it free, and the dry
// run says so.
func TestCompactOutsideOfPartitions(t *testing.T) {
	need.Tool(t, "sfdisk")
	for _, k := range spaceKinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			m := Start(t, t.TempDir())
			m.Shell(t, `echo size=64M `+k.create+` > .vhdfs/create
head -c 64M /dev/urandom | dd of=`+k.name+`/raw bs=1M conv=notrunc,fsync status=none
printf 'label: gpt\nstart=8192,size=32768,name=system\n' | sfdisk -q -w never `+k.name+`/raw
dd if=`+k.name+`/raw bs=1M skip=4 count=16 status=none | sha256sum > $IMAGES/sum`)
			control := k.name + "/compact"
			m.Shell(t, `exec 4<>`+k.name+`/raw; echo mode=full > `+control)
			require.Zero(t, m.field(t, control, "BlocksDropped"), "somebody may write")
			require.Contains(t, fmt.Sprint(m.field(t, control, "Warnings")), "open for writing")
			m.Shell(t, `echo mode=full dryrun=true > `+control)
			dropped, after := m.field(t, control, "BlocksDropped"), m.field(t, control, "FileSizeAfter")
			require.Greater(t, dropped, float64(20))
			m.Shell(t, `echo mode=full > `+control+`
dd if=`+k.name+`/raw bs=1M skip=4 count=16 status=none | sha256sum | cmp - $IMAGES/sum
sfdisk --verify `+k.name+`/raw | grep -q "No errors detected"`)
			require.Equal(t, dropped, m.field(t, control, "BlocksDropped"))
			require.Equal(t, after, m.field(t, control, "FileSizeAfter"))
			require.NoError(t, m.check(t, k.name))
		})
	}
}

// Programs write while sizes change and space is given back.
func TestWritersBesideOperations(t *testing.T) {
	fio := need.Tool(t, "fio")
	for _, k := range spaceKinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			dir := t.TempDir()
			m := Start(t, dir)
			m.Shell(t, `echo size=64M `+k.create+` > .vhdfs/create`)
			ended := make(chan error, 1)
			go func() {
				out, err := run(t, dir, nil, fio, "--name=w", "--filename="+m.Path(k.name, "raw"), "--rw=randwrite", "--bs=4k-64k", "--size=64M",
					"--io_size=256M", "--verify=crc32c", "--verify_backlog=256", "--numjobs=1", "--trim_percentage=20", "--allow_file_create=0", "--group_reporting", "--verify_state_save=0")
				if err != nil {
					err = fmt.Errorf("%w: %s", err, out)
				}
				ended <- err
			}()
			for i := 0; ; i++ {
				select {
				case err := <-ended:
					require.NoError(t, err)
					require.Greater(t, i, 3, "operations beside the writer")
					require.NoError(t, m.check(t, k.name))
					return
				default:
				}
				m.Shell(t, `echo +1M > `+k.name+`/resize; echo mode=full > `+k.name+`/compact; echo 1 > `+k.name+`/compact`)
			}
		})
	}
}
