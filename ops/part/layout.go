package part

import (
	"io"
	"slices"

	"vhdfs/ops"
)

// Tables implements [ops.Tables].
type Tables struct{}

var _ ops.Tables = Tables{}

// freeFrom is where space that nobody has partitioned may be free, in bytes: boot
// code and its maps stand before it.
const freeFrom = 1 << 20

// Layout reads the table of r and says what follows from it.
func (Tables) Layout(r io.ReaderAt, size int64, sector uint32) (*ops.Layout, error) {
	t, err := Read(r, size, sector)
	if err != nil {
		return nil, err
	}
	l := &ops.Layout{GPT: t.usableGPT(), BackupAtEnd: t.BackupAtEnd}
	if t.MinInternalSize != nil {
		l.MinInternalSize = *t.MinInternalSize
	} else {
		l.Unknown = t.unknown(size)
	}
	if t.sound() {
		l.Free = t.free()
	}
	return l, nil
}

// sound tells whether both copies of a GPT are whole and where every tool puts
// them, and nothing about it is odd.
func (t *Table) sound() bool {
	return t.usableGPT() && t.BackupAtEnd && len(t.Anomalies) == 0 &&
		t.firstEnd <= t.FirstUsable && t.LastUsable < t.backupStart
}

func (t *Table) usableGPT() bool { return t.Scheme == GPT && t.ID != "" }

// unknown is why a disk of size bytes has no smallest size.
func (t *Table) unknown(size int64) string {
	switch {
	case t.Scheme == None:
		return "it has no partition table"
	case t.Scheme == GPT && !t.usableGPT():
		return "neither copy of its GPT can be used"
	case len(t.Partitions) == 0:
		return "its partition table has no partitions"
	}
	for i := range t.Partitions {
		if p := &t.Partitions[i]; p.Length <= 0 || p.end() > size {
			return "a partition is not within the disk"
		}
	}
	return "the backup GPT has no room behind the last partition"
}

// free is what no partition of a sound GPT covers within the usable sectors.
func (t *Table) free() []ops.Range {
	parts := pointers(t.Partitions)
	slices.SortFunc(parts, func(a, b *Partition) int { return int(min(max(a.Start-b.Start, -1), 1)) })
	var list []ops.Range
	from := max(t.FirstUsable, freeFrom)
	until := func(end int64) {
		if end > from {
			list = append(list, ops.Range{Off: from, Len: end - from})
		}
	}
	for _, p := range parts {
		until(p.Start)
		from = max(from, p.end())
	}
	until(t.LastUsable + 1)
	return list
}
