package vhdx

import (
	"fmt"
	"slices"

	"vhdfs/ops"
)

const (
	metadataTableSize = 64 * kib
	maxItems          = 2047 // [MS-VHDX] 2.6.1.1
	maxUserItems      = 1024
	maxItem           = mib // bytes of one item
	maxDisk           = int64(64) << 40
	maxBlock          = 256 * mib

	itemUser        = 1
	itemVirtualDisk = 2
	itemRequired    = 4
)

var (
	itemParameters = mustGUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	itemDiskSize   = mustGUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	itemDiskID     = mustGUID("beca12ab-b2e6-4523-93ef-c309e000c746")
	itemLogical    = mustGUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	itemPhysical   = mustGUID("cda348c7-445d-4471-9cc9-e9885251c556")
	itemLocator    = mustGUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
	// itemIncomplete marks a file whose creation or merge never ended.
	itemIncomplete = mustGUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3")
	// itemCHS holds a geometry for old guests; nothing here depends on it.
	itemCHS = mustGUID("da02d7bc-3d3a-423c-ac88-2a36ab21479b")
)

// itemLength is the length that each known item must have; the locator's varies.
var itemLength = map[ops.GUID]uint32{
	itemParameters: 8, itemDiskSize: 8, itemDiskID: 16, itemLogical: 4, itemPhysical: 4,
}

// item is where a metadata item lies in its region ([MS-VHDX] 2.6.1.2).
type item struct {
	offset, length uint32
	flags          uint32
	index          int // in the table
}

// decodeMetadataTable reads the table at the start of a metadata region of
// regionLen bytes and answers the system items by id.
func decodeMetadataTable(b []byte, regionLen int64) (map[ops.GUID]item, error) {
	if got := string(b[0:8]); got != "metadata" {
		return nil, corruptf(ops.StatusMetadataRead, "metadata table: signature %q, want %q", got, "metadata")
	}
	count := int(le.Uint16(b[10:]))
	if count > maxItems {
		return nil, corruptf(ops.StatusMetadataRead, "metadata table: %d entries, at most %d", count, maxItems)
	}
	system := map[ops.GUID]item{}
	user := map[ops.GUID]bool{}
	var spans []span
	for i := range count {
		e := b[32+32*i:]
		id := ops.GUIDFromLE(e)
		it := item{offset: le.Uint32(e[16:]), length: le.Uint32(e[20:]), flags: le.Uint32(e[24:]), index: i}
		if err := checkItem(i, id, it, regionLen); err != nil {
			return nil, err
		}
		_, twice := system[id]
		if it.flags&itemUser != 0 {
			twice = user[id]
			user[id] = true
		} else {
			system[id] = it
		}
		if twice {
			return nil, corruptf(ops.StatusMetadataRead, "metadata item %d: id %s a second time", i, id)
		}
		if it.length > 0 {
			spans = append(spans, span{int64(it.offset), int64(it.offset) + int64(it.length)})
		}
	}
	if len(user) > maxUserItems {
		return nil, corruptf(ops.StatusMetadataRead, "metadata table: %d user entries, at most %d", len(user), maxUserItems)
	}
	slices.SortFunc(spans, func(a, b span) int { return int(min(max(a.off-b.off, -1), 1)) })
	for i := 1; i < len(spans); i++ {
		if spans[i].overlaps(spans[i-1]) {
			return nil, corruptf(ops.StatusMetadataRead, "metadata item at %#x overlaps item at %#x", spans[i].off, spans[i-1].off)
		}
	}
	return system, nil
}

func checkItem(i int, id ops.GUID, it item, regionLen int64) error {
	switch {
	case id.IsZero():
		return corruptf(ops.StatusMetadataRead, "metadata item %d: id is zero", i)
	case it.flags&^(itemUser|itemVirtualDisk|itemRequired) != 0:
		return corruptf(ops.StatusMetadataRead, "metadata item %d: reserved flags %#x", i, it.flags)
	case it.length > uint32(maxItem):
		return corruptf(ops.StatusMetadataRead, "metadata item %d: length %d, at most %d", i, it.length, maxItem)
	case it.length > 0 && int64(it.offset) < metadataTableSize:
		return corruptf(ops.StatusMetadataRead, "metadata item %d: offset %#x is inside the table", i, it.offset)
	case int64(it.offset)+int64(it.length) > regionLen:
		return corruptf(ops.StatusMetadataRead, "metadata item %d: %d bytes at %#x past the end of the region %#x", i, it.length, it.offset, regionLen)
	case it.flags&itemUser == 0 && id == itemIncomplete:
		return corruptf(ops.StatusWrongState, "metadata item %d: creation or merge of this file was never finished", i)
	}
	if it.flags&itemRequired == 0 || id == itemLocator || id == itemCHS {
		return nil
	}
	if _, known := itemLength[id]; !known || it.flags&itemUser != 0 {
		return corruptf(ops.StatusVersionUnsupported, "metadata item %d: id %s is required and not known", i, id)
	}
	return nil
}

// metadata is what the known items say.
type metadata struct {
	blockSize uint32
	fixed     bool // LeaveBlockAllocated
	hasParent bool
	size      uint64
	diskID    ops.GUID
	logical   uint32
	physical  uint32
}

// decodeMetadata reads the known items, whose bytes get fetches by id, and
// checks each value by itself ([MS-VHDX] 2.6.2).
func decodeMetadata(get func(ops.GUID) ([]byte, error)) (metadata, error) {
	var m metadata
	for _, field := range []struct {
		id  ops.GUID
		put func([]byte)
	}{
		{itemParameters, func(b []byte) {
			m.blockSize, m.fixed, m.hasParent = le.Uint32(b), b[4]&1 != 0, b[4]&2 != 0
		}},
		{itemDiskSize, func(b []byte) { m.size = le.Uint64(b) }},
		{itemDiskID, func(b []byte) { m.diskID = ops.GUIDFromLE(b) }},
		{itemLogical, func(b []byte) { m.logical = le.Uint32(b) }},
		{itemPhysical, func(b []byte) { m.physical = le.Uint32(b) }},
	} {
		b, err := get(field.id)
		if err != nil {
			return m, err
		}
		field.put(b)
	}
	return m, m.check()
}

func (m metadata) check() error {
	if status, why := m.problem(); why != "" {
		return corruptf(status, "%s", why)
	}
	return nil
}

// problem says which value is out of its range; "" when none is.
func (m metadata) problem() (ops.StatusCode, string) {
	switch {
	case m.blockSize < uint32(mib) || m.blockSize > uint32(maxBlock) || m.blockSize&(m.blockSize-1) != 0:
		return ops.StatusBlockSize, fmt.Sprintf("block size %d is not a power of two from 1 MiB to 256 MiB", m.blockSize)
	case m.logical != 512 && m.logical != 4096:
		return ops.StatusSectorSize, fmt.Sprintf("logical sector size %d, want 512 or 4096", m.logical)
	case m.physical != 512 && m.physical != 4096:
		return ops.StatusSectorSize, fmt.Sprintf("physical sector size %d, want 512 or 4096", m.physical)
	case m.size == 0 || m.size > uint64(maxDisk) || m.size%uint64(m.logical) != 0:
		return ops.StatusSizeInvalid, fmt.Sprintf("virtual size %d is not a multiple of %d up to 64 TiB", m.size, m.logical)
	}
	return 0, ""
}
