package mount

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
)

// Journal is what a test knows of one disk, kept outside the mount: which
// values each sector may hold after a crash. It is the contract in small:
//
//   - what an acknowledged fsync covered is there, or something newer (C1);
//   - every sector is one of the values that were ever asked for since the last
//     judgement, whole, and never another sector's (C2).
//
// A write counts from the moment it was asked for; an fsync covers the writes of
// every writer that had returned before it began.
type Journal struct {
	size    int64
	sectors [][]stamp // oldest first; the first one is what the last judgement found
	done    [Writers]atomic.Uint64
	seqs    [Writers]uint64 // of each writer, never reused
	kept    struct {
		sync.Mutex
		upTo   [Writers]uint64 // covered by an acknowledged fsync
		closed bool            // acknowledgements come too late to count
	}
	Counts Counts
}

// Counts are what a run has done; a test prints them.
type Counts struct {
	Writes, Punches, Flushes, Sectors, Loose atomic.Int64
}

func (c *Counts) String() string {
	return fmt.Sprintf("%d writes, %d punches, %d acknowledged flushes; %d sectors judged, %d of them with more than one value allowed",
		c.Writes.Load(), c.Punches.Load(), c.Flushes.Load(), c.Sectors.Load(), c.Loose.Load())
}

// Add adds what another run has done.
func (c *Counts) Add(o *Counts) {
	c.Writes.Add(o.Writes.Load())
	c.Punches.Add(o.Punches.Load())
	c.Flushes.Add(o.Flushes.Load())
	c.Sectors.Add(o.Sectors.Load())
	c.Loose.Add(o.Loose.Load())
}

// NewJournal is that of a disk which shows [Base].
func NewJournal(size int64) *Journal {
	j := &Journal{size: size, sectors: make([][]stamp, size/sector)}
	for i := range j.sectors {
		j.sectors[i] = []stamp{0}
	}
	for _, w := range Base(size) {
		for at := int64(0); at < int64(len(w.Data)); at += sector {
			j.sectors[(w.Off+at)/sector][0] = newStamp(parents, 1)
		}
	}
	return j
}

// ask notes a write before it is made. Only the owner of the sectors calls it.
func (j *Journal) ask(off, n int64, s stamp) {
	for i := off / sector; i < (off+n)/sector; i++ {
		j.sectors[i] = append(j.sectors[i], s)
	}
}

// covered is what an fsync that begins now will cover.
func (j *Journal) covered() (c [Writers]uint64) {
	for w := range c {
		c[w] = j.done[w].Load()
	}
	return c
}

// acknowledge notes that an fsync succeeded which covered c.
func (j *Journal) acknowledge(c [Writers]uint64) {
	j.kept.Lock()
	defer j.kept.Unlock()
	if j.kept.closed {
		return
	}
	for w := range c {
		j.kept.upTo[w] = max(j.kept.upTo[w], c[w])
	}
	j.Counts.Flushes.Add(1)
}

// Seal ends the taking of acknowledgements until the next load. Before a power
// cut is simulated it must be called: an fsync that is under way when ext4 goes
// down may find its transaction gone, and succeed. No real cut lets it answer.
func (j *Journal) Seal() {
	j.kept.Lock()
	defer j.kept.Unlock()
	j.kept.closed = true
}

// allowed are the values that a sector may hold.
func (j *Journal) allowed(i int64) []stamp {
	list := j.sectors[i]
	from := 0
	for k, s := range list {
		if w := s.writer(); w >= 0 && w < Writers && s.seq() <= j.kept.upTo[w] {
			from = k
		}
	}
	return list[from:]
}

// maxViolations are listed; one is as bad as many.
const maxViolations = 10

// Judge reads the whole disk and compares. What it finds is what every sector
// holds from then on: a second recovery must not change it (C4). No writer may
// run meanwhile.
func (j *Journal) Judge(raw string) error {
	f, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != j.size {
		return fmt.Errorf("size of %s is %d, want %d (%v)", raw, st.Size(), j.size, err)
	}
	var bad []string
	buf := make([]byte, 1<<20)
	for off := int64(0); off < j.size; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), j.size-off)], off)
		if err != nil && err != io.EOF || n == 0 {
			return fmt.Errorf("read %s at %d: %d bytes, %w", raw, off, n, err)
		}
		for at := 0; at < n; at += sector {
			if why := j.judge((off+int64(at))/sector, buf[at:at+sector]); why != "" {
				bad = append(bad, why)
			}
		}
		off += int64(n)
	}
	if len(bad) == 0 {
		return nil
	}
	more := ""
	if len(bad) > maxViolations {
		more = fmt.Sprintf("\n… and %d more", len(bad)-maxViolations)
		bad = bad[:maxViolations]
	}
	return fmt.Errorf("%s:\n%s%s", raw, strings.Join(bad, "\n"), more)
}

// judge says why a sector must not be b, and takes b for its value otherwise.
func (j *Journal) judge(i int64, b []byte) string {
	may := j.allowed(i)
	j.Counts.Sectors.Add(1)
	if len(may) > 1 {
		j.Counts.Loose.Add(1)
	}
	for k := len(may) - 1; k >= 0; k-- {
		if may[k].is(b, i) {
			j.sectors[i] = []stamp{may[k]}
			return ""
		}
	}
	names := make([]string, len(may))
	for k, s := range may {
		names[k] = s.String()
	}
	return fmt.Sprintf("sector %d (byte %#x) is %s; may be %s", i, i*sector, explain(b, i), strings.Join(names, " or "))
}
