package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path"
	"strings"
	"unicode/utf16"

	"vhdfs/ops"
)

const (
	defaultBlockSize = 2 << 20
	smallBlockSize   = 512 << 10 // the only other one that Windows accepts

	// New images say that Windows 10 made them: QEMU before 8 takes the geometry
	// for the size of every creator that it does not know.
	newCreator        = "win "
	newCreatorVersion = 0x000a0000
	newHostOS         = "Wi2k"

	newHeaderOffset = footerSize
	newTableOffset  = newHeaderOffset + headerSize

	// maxNameUnits is what the header's parent name field holds, with a NUL.
	maxNameUnits = 255
)

// create lays out an empty image; see [ops.Format]. The file has no name that
// anybody opens yet, so one sync at the end is enough.
func create(f ops.File, s ops.CreateSpec) error {
	if err := checkSpec(&s); err != nil {
		return err
	}
	foot := newFooter(&s)
	var err error
	if s.Type == ops.Fixed {
		err = createFixed(f, &foot)
	} else {
		err = createSparse(f, &foot, &s)
	}
	if err != nil {
		return err
	}
	return f.Sync("vhd.create")
}

// checkSpec refuses what Windows could not open, and fills in the defaults.
func checkSpec(s *ops.CreateSpec) error {
	switch {
	case s.Type != ops.Fixed && s.Type != ops.Dynamic && s.Type != ops.Differencing:
		return ops.Errorf(ops.ErrUsage, 0, "vhd: type %d is not fixed, dynamic or differencing", s.Type)
	case s.Size <= 0 || s.Size%sectorSize != 0 || s.Size > maxSparseSize:
		return ops.Errorf(ops.ErrUsage, ops.StatusSizeInvalid, "vhd: size %d is not a whole number of sectors up to 2040 GiB", s.Size)
	case s.LogicalSector != 0 && s.LogicalSector != sectorSize, s.PhysicalSector != 0 && s.PhysicalSector != sectorSize:
		return ops.Errorf(ops.ErrUsage, ops.StatusSectorSize, "vhd: sectors of %d/%d bytes, want 512", s.LogicalSector, s.PhysicalSector)
	case s.Type == ops.Fixed && s.BlockSize != 0:
		return ops.Errorf(ops.ErrUsage, ops.StatusBlockSize, "vhd: a fixed disk has no blocks, block size is %d", s.BlockSize)
	case s.BlockSize != 0 && s.BlockSize != smallBlockSize && s.BlockSize != defaultBlockSize:
		return ops.Errorf(ops.ErrUsage, ops.StatusBlockSize, "vhd: block size %d is not 512 KiB or 2 MiB", s.BlockSize)
	case (s.Type == ops.Differencing) != (s.Parent != nil):
		return ops.Errorf(ops.ErrUsage, ops.StatusWrongType, "vhd: a differencing disk has a parent, and nothing else has")
	case s.Parent != nil && s.Parent.LinkID.IsZero():
		return ops.Errorf(ops.ErrUsage, ops.StatusIDMismatch, "vhd: the parent has no id")
	}
	if s.Type != ops.Fixed && s.BlockSize == 0 {
		s.BlockSize = defaultBlockSize
	}
	if s.DiskID.IsZero() {
		s.DiskID = ops.NewGUID()
	}
	return nil
}

// newFooter is the footer of a new image, encoded in its raw bytes.
func newFooter(s *ops.CreateSpec) footer {
	f := footer{
		version:        0x00010000,
		dataOffset:     newHeaderOffset,
		timestamp:      unstamp(s.Now),
		creator:        newCreator,
		creatorVersion: newCreatorVersion,
		originalSize:   uint64(s.Size),
		currentSize:    uint64(s.Size),
		chs:            geometryFor(s.Size),
		diskType:       uint32(s.Type),
		id:             s.DiskID,
	}
	if s.Type == ops.Fixed {
		f.dataOffset = noDataOffset
	}
	binary.BigEndian.PutUint32(f.raw[8:], 2) // features: the bit that is always set
	copy(f.raw[36:], newHostOS)
	return decodeFooter(f.encode())
}

