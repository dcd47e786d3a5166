package e2e

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/test/fixture"
)

// An image that changes all the time, in its times, by name and by size, is opened by
// many at once: whatever happens between look-up and open, nobody is told ESTALE.
func TestOpenWhileTheImageChanges(t *testing.T) {
	t.Parallel()
	replace := func(size int64) func(image, spare string, i int) error {
		return func(image, spare string, i int) error {
			err := fixture.VHD{Size: 8*mib + size*int64(i%2)}.WriteFile(spare)
			return errors.Join(err, os.Rename(spare, image))
		}
	}
	for name, change := range map[string]func(image, spare string, i int) error{
		"touched": func(image, _ string, i int) error {
			at := time.Unix(int64(i), 0)
			return os.Chtimes(image, at, at)
		},
		"replaced":                 replace(0),
		"replaced by another size": replace(mib),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			image, spare := filepath.Join(dir, "d.vhd"), filepath.Join(t.TempDir(), "spare")
			require.NoError(t, fixture.VHD{Size: 8 * mib}.WriteFile(image))
			m := Start(t, dir)
			var all sync.WaitGroup
			var opens atomic.Int64
			ended := make(chan struct{})
			for range 4 {
				all.Go(func() {
					for opens.Add(1) < 500 {
						f, err := os.Open(m.Path("d.vhd", "raw"))
						if err != nil {
							t.Error(err)
							continue
						}
						_, _ = f.ReadAt(make([]byte, 4096), 4096) // it may be told that the file changed
						_ = f.Close()
					}
				})
			}
			go func() { all.Wait(); close(ended) }()
			for i := 0; ; i++ {
				require.NoError(t, change(image, spare, i))
				select {
				case <-ended:
					return
				case <-time.After(time.Duration(i%5) * 100 * time.Microsecond):
				}
			}
		})
	}
}

// Another program writes the file of an image between two opens of raw, faster than
// time stamps can tell: every open reads what is there, not what the kernel has cached.
func TestReopenReadsWhatWasWrittenBelow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "d.vhd")
	require.NoError(t, fixture.VHD{Size: 8 * mib, Type: 2}.WriteFile(image))
	m := Start(t, dir)
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 8)
	for i := range uint64(300) {
		_, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, i), 64<<10)
		require.NoError(t, err)
		for range 2 {
			raw, err := os.Open(m.Path("d.vhd", "raw"))
			require.NoError(t, err)
			_, err = raw.ReadAt(b, 64<<10)
			require.NoError(t, err)
			require.Equal(t, i, binary.LittleEndian.Uint64(b))
			require.NoError(t, raw.Close())
		}
	}
}
