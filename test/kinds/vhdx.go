package kinds

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhdx"
)

const mib = 1 << 20

func vhdxs() []Kind {
	small := fixture.VHDX{Size: 7 << 19, BlockSize: mib}
	large := fixture.VHDX{Size: 7 << 19, BlockSize: mib, LogicalSector: 4096}
	fixed, child, child4k, dirty := small, small, large, small
	fixed.Fixed = true
	// Behind the disk's end, in its last block: what a growth must not show.
	fixed.Patches = []fixture.Patch{{Off: 7*mib + mib/2, Data: bytes.Repeat([]byte{0xA5}, mib/2)}}
	child.Parent, child4k.Parent = vhdxParent(), vhdxParent()
	dirty.Writes = []fixture.Write{{Off: 0, Data: pattern(4096)}, {Off: mib + 512, Data: pattern(512)}}
	dirty.Log = &fixture.Log{Tables: true, Entries: []fixture.LogEntry{{}}}
	dirtyChild := dirty
	dirtyChild.Parent = vhdxParent()
	// Two blocks more, and the block table outgrows its region.
	full := fixture.VHDX{Size: 31 * 4096 * mib, BlockSize: mib, Parent: vhdxParent()}
	old := small
	old.Patches = []fixture.Patch{{Off: 4 * mib, Data: bytes.Repeat([]byte{0xA5}, 3*mib)}}
	// What only a repair mends: QEMU's empty log, a region table with a wrong checksum,
	// entries that name space without having it.
	empty, torn := small, child
	empty.Log, empty.Writes = &fixture.Log{Garbage: true}, dirty.Writes
	torn.BadRegion[0] = true
	torn.Entries = map[int64]uint64{2: 64 * mib, 3: 3*mib | 3}
	lost := damaged(vhdxKind("differencing, torn tables", torn, false))
	lost.held = []fixture.Write{{Off: 3 * mib, Data: make([]byte, mib/2)}} // a block without content is not the parent's
	return []Kind{
		damaged(vhdxKind("dynamic, log without an entry", empty, false)),
		lost,
		vhdxKind("dynamic, old bytes in free space", old, false),
		vhdxKind("fixed", fixed, false),
		vhdxKind("dynamic", small, false),
		vhdxKind("dynamic, used", small, true),
		vhdxKind("dynamic, 4096-byte sectors, used", large, true),
		vhdxKind("differencing", child, false),
		vhdxKind("differencing, used", child, true),
		vhdxKind("differencing, 4096-byte sectors, used", child4k, true),
		vhdxKind("with a dirty log", dirty, false),
		vhdxKind("differencing, with a dirty log", dirtyChild, false),
		vhdxKind("differencing, full table", full, false),
	}
}

// Wide is a VHDX of many table pages: one flush of a write to every 512 MiB has
// more to log than its log has room for, and what comes later in the log relies
// on what came first.
func Wide() Kind {
	return vhdxKind("differencing, wide", fixture.VHDX{Size: 80 << 30, BlockSize: mib, Parent: vhdxParent()}, false)
}

func vhdxKind(name string, v fixture.VHDX, used bool) Kind {
	return Kind{Name: "vhdx " + name, Format: vhdx.Format, Path: "/vms/disk.vhdx", Differencing: v.Parent != nil, image: v.Bytes, held: v.Writes, used: used, also: idsTell, summed: hasChecksum}
}

// hasChecksum tells what is written to one of two headers, or to the log.
func hasChecksum(e sim.Event) bool {
	return e.Off >= fixture.VHDXHeader1 && e.Off < fixture.VHDXRegion1 || e.Off >= mib && e.Off < 2*mib
}

func vhdxParent() *fixture.Locator {
	return &fixture.Locator{Entries: [][2]string{
		{"parent_linkage", "{83ed9ab2-1ca3-4bb8-9b0d-a3f8a3b1c0de}"}, {"relative_path", `.\p.vhdx`},
	}}
}

// pattern is n bytes that differ from sector to sector.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i/512*7 + i%251 + 1)
	}
	return b
}

// idsTell makes every state show by its ids that it was written: DataWriteGuid
// differs where the guest sees other bytes, FileWriteGuid where any byte of the
// file but its headers differs ([MS-VHDX] 2.2.2).
func idsTell(s *crash.Subject, p *crash.Prepared) error {
	before, link, err := look(s, p.Host.Clone())
	if err != nil {
		return err
	}
	start := p.Host.Bytes(s.Path)
	s.Also = func(h *sim.Host, l ops.Layer, v *crash.View) error {
		if l.Info().LinkID == link {
			if err := v.SameBytes(before); err != nil {
				return fmt.Errorf("DataWriteGuid is the old one: %w", err)
			}
		}
		now := h.Bytes(s.Path)
		if fileWriteGUID(now) == fileWriteGUID(start) && !now.Equal(start, fixture.VHDXRegion1) {
			return errors.New("the file was written to, FileWriteGuid is the old one")
		}
		return nil
	}
	return nil
}

// look reads the disk and the id by which a child knows it.
func look(s *crash.Subject, h *sim.Host) (*crash.View, ops.GUID, error) {
	l, err := s.Open(h, ops.Read)
	if err != nil {
		return nil, ops.GUID{}, err
	}
	v, err := s.Read(h, l)
	return v, l.Info().LinkID, errors.Join(err, l.Close())
}

func fileWriteGUID(file sim.Bytes) [16]byte {
	return newer(file.Get(fixture.VHDXHeader1, 4096), file.Get(fixture.VHDXHeader2, 4096))
}

// newer is the FileWriteGuid of the header that counts.
func newer(a, b []byte) (id [16]byte) {
	if !valid(a) || valid(b) && binary.LittleEndian.Uint64(b[8:]) > binary.LittleEndian.Uint64(a[8:]) {
		a = b
	}
	copy(id[:], a[16:32])
	return id
}

func valid(header []byte) bool {
	sum := crc32.Update(crc32.Update(0, castagnoli, header[:4]), castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, header[8:4096]) == binary.LittleEndian.Uint32(header[4:])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
