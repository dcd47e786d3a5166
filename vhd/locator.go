package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf16"

	"vhdfs/ops"
)

const (
	locatorSize = 24
	// maxLocatorData bounds one parent path: Windows paths have at most 32,767
	// UTF-16 units.
	maxLocatorData = 64 << 10

	anomalyLocator = "vhd.locator"
	anomalyNoID    = "vhd.parent.unidentified"
)

// Platform codes of parent locators.
const (
	codeW2ru = 0x57327275 // relative path, UTF-16LE
	codeW2ku = 0x57326b75 // absolute path, UTF-16LE
	codeMacX = 0x4d616358 // file URL, UTF-8
	codeWi2r = 0x57693272 // relative path, ANSI, deprecated
	codeWi2k = 0x5769326b // absolute path, ANSI, deprecated
)

// locatorOrder is the order in which recorded paths are tried. Codes that are
// not here, such as a Mac OS alias, hold no path that could be followed.
var locatorOrder = []uint32{codeW2ru, codeW2ku, codeMacX, codeWi2r, codeWi2k}

// locator is one parent locator entry. Its data space field counts bytes in
// Microsoft's files and sectors in the specification; nothing here trusts it.
type locator struct {
	code   uint32
	space  uint32
	length uint32 // bytes of the path
	offset uint64 // byte offset of the path
}

func decodeLocator(b []byte) locator {
	be := binary.BigEndian
	return locator{be.Uint32(b), be.Uint32(b[4:]), be.Uint32(b[8:]), be.Uint64(b[16:])}
}

func (l locator) encode(b []byte) {
	be := binary.BigEndian
	clear(b[:locatorSize])
	be.PutUint32(b, l.code)
	be.PutUint32(b[4:], l.space)
	be.PutUint32(b[8:], l.length)
	be.PutUint64(b[16:], l.offset)
}

// name is the platform code as text.
func (l locator) name() string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], l.code)
	return fmt.Sprintf("%q", b[:])
}

// capacity is the number of bytes at offset that belong to the locator: a space
// field below 512 counts sectors (libvhd's rule), and it is at least the path.
func (l locator) capacity() int64 {
	n := int64(l.space)
	if n < sectorSize {
		n *= sectorSize
	}
	return max(n, roundUp(int64(l.length), sectorSize))
}

// validate says why the data of l cannot be a path of this file.
func (l locator) validate(lay *layout) error {
	if l.length == 0 || l.length > maxLocatorData {
		return ops.Corruptf(ops.StatusSparseCorrupt, "vhd: parent locator %s: %d bytes, want 1 to %d", l.name(), l.length, maxLocatorData)
	}
	if l.offset > uint64(lay.end) || int64(l.offset) > lay.end-int64(l.length) {
		return ops.Corruptf(ops.StatusSparseCorrupt, "vhd: parent locator %s: %d bytes at %#x end past %#x", l.name(), l.length, l.offset, lay.end)
	}
	if s, ok := lay.overlaps(int64(l.offset), int64(l.length)); ok {
		return ops.Corruptf(ops.StatusSparseCorrupt, "vhd: parent locator %s: %d bytes at %#x lie in the %s", l.name(), l.length, l.offset, s.what)
	}
	return nil
}

// path decodes the data of a locator.
func (l locator) path(data []byte) (ops.ParentPath, error) {
	var p ops.ParentPath
	switch l.code {
	case codeW2ru, codeW2ku:
		p.Path = decodeUTF16(data, binary.LittleEndian)
	case codeMacX:
		p.Path = fromFileURL(string(bytes.TrimRight(data, "\x00")))
	default:
		p.Path = decodeANSI(data)
	}
	if p.Path == "" || strings.ContainsRune(p.Path, 0) {
		return p, ops.Corruptf(ops.StatusSparseCorrupt, "vhd: parent locator %s: %q is not a path", l.name(), p.Path)
	}
	p.Kind = pathKind(p.Path)
	return p, nil
}