// createFixed reserves the disk's space, where the host can, and ends the file
// in the footer.
func createFixed(f ops.File, foot *footer) error {
	size := int64(foot.currentSize)
	err := f.Allocate(0, size)
	if errors.Is(err, errors.ErrUnsupported) {
		err = f.Truncate(size, "vhd.create")
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(foot.raw[:], size)
	return err
}

// createSparse writes footer copy, header, table, parent paths and footer, with
// the lengths that Windows gives them.
func createSparse(f ops.File, foot *footer, s *ops.CreateSpec) error {
	entries := blocksFor(s.Size, int64(s.BlockSize))
	h := newHeader(entries, s.BlockSize)
	end := roundUp(newTableOffset+4*entries, sectorSize)
	if err := fillTable(f, newTableOffset, end); err != nil {
		return err
	}
	if s.Parent != nil {
		paths, err := encodePaths(s.Parent)
		if err != nil {
			return err
		}
		end = roundUp(end, blockAlignment)
		if err := writeParent(f, h, s.Parent, paths, end, blockAlignment); err != nil {
			return err
		}
		end += pathsBytes(paths, blockAlignment)
	}
	putChecksum(h, headerSumAt)
	if _, err := f.WriteAt(h, newHeaderOffset); err != nil {
		return err
	}
	if _, err := f.WriteAt(foot.raw[:], 0); err != nil {
		return err
	}
	_, err := f.WriteAt(foot.raw[:], roundUp(end, blockAlignment)+blockAlignment-footerSize)
	return err
}

// newHeader is a dynamic header without parent and checksum.
func newHeader(entries int64, blockSize uint32) []byte {
	be := binary.BigEndian
	h := make([]byte, headerSize)
	copy(h, headerCookie)
	be.PutUint64(h[8:], noDataOffset)
	be.PutUint64(h[16:], newTableOffset)
	be.PutUint32(h[24:], 0x00010000)
	be.PutUint32(h[28:], uint32(entries))
	be.PutUint32(h[32:], blockSize)
	return h
}

// fillTable writes unused entries over [off, end), padding included.
func fillTable(f ops.File, off, end int64) error {
	ones := bytes.Repeat([]byte{0xff}, 64<<10)
	for off < end {
		n, err := f.WriteAt(ones[:min(int64(len(ones)), end-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// locatorPath is a parent path as it is stored.
type locatorPath struct {
	code uint32
	data []byte
}

// encodePaths are the paths of p that a new record holds: relative, absolute.
func encodePaths(p *ops.CreateParent) ([]locatorPath, error) {
	var list []locatorPath
	for _, l := range []struct {
		code uint32
		path string
	}{{codeW2ru, p.Relative}, {codeW2ku, p.Absolute}} {
		if l.path == "" {
			continue
		}
		data := encodePath(l.path)
		if len(data) > maxLocatorData {
			return nil, ops.Errorf(ops.ErrUsage, 0, "vhd: parent path of %d bytes, want at most %d", len(data), maxLocatorData)
		}
		list = append(list, locatorPath{l.code, data})
	}
	if len(list) == 0 {
		return nil, ops.Errorf(ops.ErrUsage, 0, "vhd: the parent has no path")
	}
	return list, nil
}

// pathsBytes is the room that paths take in units of unit bytes.
func pathsBytes(paths []locatorPath, unit int64) (n int64) {
	for _, l := range paths {
		n += roundUp(int64(len(l.data)), unit)
	}
	return n
}

// writeParent enters the parent in header h, whose fields for it are zeros, and
// writes its paths from byte at on, each in whole units of unit bytes.
func writeParent(f ops.File, h []byte, p *ops.CreateParent, paths []locatorPath, at, unit int64) error {
	be := binary.BigEndian
	copy(h[40:56], p.LinkID[:])
	be.PutUint32(h[56:], unstamp(p.Timestamp))
	base := p.Relative
	if base == "" {
		base = p.Absolute
	}
	name := utf16.Encode([]rune(path.Base(base)))
	if p.Name != "" {
		name = utf16.Encode([]rune(p.Name))
	}
	for i, u := range name[:min(len(name), maxNameUnits)] {
		be.PutUint16(h[64+2*i:], u)
	}
	for i, l := range paths {
		space := roundUp(int64(len(l.data)), unit)
		locator{l.code, uint32(space), uint32(len(l.data)), uint64(at)}.encode(h[576+i*locatorSize:])
		padded := make([]byte, space)
		copy(padded, l.data)
		if _, err := f.WriteAt(padded, at); err != nil {
			return err
		}
		at += space
	}
	return nil
}

// encodePath is a slash path as Windows writes it: backslashes, UTF-16LE.
func encodePath(p string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(strings.ReplaceAll(p, "/", `\`))) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}
