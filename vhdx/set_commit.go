package vhdx

import (
	"fmt"
	"hash/crc32"
	"slices"

	"vhdfs/ops"
)

// setCreate lays out a set in the empty file f and syncs it: as Windows does where
// the set has no snapshots.
func setCreate(f ops.File, s ops.Set) error {
	if err := s.Check(); err != nil {
		return err
	}
	b := make([]byte, setFileSize)
	copy(b, setSignature)
	copy(b[setCreatorOff:], encodeUTF16(creator))
	if err := setPutPlain(b, s.Leaf, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("vhds: create: %w", err)
	}
	if err := setSync(f, "vhds.create"); err != nil {
		return err
	}
	if s.Plain() {
		return nil
	}
	s.Sequence = 0
	_, err := setCommit(f, s)
	return err
}

// setPutPlain puts name and headers, of sequence numbers from seq on, into the
// first bytes of a set. The word that holds garbage in files by Windows is zero.
func setPutPlain(b []byte, leaf string, seq uint64) error {
	name := encodeUTF16(leaf)
	if len(name) > 2*setNameMax {
		return ops.Errorf(ops.ErrUsage, 0, "vhds: name %q of %d bytes in UTF-16, at most %d", leaf, len(name), 2*setNameMax)
	}
	clear(b[setNameOffset:setFileSize])
	copy(b[setNameOffset:], name)
	for i, off := range setHeaderOffsets {
		h := b[off : off+setHeaderSize]
		clear(h)
		copy(h, "shdr")
		le.PutUint64(h[8:], seq+uint64(i))
		le.PutUint32(h[16:], setHeaderVersion)
		le.PutUint32(h[24:], setHeaderKind)
		le.PutUint32(h[28:], setNameOffset)
		le.PutUint32(h[32:], uint32(len(name)))
		le.PutUint32(h[20:], crc32.Checksum(h, setCRC))
	}
	return nil
}

// setCommit makes s what the file says, in whichever layout that takes.
func setCommit(f ops.File, s ops.Set) (uint64, error) {
	if err := s.Check(); err != nil {
		return 0, err
	}
	now, err := setRead(f)
	if err != nil {
		return 0, err
	}
	if now.ReadOnly != "" {
		return 0, ops.Errorf(ops.ErrReadOnly, 0, "vhds: %s", now.ReadOnly)
	}
	state, err := setState(f)
	if err != nil {
		return 0, err
	}
	if now.Sequence != s.Sequence || now.Sequence == 0 && s.Plain() && now.Leaf != s.Leaf {
		return 0, ops.Errorf(ops.ErrChanged, 0, "vhds: the set is at change %d, not at %d", now.Sequence, s.Sequence)
	}
	c := &setChange{f: f, set: s, own: setOwnHeaders(state[setCreatorOff+setCreatorSize:])}
	switch isOwn := string(state[:len(setOwnSignature)]) == setOwnSignature; {
	case isOwn && s.Plain():
		return 0, c.toPlain()
	case isOwn:
		return c.own.next(), c.next()
	case s.Plain() && c.own.any():
		return 0, c.clean()
	case s.Plain():
		return 0, nil // it says so already
	}
	return max(c.own.next(), 2), c.toOwn()
}

// setChange is one commit.
type setChange struct {
	f   ops.File
	set ops.Set
	own setOwn
}

// next is a commit within our own layout. After a crash the file says
//
//	body in free space; sync      what it said
//	the other header; sync        what it said, or what it is to say
//
// The header is one sector: there is nothing between.
func (c *setChange) next() error {
	h, slot, err := c.putBody()
	if err != nil {
		return err
	}
	if err := setSync(c.f, "vhds.body"); err != nil {
		return err
	}
	return c.decide(h.encode(), setOwnOffsets[slot])
}

// toOwn turns a set without snapshots into our layout. After a crash the file says
//
//	header without a body; sync           what it said; what follows is known to be ours
//	body, the other header; sync          what it said
//	identifier; sync                      what it said, or what it is to say
func (c *setChange) toOwn() error {
	if !c.own.any() {
		mark := &setOwnHeader{seq: 1, id: ops.NewGUID()}
		if _, err := c.f.WriteAt(mark.encode(), setOwnOffsets[0]); err != nil {
			return fmt.Errorf("vhds: own header A: %w", err)
		}
		if err := setSync(c.f, "vhds.mark"); err != nil {
			return err
		}
		c.own[0] = mark
	}
	h, slot, err := c.putBody()
	if err != nil {
		return err
	}
	if _, err := c.f.WriteAt(h.encode(), setOwnOffsets[slot]); err != nil {
		return fmt.Errorf("vhds: own header %c: %w", 'A'+slot, err)
	}
	if err := setSync(c.f, "vhds.own"); err != nil {
		return err
	}
	return c.decide([]byte(setOwnSignature), 0)
}

