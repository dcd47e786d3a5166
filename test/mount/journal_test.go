package mount

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// owner is the only writer of a sector, as package documentation has it.
func owner(size, number int64) int {
	off := number * sector
	if half := size / 2; off >= half {
		return int((off - half) / pieceOf(size))
	}
	return int((off + stripe/2) / stripe % Writers)
}

func TestWritersShareNoSector(t *testing.T) {
	for _, k := range Kinds {
		t.Run(k.Name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			spans := 0
			for i := range 40000 {
				w := i % Writers
				off, n := pick(rng, k.Size, w, mostPunch)
				require.Positive(t, n)
				require.LessOrEqual(t, off+n, k.Size)
				require.Equal(t, w, owner(k.Size, off/sector), "first sector of %d+%d", off, n)
				require.Equal(t, w, owner(k.Size, (off+n)/sector-1), "last sector of %d+%d", off, n)
				if off/mib != (off+n-1)/mib {
					spans++
				}
			}
			require.Positive(t, spans, "no range lies in two blocks")
		})
	}
}

// disk is a plain file that shows what a new disk shows, with a journal.
func disk(t *testing.T) (*os.File, *Journal) {
	t.Helper()
	const size = 4 * mib
	f, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	require.NoError(t, f.Truncate(size))
	for _, w := range Base(size) {
		_, err := f.WriteAt(w.Data, w.Off)
		require.NoError(t, err)
	}
	return f, NewJournal(size)
}

func TestALoadOnAPlainFileIsRight(t *testing.T) {
	f, j := disk(t)
	require.NoError(t, j.Judge(f.Name()))
	l, err := j.Load(f.Name(), 1)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return j.Counts.Flushes.Load() > 20 && j.Counts.Punches.Load() > 20 }, 1<<36, 1<<20)
	require.NoError(t, l.Stop())
	require.NoError(t, j.Judge(f.Name()))
	require.NoError(t, j.Judge(f.Name()), "the second time it is what was found")
}

// What a bad disk does is seen: each row writes 1, 2 and 3 to sector 0, flushes
// some of them, and puts other bytes there.
func TestJudgementOfASector(t *testing.T) {
	one, two, three := newStamp(0, 1), newStamp(0, 2), newStamp(0, 3)
	content := func(s stamp, sector int64) []byte {
		b := make([]byte, 512)
		s.fill(b, sector)
		return b
	}
	for _, tt := range []struct {
		name    string
		flushed uint64 // up to this write
		b       []byte
		want    string // "": accepted
	}{
		{"the last, flushed", 3, content(three, 0), ""},
		{"the last, not flushed", 1, content(three, 0), ""},
		{"the flushed one", 1, content(one, 0), ""},
		{"between", 1, content(two, 0), ""},
		{"never flushed, old", 0, make([]byte, 512), ""},
		{"older than flushed", 2, content(one, 0), "sector 0 (byte 0x0) is writer 0, 1; may be writer 0, 2 or writer 0, 3"},
		{"lost", 1, make([]byte, 512), "is zeros; may be writer 0, 1 or"},
		{"never written", 3, content(newStamp(0, 4), 0), "is writer 0, 4; may be"},
		{"another writer's", 1, content(newStamp(1, 2), 0), "is writer 1, 2; may be"},
		{"another sector's", 1, content(two, 7), "is sector 7's: writer 0, 2; may be"},
		{"torn", 1, append(content(two, 0)[:256], content(three, 0)[256:]...), "is torn: begins as writer 0, 2; may be"},
		{"torn at the last byte", 1, append(content(two, 0)[:511], 0), "is torn"},
		{"log", 1, append([]byte("loge"), make([]byte, 508)...), "is foreign bytes 6c6f6765"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, j := disk(t)
			for _, s := range []stamp{one, two, three} {
				j.ask(0, sector, s)
				j.done[0].Store(s.seq())
				if s.seq() == tt.flushed {
					j.acknowledge(j.covered())
				}
			}
			_, err := f.WriteAt(tt.b, 0)
			require.NoError(t, err)
			err = j.Judge(f.Name())
			if tt.want != "" {
				require.ErrorContains(t, err, tt.want)
				return
			}
			require.NoError(t, err)
		})
	}
}

// What one recovery showed, the next must show too.
func TestJudgementHoldsFromThenOn(t *testing.T) {
	f, j := disk(t)
	old := make([]byte, sector)
	j.ask(0, sector, newStamp(0, 1))
	b := make([]byte, sector)
	newStamp(0, 1).fill(b, 0)
	_, err := f.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, j.Judge(f.Name()))
	_, err = f.WriteAt(old, 0)
	require.NoError(t, err)
	require.ErrorContains(t, j.Judge(f.Name()), "sector 0 (byte 0x0) is zeros; may be writer 0, 1")
}

// A hole is zeros, and bytes from before it are seen.
func TestJudgementOfAHole(t *testing.T) {
	f, j := disk(t)
	const at = 96 << 10 // the parent's
	require.NoError(t, j.Judge(f.Name()))
	j.ask(at, sector, newStamp(2, 1)|punched)
	j.done[2].Store(1)
	require.NoError(t, j.Judge(f.Name()), "not flushed")
	j.ask(at, sector, newStamp(2, 2)|punched)
	j.done[2].Store(2)
	j.acknowledge(j.covered())
	require.ErrorContains(t, j.Judge(f.Name()), "sector 192 (byte 0x18000) is the parent's; may be zeros of writer 2, 2")
}
