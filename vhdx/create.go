package vhdx

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"vhdfs/ops"
)

// The layout of a new file, as Windows lays it out.
const (
	newLogOffset      = mib
	newLogLength      = mib
	newMetadataOffset = 2 * mib
	newBATOffset      = 3 * mib

	defaultDynamicBlock = 32 * mib
	defaultBlock        = 2 * mib // fixed and differencing
	defaultLogical      = 512
	defaultPhysical     = 4096

	newItemSlot  = 4 * kib // one slot for each metadata item
	creator      = "vhdfs"
	batChunk     = mib // bytes of a fixed disk's BAT that are made at once
	regionEntry  = 32
	requiredFlag = 1
	maxPath      = 16 * kib // bytes of UTF-8: the length of a value has 16 bits
)

// create lays out an empty image in the empty file f ([MS-VHDX] 2) and syncs it
// once: a file that never got its final name is worth nothing.
func create(f ops.File, s ops.CreateSpec) error {
	m, err := newMetadata(s)
	if err != nil {
		return err
	}
	c := &creation{f: f, spec: s, metadata: m, geometry: newGeometry(m)}
	c.bat = span{newBATOffset, newBATOffset + c.geometry.batLength()}
	for _, step := range []func() error{c.headerSection, c.metadataRegion, c.payload} {
		if err := step(); err != nil {
			return fmt.Errorf("vhdx: create: %w", err)
		}
	}
	return f.Sync("vhdx.create")
}

type creation struct {
	f        ops.File
	spec     ops.CreateSpec
	metadata metadata
	geometry geometry
	bat      span
}

// newMetadata fills in what the caller left to the format.
func newMetadata(s ops.CreateSpec) (metadata, error) {
	m := metadata{
		blockSize: s.BlockSize, logical: s.LogicalSector, physical: s.PhysicalSector,
		size: uint64(max(s.Size, 0)), diskID: s.DiskID, fixed: s.Type == ops.Fixed, hasParent: s.Type == ops.Differencing,
	}
	switch {
	case s.Type != ops.Fixed && s.Type != ops.Dynamic && s.Type != ops.Differencing:
		return m, ops.Errorf(ops.ErrUsage, 0, "vhdx: type %d", s.Type)
	case m.hasParent != (s.Parent != nil):
		return m, ops.Errorf(ops.ErrUsage, 0, "vhdx: a differencing disk has a parent, no other has")
	case m.blockSize == 0 && s.Type == ops.Dynamic:
		m.blockSize = uint32(defaultDynamicBlock)
	case m.blockSize == 0:
		m.blockSize = uint32(defaultBlock)
	}
	if p := s.Parent; p != nil && int64(len(p.Absolute)+len(p.Relative)) > maxPath {
		return m, ops.Errorf(ops.ErrUsage, 0, "vhdx: the parent's path is too long")
	}
	if m.logical == 0 {
		m.logical = defaultLogical
	}
	if m.physical == 0 {
		m.physical = max(defaultPhysical, m.logical)
	}
	if m.diskID.IsZero() && s.Parent != nil {
		m.diskID = s.Parent.DiskID
	}
	if m.diskID.IsZero() {
		m.diskID = ops.NewGUID()
	}
	if status, why := m.problem(); why != "" {
		return m, ops.Errorf(ops.ErrUsage, status, "vhdx: %s", why)
	}
	return m, nil
}

// headerSection writes identifier, headers and region tables; the log stays
// empty, its place a hole.
func (c *creation) headerSection() error {
	b := make([]byte, mib)
	copy(b, signature)
	copy(b[len(signature):], encodeUTF16(creator))
	h := header{seq: 1, fileWrite: ops.NewGUID(), dataWrite: ops.NewGUID(), version: 1, logLength: uint32(newLogLength), logOffset: uint64(newLogOffset)}
	for _, off := range headerOffset {
		copy(b[off:], h.encode())
		h.seq++
	}
	for _, off := range regionOffset {
		copy(b[off:], encodeRegions(c.bat, span{newMetadataOffset, newBATOffset}))
	}
	_, err := c.f.WriteAt(b, 0)
	return err
}