// toPlain goes back to the layout of a set without snapshots. After a crash the
// file says
//
//	name and headers of that layout; sync     what it said; they mean nothing yet
//	identifier; sync                          what it said, or what it is to say
//	the rest of our layout goes               what it is to say
//
// What of the rest is left then is known by a header and goes with the next change.
func (c *setChange) toPlain() error {
	b := make([]byte, setFileSize)
	if err := setPutPlain(b, c.set.Leaf, 0); err != nil {
		return err
	}
	for _, s := range []span{
		{setHeaderOffsets[0], setHeaderOffsets[0] + setHeaderSize},
		{setHeaderOffsets[1], setHeaderOffsets[1] + setHeaderSize},
		{setNameOffset, setFileSize},
	} {
		if _, err := c.f.WriteAt(b[s.off:s.end], s.off); err != nil {
			return fmt.Errorf("vhds: header at %#x: %w", s.off, err)
		}
	}
	if err := setSync(c.f, "vhds.plain"); err != nil {
		return err
	}
	if err := c.decide([]byte(setSignature), 0); err != nil {
		return err
	}
	_ = c.clean() // what is left is an anomaly that check names, and goes with the next change
	return nil
}

// clean removes our own layout from a set that does not use it any more. The
// header that tells whose it is goes last.
func (c *setChange) clean() error {
	_, slot := c.own.current()
	if err := c.f.Truncate(setFileSize, "vhds.clean.size"); err != nil {
		return err
	}
	empty := make([]byte, setOwnSize)
	if c.own[1-slot] != nil {
		if _, err := c.f.WriteAt(empty, setOwnOffsets[1-slot]); err != nil {
			return err
		}
	}
	if err := setSync(c.f, "vhds.clean"); err != nil {
		return err
	}
	if _, err := c.f.WriteAt(empty, setOwnOffsets[slot]); err != nil {
		return err
	}
	return setSync(c.f, "vhds.cleaned")
}

// putBody writes the body where the current header's is not, and gives the header
// that is to name it, with its slot.
func (c *setChange) putBody() (*setOwnHeader, int, error) {
	current, slot := c.own.current()
	if current.seq == ^uint64(0) {
		return nil, 0, ops.Errorf(ops.ErrReadOnly, 0, "vhds: the sequence number cannot grow any more")
	}
	b := setEncodeBody(&c.set)
	if len(b) > setBodyMax {
		return nil, 0, ops.Errorf(ops.ErrUsage, 0, "vhds: a table of %d bytes, at most %d", len(b), setBodyMax)
	}
	at := int64(setBodyOffset)
	if used := current.body(); used.len() > 0 && used.overlaps(span{at, at + int64(len(b))}) {
		at = roundUp(used.end, setBodyAlign)
	}
	if _, err := c.f.WriteAt(b, at); err != nil {
		return nil, 0, fmt.Errorf("vhds: body at %#x: %w", at, err)
	}
	id := c.set.ID
	if id.IsZero() {
		id = current.id
	}
	h := &setOwnHeader{seq: current.seq + 1, id: id, bodyOffset: uint64(at), bodyLength: uint32(len(b)), bodyCRC: crc32.Checksum(b, setCRC)}
	if i := slices.IndexFunc(c.set.Files, func(f ops.SetFile) bool { return f.Name == c.set.Leaf }); i >= 0 {
		h.diskID = c.set.Files[i].DiskID
	}
	return h, 1 - slot, nil
}

// decide takes the one step that counts. When it fails nobody knows what a crash
// would leave.
func (c *setChange) decide(b []byte, off int64) error {
	_, err := c.f.WriteAt(b, off)
	if err == nil {
		err = c.f.Sync("vhds.commit")
	}
	if err != nil {
		return ops.Wrapf(err, ops.ErrPoisoned, 0, "vhds: the change of the set may have been made or not")
	}
	return nil
}

func setSync(f ops.File, label string) error {
	if err := f.Sync(label); err != nil {
		return fmt.Errorf("vhds: %s: %w", label, err)
	}
	return nil
}
