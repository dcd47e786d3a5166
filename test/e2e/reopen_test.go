package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vhdfs/test/fixture"
)

// numbered is a place on a disk that holds the number of the change that wrote it last.
const numbered = 64 << 10

// changing is an image that changes all the time while many open its raw: what an open
// reads is no older than it, and nobody is told ESTALE.
type changing struct {
	raw            string
	begun, written atomic.Int64 // numbers of changes, where they write any
	opens          atomic.Int64
}

// open opens raw and looks at what it reads. EBUSY is who changes the image, and ErrChanged
// told by READ is that it changed while it was open.
func (c *changing) open() error {
	oldest := c.written.Load()
	f, err := os.Open(c.raw)
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, numbered); err != nil {
		return nil
	}
	c.opens.Add(1)
	if n := int64(binary.LittleEndian.Uint64(b)); n < oldest || n > c.begun.Load() {
		return fmt.Errorf("read the %dth change, which is not between the %dth and the %dth", n, oldest, c.begun.Load())
	}
	return nil
}

// run changes the image until it was opened often.
func (c *changing) run(t *testing.T, often int64, change func(i int64) error) {
	var all sync.WaitGroup
	ended := make(chan struct{})
	for range 4 {
		all.Go(func() {
			for c.opens.Load() < often && !t.Failed() {
				if err := c.open(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { all.Wait(); close(ended) }()
	for i := int64(1); ; i++ {
		require.NoError(t, change(i))
		select {
		case <-ended:
			return
		case <-time.After(time.Duration(i%5) * 100 * time.Microsecond):
		}
	}
}

// An image that changes in its times, by name, by size, and by operations of the
// service, is opened by many at once: whatever happens between look-up and open, nobody
// is told ESTALE, and nobody reads what was replaced before.
func TestOpenWhileTheImageChanges(t *testing.T) {
	t.Parallel()
	number := func(i int64) []fixture.Write {
		return []fixture.Write{{Off: numbered, Data: binary.LittleEndian.AppendUint64(nil, uint64(i))}}
	}
	for name, prepare := range map[string]func(t *testing.T, m *Mount, c *changing) func(i int64) error{
		"touched": func(_ *testing.T, m *Mount, _ *changing) func(int64) error {
			return func(i int64) error {
				at := time.Unix(i, 0)
				return os.Chtimes(filepath.Join(m.Images, "d.vhd"), at, at)
			}
		},
		"replaced": func(t *testing.T, m *Mount, c *changing) func(int64) error {
			spare := filepath.Join(t.TempDir(), "spare")
			return func(i int64) error {
				c.begun.Store(i)
				err := fixture.VHD{Size: 8*mib + mib*(i%3%2), Writes: number(i)}.WriteFile(spare)
				err = errors.Join(err, os.Rename(spare, filepath.Join(m.Images, "d.vhd")))
				c.written.Store(i)
				return err
			}
		},
		"resized": func(t *testing.T, m *Mount, _ *changing) func(int64) error {
			return func(i int64) error {
				size := []string{"9M", "10M"}[i%2]
				if err := os.WriteFile(m.Path("d.vhdx", "resize"), []byte("unsafe=true size="+size), 0); !errors.Is(err, unix.EBUSY) {
					return err
				}
				return nil
			}
		},
		"a set goes back and forth": func(t *testing.T, m *Mount, c *changing) func(int64) error {
			m.Shell(t, `mkdir d.vhds/snapshots/start`)
			return func(i int64) error {
				err := os.WriteFile(m.Path("d.vhds", "apply"), []byte("start"), 0)
				if errors.Is(err, unix.EBUSY) {
					return nil
				}
				return err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, fixture.VHD{Size: 8 * mib, Writes: number(0)}.WriteFile(filepath.Join(dir, "d.vhd")))
			m := Start(t, dir)
			m.Shell(t, `echo path=d.vhdx size=9M > .vhdfs/create; echo path=d.vhds size=9M > .vhdfs/create`)
			image, often := "d.vhd", int64(500)
			switch name { // operations take longer, and keep opens waiting
			case "resized":
				image, often = "d.vhdx", 200
			case "a set goes back and forth":
				image, often = "d.vhds", 40
			}
			c := &changing{raw: m.Path(image, "raw")}
			c.run(t, often, prepare(t, m, c))
		})
	}
}

// Another program writes the file of an image between two opens of raw, faster than
// time stamps can tell: every open reads what is there, not what the kernel has cached.
func TestReopenReadsWhatWasWrittenAtOnce(t *testing.T) {
	t.Parallel()
	m, below := written(t)
	b := make([]byte, 8)
	for i := range uint64(300) {
		_, err := below.WriteAt(binary.LittleEndian.AppendUint64(nil, i), numbered)
		require.NoError(t, err)
		for range 2 {
			raw, err := os.Open(m.Path("d.vhd", "raw"))
			require.NoError(t, err)
			_, err = raw.ReadAt(b, numbered)
			require.NoError(t, err)
			require.Equal(t, i, binary.LittleEndian.Uint64(b))
			require.NoError(t, raw.Close())
		}
	}
}

// Another program writes the file of an image, without asking for its lock, while a
// reader has raw open. Who opens raw when the reader has gone reads what is there, not
// what the kernel kept of it.
func TestReopenReadsWhatWasWrittenBelow(t *testing.T) {
	t.Parallel()
	m, below := written(t)
	const late = 100 * time.Millisecond // by when times of files tell changes apart
	for i := range byte(4) {
		time.Sleep(late)
		before, after := make([]byte, 1), make([]byte, 1)
		raw, err := os.Open(m.Path("d.vhd", "raw"))
		require.NoError(t, err)
		_, err = raw.ReadAt(before, numbered)
		require.NoError(t, err)
		require.Equal(t, i, before[0])
		_, err = below.WriteAt([]byte{i + 1}, numbered)
		require.NoError(t, err)
		time.Sleep(late)
		require.NoError(t, raw.Close())
		time.Sleep(late) // until the daemon has closed it
		raw, err = os.Open(m.Path("d.vhd", "raw"))
		require.NoError(t, err)
		_, err = raw.ReadAt(after, numbered)
		require.NoError(t, err)
		require.NoError(t, raw.Close())
		require.Equal(t, i+1, after[0])
	}
}

// written is a mount with a fixed disk whose file the test writes.
func written(t *testing.T) (m *Mount, below *os.File) {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "d.vhd")
	require.NoError(t, fixture.VHD{Size: 8 * mib, Type: 2}.WriteFile(image))
	m = Start(t, dir)
	below, err := os.OpenFile(image, os.O_WRONLY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, below.Close()) })
	return m, below
}
