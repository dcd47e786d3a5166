package vhdx

import (
	"io"

	"vhdfs/ops"
)

const (
	// scanCached is how many pages a scan of the BAT takes through the cache
	// before it reads on its own, so that a long scan evicts nothing.
	scanCached = 8
	scanBuffer = 256 * kib
)

// table is the BAT and the sector bitmaps as pages of the file, by page number.
// Pages that were changed and not yet logged are in dirty. Guarded by Disk.mu.
type table struct {
	src   io.ReaderAt
	cache *ops.Pages
	dirty map[int64][]byte
}

// page is page i of the file; the result must not be changed.
func (t *table) page(i int64) ([]byte, error) {
	if b, ok := t.dirty[i]; ok {
		return b, nil
	}
	return t.cache.Get(i, func(b []byte) error {
		return readFull(t.src, b, i*pageSize, "table page")
	})
}

// read fills p, which starts at a page, around the cache.
func (t *table) read(p []byte, off int64) error {
	if err := readFull(t.src, p, off, "table"); err != nil {
		return err
	}
	for o := int64(0); o < int64(len(p)); o += pageSize {
		if b, ok := t.dirty[(off+o)/pageSize]; ok {
			copy(p[o:], b)
		}
	}
	return nil
}

// entryAt is entry i of the BAT.
func (d *Disk) entryAt(i int64) (entry, error) {
	at := d.regions.bat.off + i*entryBytes
	b, err := d.table.page(at / pageSize)
	if err != nil {
		return 0, err
	}
	return entry(le.Uint64(b[at%pageSize:])), nil
}

// scanBAT calls f with the entries [from, to) in order until it answers false.
// Entries of zeros, also those that stand in a hole of the host file, go to skip
// unless that is nil: n of them at once.
func (d *Disk) scanBAT(from, to int64, skip func(i, n int64) bool, f func(i int64, e entry) bool) error {
	return d.scanPages(from, to, scanCached, skip, f)
}

// scanPages is scanBAT that takes the first pages, as many as cached says, through
// the cache.
func (d *Disk) scanPages(from, to int64, cached int, skip func(i, n int64) bool, f func(i int64, e entry) bool) error {
	var buf []byte
	for n := 0; from < to; n++ {
		if n >= cached && skip != nil {
			if hole := d.holeEntries(from, to); hole > 0 {
				if !skip(from, hole) {
					return nil
				}
				from += hole
				continue
			}
		}
		at := d.regions.bat.off + from*entryBytes
		var b []byte
		var err error
		if n < cached {
			b, err = d.table.page(at / pageSize)
		} else {
			left := d.regions.bat.off + roundUp(to*entryBytes, pageSize) - at/pageSize*pageSize
			if buf == nil {
				buf = make([]byte, min(scanBuffer, left))
			}
			b = buf[:min(scanBuffer, left)]
			err = d.table.read(b, at/pageSize*pageSize)
		}
		if err != nil {
			return err
		}
		b = b[at%pageSize:]
		b = b[:min(int64(len(b))/entryBytes, to-from)*entryBytes]
		if !eachEntry(b, from, skip, f) {
			return nil
		}
		from += int64(len(b)) / entryBytes
	}
	return nil
}

// eachEntry is scanBAT for entries that were read, from BAT index i on. It tells
// whether to go on.
func eachEntry(b []byte, i int64, skip func(i, n int64) bool, f func(i int64, e entry) bool) bool {
	for len(b) > 0 {
		n := int64(1)
		if e := entry(le.Uint64(b)); e != 0 || skip == nil {
			if !f(i, e) {
				return false
			}
		} else {
			n = leadingZeros(b)
			if !skip(i, n) {
				return false
			}
		}
		b, i = b[n*entryBytes:], i+n
	}
	return true
}

// leadingZeros is how many entries at the start of b are zeros.
func leadingZeros(b []byte) int64 {
	at := 0
	for at < len(b) && le.Uint64(b[at:]) == 0 {
		at += entryBytes
	}
	return int64(at / entryBytes)
}

// holeEntries is how many entries from BAT index i on stand in a hole of the
// host file; 0 when that cannot be told.
func (d *Disk) holeEntries(i, to int64) int64 {
	if d.overlay != nil {
		return 0
	}
	at := d.regions.bat.off + i*entryBytes
	end := d.regions.bat.off + to*entryBytes
	data, _, err := d.f.NextData(at)
	switch {
	case err == nil:
		end = min(end, data)
	case err != io.EOF:
		return 0 // only a short cut is lost
	}
	for p := range d.table.dirty {
		if off := p * pageSize; off+pageSize > at {
			end = min(end, max(off, at))
		}
	}
	return max(0, (end-at)/entryBytes)
}