// encodeRegions is a region table with BAT and metadata.
func encodeRegions(bat, metadata span) []byte {
	b := make([]byte, regionTableSize)
	copy(b, "regi")
	le.PutUint32(b[8:], 2)
	for i, r := range []struct {
		id ops.GUID
		span
	}{{regionBAT, bat}, {regionMetadata, metadata}} {
		e := b[16+regionEntry*i:]
		r.id.PutLE(e)
		le.PutUint64(e[16:], uint64(r.off))
		le.PutUint32(e[24:], uint32(r.len()))
		le.PutUint32(e[28:], requiredFlag)
	}
	le.PutUint32(b[4:], checksum(b))
	return b
}

// metadataRegion writes the table and the items.
func (c *creation) metadataRegion() error {
	m := c.metadata
	flags := uint32(0)
	if m.fixed {
		flags |= 1
	}
	if m.hasParent {
		flags |= 2
	}
	id := make([]byte, 16)
	m.diskID.PutLE(id)
	items := []struct {
		id    ops.GUID
		flags uint32
		data  []byte
	}{
		{itemParameters, itemRequired, le.AppendUint32(le.AppendUint32(nil, m.blockSize), flags)},
		{itemDiskSize, itemRequired | itemVirtualDisk, le.AppendUint64(nil, m.size)},
		{itemDiskID, itemRequired | itemVirtualDisk, id},
		{itemLogical, itemRequired | itemVirtualDisk, le.AppendUint32(nil, m.logical)},
		{itemPhysical, itemRequired | itemVirtualDisk, le.AppendUint32(nil, m.physical)},
	}
	if m.hasParent {
		l := newLocator(c.spec.Parent)
		items = append(items, struct {
			id    ops.GUID
			flags uint32
			data  []byte
		}{itemLocator, itemRequired, l.encode()})
	}
	b := make([]byte, metadataTableSize)
	copy(b, "metadata")
	le.PutUint16(b[10:], uint16(len(items)))
	for i, it := range items {
		e := b[32+32*i:]
		it.id.PutLE(e)
		le.PutUint32(e[16:], uint32(len(b)))
		le.PutUint32(e[20:], uint32(len(it.data)))
		le.PutUint32(e[24:], it.flags)
		b = append(b, it.data...)
		b = append(b, make([]byte, roundUp(int64(len(b)), newItemSlot)-int64(len(b)))...)
	}
	_, err := c.f.WriteAt(b, newMetadataOffset)
	return err
}

// newLocator records a parent as Windows does.
func newLocator(p *ops.CreateParent) locator {
	l := locator{{keyLinkage, "{" + p.LinkID.String() + "}"}}
	if p.Relative != "" {
		l = append(l, keyValue{keyRelative, windowsPath(p.Relative)})
	}
	if p.Absolute != "" {
		l = append(l, keyValue{keyAbsolute, windowsPath(p.Absolute)})
	}
	if p.Volume != "" {
		l = append(l, keyValue{keyVolume, windowsPath(p.Volume)})
	}
	return l
}

func windowsPath(p string) string { return strings.ReplaceAll(p, "/", `\`) }

// payload sets the size of the file. A fixed disk gets all of its blocks, in
// order and with real space.
func (c *creation) payload() error {
	if !c.metadata.fixed {
		return c.f.Truncate(c.bat.end, "vhdx.create.size")
	}
	g := c.geometry
	all := span{c.bat.end, c.bat.end + g.blocks*g.block}
	if err := c.f.Truncate(all.end, "vhdx.create.size"); err != nil {
		return err
	}
	err := c.f.Allocate(all.off, all.len())
	if errors.Is(err, errors.ErrUnsupported) {
		_, err = io.Copy(io.NewOffsetWriter(c.f, all.off), io.LimitReader(zeros{}, all.len()))
	}
	if err != nil {
		return err
	}
	for from := int64(0); from < g.entries; from += batChunk / entryBytes {
		b := make([]byte, 0, batChunk)
		for i := from; i < min(from+batChunk/entryBytes, g.entries); i++ {
			e := newEntry(stateFull, all.off+g.payloadOf(i)*g.block)
			if g.isBitmap(i) {
				e = 0
			}
			b = le.AppendUint64(b, uint64(e))
		}
		if _, err := c.f.WriteAt(b, c.bat.off+from*entryBytes); err != nil {
			return err
		}
	}
	return nil
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
