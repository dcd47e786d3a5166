package part

import (
	"fmt"
	"hash/crc32"
	"math"

	"vhdfs/ops"
)

// move is a GPT on its way to another end of its disk. Numbers are sectors.
type move struct {
	d       ops.GuestDisk
	sector  int64
	boot    []byte // sector 0
	header  []byte // sector 1
	h       gptHeader
	room    int64 // of the entries
	old     int64 // where the backup is said to be
	entries int64 // where those of the backup go
	last    int64 // the last sector of the disk: where the backup goes
}

// MoveGPT implements [ops.Tables]. The order of writes, with a flush after each:
//
//	backup: entries, header   first header still names the old one, which may be gone
//	first header              names the new backup; sector 0 has another size
//	sector 0                  whole; the old backup is still there
//	old backup                gone, where it would be in the way of nothing
//
// Each header is one write within 512 bytes: it is there or it is not.
func (Tables) MoveGPT(d ops.GuestDisk, end int64, sector uint32) (bool, error) {
	m, err := newMove(d, end, int64(sector))
	if err != nil {
		return false, err
	}
	done, err := m.done()
	if done || err != nil {
		return false, err
	}
	wipe, err := m.oldBackup()
	if err != nil {
		return false, err
	}
	for _, step := range []func() error{m.putBackup, m.putFirst, m.putBoot} {
		if err := step(); err != nil {
			return true, err
		}
	}
	if !wipe {
		return true, nil
	}
	return true, m.put(make([]byte, m.sector), m.old)
}

// newMove looks at everything that forbids the move.
func newMove(d ops.GuestDisk, end, sector int64) (*move, error) {
	t, err := Read(d, d.Size(), uint32(sector))
	if err != nil {
		return nil, err
	}
	at := &disk{r: d, sector: sector, sectors: d.Size() / sector, t: t}
	m := &move{d: d, sector: sector, last: end/sector - 1, boot: make([]byte, sector), header: make([]byte, sector)}
	if t.Scheme != GPT {
		return nil, ops.Errorf(ops.ErrUsage, 0, "movegpt: the disk has no GPT")
	}
	first, err := at.copyAt(1)
	if err != nil {
		return nil, err
	}
	if first.bad != nil {
		return nil, ops.Corruptf(0, "movegpt: the first GPT, in sector 1, cannot be used: %v", first.bad)
	}
	if err := at.read(m.boot, 0, "sector 0"); err != nil {
		return nil, err
	}
	if err := at.read(m.header, sector, "gpt header"); err != nil {
		return nil, err
	}
	m.h = first.header
	m.old = int64(min(m.h.alternate, math.MaxInt64))
	m.room = m.h.arraySectors(sector)
	m.entries = m.last - m.room
	return m, m.fits(first)
}

// fits refuses an end that leaves no room for the backup.
func (m *move) fits(first *gptCopy) error {
	usable := m.entries - 1 // the last one
	if usable < int64(m.h.first) || m.entries < int64(m.h.entries)+m.room {
		return ops.Errorf(ops.ErrUsage, ops.StatusTruncates, "movegpt: a disk of %d sectors has no room for two tables and the usable sectors from %d", m.last+1, m.h.first)
	}
	for _, e := range first.parts {
		if e.last > uint64(usable) {
			return ops.Errorf(ops.ErrUsage, ops.StatusTruncates, "movegpt: partition %d ends with sector %d, the last that a disk of %d sectors can use is %d",
				e.index, e.last, m.last+1, usable)
		}
	}
	return nil
}

// done tells whether everything is in its place.
func (m *move) done() (bool, error) {
	_, whole := m.protective()
	if m.old != m.last || m.h.last != uint64(m.entries-1) || !whole {
		return false, nil
	}
	at := &disk{r: m.d, sector: m.sector, sectors: m.last + 1, t: &Table{}}
	if m.d.Size() < (m.last+1)*m.sector {
		return false, nil
	}
	b, err := at.copyAt(m.last)
	return err == nil && b.bad == nil && b.header.entriesCRC == m.h.entriesCRC && b.header.disk == m.h.disk, err
}

// oldBackup tells whether a header is where the backup was, in space that will
// be nobody's: not in a partition, nor where the new one goes.
func (m *move) oldBackup() (bool, error) {
	if m.old <= int64(m.h.first) || m.old >= m.entries {
		return false, nil
	}
	at := &disk{r: m.d, sector: m.sector, sectors: m.d.Size() / m.sector, t: &Table{}}
	c, err := at.copyAt(m.old)
	if err != nil || c.bad != nil || c.header.disk != m.h.disk {
		return false, err
	}
	first, err := at.copyAt(1)
	if err != nil {
		return false, err
	}
	for _, e := range first.parts {
		if e.first <= uint64(m.old) && uint64(m.old) <= e.last {
			return false, nil
		}
	}
	return true, nil
}

// putBackup copies the entries, a chunk at a time, and puts the header behind.
func (m *move) putBackup() error {
	left, off := m.room*m.sector, int64(0)
	b := make([]byte, min(left, gptChunk))
	for left > 0 {
		b = b[:min(left, gptChunk)]
		if n, err := m.d.ReadAt(b, int64(m.h.entries)*m.sector+off); n < len(b) {
			return fmt.Errorf("part: gpt entries: %w", err)
		}
		if _, err := m.d.WriteAt(b, m.entries*m.sector+off); err != nil {
			return fmt.Errorf("part: backup of the gpt entries: %w", err)
		}
		left, off = left-int64(len(b)), off+int64(len(b))
	}
	return m.put(m.sealed(m.last, 1, m.entries), m.last)
}

func (m *move) putFirst() error {
	return m.put(m.sealed(1, m.last, int64(m.h.entries)), 1)
}

// sealed is the header with other places in it.
func (m *move) sealed(my, alternate, entries int64) []byte {
	b := append([]byte{}, m.header...)
	le.PutUint64(b[24:], uint64(my))
	le.PutUint64(b[32:], uint64(alternate))
	le.PutUint64(b[48:], uint64(m.entries-1))
	le.PutUint64(b[72:], uint64(entries))
	clear(b[16:20])
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:le.Uint32(b[12:])]))
	return b
}

// protective is sector 0 with a protective entry of the new size, and whether it
// has that already. One beside other partitions is left alone: it may end where
// those want it.
func (m *move) protective() ([]byte, bool) {
	b := append([]byte{}, m.boot...)
	boot := decodeMBR(b)
	at := -1
	for i, s := range boot.slots {
		switch {
		case s.used() && s.kind != typeProtect:
			return b, true
		case s.kind == typeProtect && s.start == 1:
			at = slotsOff + i*slotSize
		}
	}
	if at < 0 {
		return b, true
	}
	size := uint32(min(m.last, math.MaxUint32))
	whole := le.Uint32(b[at+12:]) == size
	le.PutUint32(b[at+12:], size)
	return b, whole
}

func (m *move) putBoot() error {
	b, whole := m.protective()
	if whole {
		return nil
	}
	return m.put(b, 0)
}

// put stores one sector durably.
func (m *move) put(b []byte, sector int64) error {
	if _, err := m.d.WriteAt(b, sector*m.sector); err != nil {
		return fmt.Errorf("part: sector %d of the gpt: %w", sector, err)
	}
	return m.d.Flush()
}