// pathKind goes by the path and not by its code: blktap writes relative paths
// under the code for absolute ones.
func pathKind(p string) ops.PathKind {
	switch {
	case strings.HasPrefix(p, `\\?\Volume{`):
		return ops.PathVolume
	case strings.HasPrefix(p, `\`), strings.HasPrefix(p, "/"), len(p) > 1 && p[1] == ':':
		return ops.PathAbsolute
	}
	return ops.PathRelative
}

// decodeUTF16 reads text in the given order, without trailing NULs, unpaired
// surrogates replaced. Files with the other order exist: text whose high bytes
// are in the wrong half is read that way.
func decodeUTF16(b []byte, order binary.ByteOrder) string {
	b = b[:len(b)&^1]
	highFirst, lowFirst := 0, 0
	for i := 0; i < len(b); i += 2 {
		switch {
		case b[i] == 0 && b[i+1] != 0:
			highFirst++
		case b[i] != 0 && b[i+1] == 0:
			lowFirst++
		}
	}
	if order == binary.LittleEndian && highFirst > lowFirst {
		order = binary.BigEndian
	} else if order == binary.BigEndian && lowFirst > highFirst {
		order = binary.LittleEndian
	}
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = order.Uint16(b[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(u)), "\x00")
}

// decodeANSI reads single-byte text; which code page it was is not recorded, so
// bytes above ASCII are taken as Latin-1.
func decodeANSI(b []byte) string {
	r := make([]rune, len(b))
	for i, c := range b {
		r[i] = rune(c)
	}
	return strings.TrimRight(string(r), "\x00")
}

// fromFileURL turns a file URL into a path; blktap writes file://./name for
// relative ones. Text that is no such URL is a path as it stands.
func fromFileURL(s string) string {
	rest, ok := strings.CutPrefix(s, "file://")
	if !ok {
		return s
	}
	if !strings.HasPrefix(rest, ".") {
		if i := strings.IndexByte(rest, '/'); i > 0 { // a host, such as localhost
			rest = rest[i:]
		}
	}
	if p, err := url.PathUnescape(rest); err == nil {
		return p
	}
	return rest
}

// readParent collects what a differencing header records of the parent.
// Locators that cannot be followed are anomalies, not errors: the id finds the
// parent without them.
func readParent(file ops.File, h *header, lay *layout) (*ops.Parent, []ops.Anomaly, error) {
	p := &ops.Parent{IDs: []ops.GUID{h.parentID}, Timestamp: stamp(h.parentTimestamp), Err: h.identifiesParent()}
	var odd []ops.Anomaly
	if p.Err != nil {
		odd = append(odd, anomaly(anomalyNoID, ops.Broken, "dynamic header", p.Err))
	}
	for _, code := range locatorOrder {
		for i, l := range h.locators {
			if l.code != code {
				continue
			}
			path, err := readLocator(file, l, lay)
			switch {
			case err == nil:
				p.Paths = append(p.Paths, path)
			case isCorrupt(err):
				odd = append(odd, anomaly(anomalyLocator, ops.Warning, fmt.Sprintf("parent locator %d", i), err))
			default:
				return nil, nil, err
			}
		}
	}
	if name := decodeUTF16(h.parentName, binary.BigEndian); name != "" {
		name, _, _ = strings.Cut(name, "\x00")
		p.Paths = append(p.Paths, ops.ParentPath{Kind: ops.PathName, Path: name})
	}
	return p, odd, nil
}

func readLocator(file ops.File, l locator, lay *layout) (ops.ParentPath, error) {
	if err := l.validate(lay); err != nil {
		return ops.ParentPath{}, err
	}
	b := make([]byte, l.length)
	if err := readFull(file, b, int64(l.offset), "parent locator "+l.name()); err != nil {
		return ops.ParentPath{}, err
	}
	return l.path(b)
}
