package vhd

import (
	"fmt"

	"vhdfs/ops"
)

// choice is the footer in effect, and what follows from the state of both.
type choice struct {
	f    footer
	head header // not for a fixed disk
	end  int64  // where structures and blocks have to end

	tail int64 // offset of a good end footer, -1 without one
	mend bool  // the first write has to restore a footer
	cut  bool  // or to cut off what follows the footer of a fixed disk at end
	mending
	anomalies []ops.Anomaly
}

// distrustFor keeps the disk from being written for a reason that repairing ends, or
// does not.
func (c *choice) distrustFor(reason string, mendable bool) {
	c.mendable = mendable && (c.readOnly == "" || c.mendable)
	c.readOnly = reason
}

func (c *choice) note(name string, sev ops.Severity, where, format string, args ...any) {
	c.anomalies = append(c.anomalies, ops.Anomaly{Name: name, Severity: sev, Where: where, Text: fmt.Sprintf(format, args...)})
}

// choose decides which footer is in effect. The end of the file comes first; the
// copy at 0 takes its place only when the end holds nothing, or the remains of a
// footer that was not a fixed disk's.
func choose(file ops.File, s *slots, repair bool) (choice, error) {
	switch {
	case s.tail.state == slotPoison:
		return choice{}, s.tail.err
	case s.head.state == slotPoison && s.tail.state != slotGood:
		return choice{}, s.head.err
	case s.tail.state == slotBad:
		return choice{}, s.tail.err
	case s.tail.state == slotGood && s.tail.f.typ() == ops.Fixed:
		return chooseFixed(s)
	case s.tail.state == slotGood:
		c, err := chooseTail(file, s)
		if repair && isCorrupt(err) {
			return chooseFit(file, s, err)
		}
		return c, err
	case s.tail.state == slotDamaged && s.tail.f.typ() == ops.Fixed:
		return chooseDamagedFixed(s)
	case s.head.state == slotGood && s.head.f.typ() != ops.Fixed:
		return chooseHead(file, s)
	case s.tail.state == slotDamaged && s.head.state == slotDamaged:
		return chooseDamaged(file, s)
	case s.tail.state == slotDamaged:
		return choice{}, s.tail.err
	case s.head.state == slotBad || s.head.state == slotDamaged:
		return choice{}, s.head.err
	}
	stray, found, err := strayFooter(file, s.size)
	switch {
	case err != nil:
		return choice{}, err
	case !found:
		return choice{}, s.tail.err
	case stray.hangs():
		return chooseHanging(s, &stray.slot, "all of them zeros")
	case repair && stray.f.typ() == ops.Fixed && int64(stray.f.currentSize) == stray.off:
		c, err := chooseHanging(s, &stray.slot, "which are no part of the disk")
		c.distrustFor("bytes follow its footer", true)
		return c, err
	}
	return choice{}, ops.Corruptf(ops.StatusFooterMissing, "vhd: footer: %d bytes follow the one at %#x, which has to end the file", s.size-stray.off-footerSize, stray.off)
}

func chooseFixed(s *slots) (choice, error) {
	c := choice{f: s.tail.f, end: s.tail.off, tail: s.tail.off}
	if int64(c.f.currentSize) > s.tail.off {
		return c, ops.Corruptf(ops.StatusFileSizeInvalid, "vhd: footer: disk of %d bytes in a file with %d before its footer: cut off, or the last part of a split image", c.f.currentSize, s.tail.off)
	}
	c.noteFixed(s.tail.where, s.tail.off)
	c.common(&s.tail)
	return c, nil
}

// noteFixed notes room between a fixed disk and its footer at byte tail.
func (c *choice) noteFixed(where string, tail int64) {
	if rest := tail - int64(c.f.currentSize); rest > 0 {
		c.note("vhd.length", ops.Note, where, "%d bytes between the disk's end and the footer", rest)
	}
}

// chooseHanging takes a fixed disk's footer behind which nothing is stored: a crash
// while the disk grew can leave the new length without the new footer.
func chooseHanging(s *slots, hang *slot, what string) (choice, error) {
	c := choice{f: hang.f, end: hang.off, tail: -1, cut: true}
	c.noteFixed(hang.where, hang.off)
	c.common(hang)
	c.note("vhd.footer.end", ops.Warning, "footer", "%d bytes follow the one at %#x, %s", s.size-hang.off-footerSize, hang.off, what)
	return c, nil
}

// chooseDamagedFixed: nothing but the length of the file can vouch for a fixed
// disk's footer with a wrong checksum.
func chooseDamagedFixed(s *slots) (choice, error) {
	if s.tail.f.validate(s.tail.where) != nil || int64(s.tail.f.currentSize) != s.tail.off {
		return choice{}, s.tail.err
	}
	c := choice{f: s.tail.f, end: s.tail.off, tail: -1}
	c.distrust(s)
	return c, nil
}

func chooseTail(file ops.File, s *slots) (choice, error) {
	c := choice{f: s.tail.f, end: s.tail.off, tail: s.tail.off}
	var err error
	if c.head, err = readHeader(file, &c.f, c.end); err != nil {
		return c, err
	}
	c.common(&s.tail)
	switch {
	case s.head.state == slotPoison:
		return c, s.head.err
	case s.head.state == slotEmpty, s.head.state == slotDamaged:
		c.note("vhd.footer.copy", ops.Warning, "footer copy", "%s", anomaly("", "", "", s.head.err).Text)
		c.mend = true
	case string(s.head.f.raw[:s.tail.len]) == string(c.f.raw[:s.tail.len]):
	case s.head.state == slotGood && c.f.sameButSwitched(&s.head.f) && copyFits(file, s, &c):
		c.note("vhd.footer.differ", ops.Warning, "footer copy", "size %d, dynamic header at %#x; by the footer at the end %d, %#x",
			s.head.f.currentSize, s.head.f.dataOffset, c.f.currentSize, c.f.dataOffset)
		c.mend = true
	case s.head.f.dataOffset != c.f.dataOffset && leadsToHeader(file, s):
		return c, ops.Corruptf(ops.StatusFooterCorrupt, "vhd: footer: dynamic header at %#x, but at %#x by the copy at 0", c.f.dataOffset, s.head.f.dataOffset)
	default:
		c.note("vhd.footer.differ", ops.Warning, "footer copy", "id %s, type %d, size %d; by the footer at the end id %s, type %d, size %d",
			s.head.f.id, s.head.f.diskType, s.head.f.currentSize, c.f.id, c.f.diskType, c.f.currentSize)
		c.distrustFor("the footers at the end and at 0 differ", copyCannotBe(file, s, &c))
	}
	return c, nil
}

// copyCannotBe tells whether the file itself rules the copy at 0 out: a field, or a
// type without a copy, or a header that does not fit it.
func copyCannotBe(file ops.File, s *slots, c *choice) bool {
	return s.head.state == slotBad || s.head.f.typ() == ops.Fixed || !copyFits(file, s, c)
}

// chooseFit takes the copy at 0 for a repair where the good footer at the end does
// not fit the dynamic header, and the copy does; err says why it does not.
func chooseFit(file ops.File, s *slots, err error) (choice, error) {
	c := choice{f: s.head.f, end: s.tail.off, tail: -1}
	h, herr := headFooter(file, s)
	if herr != nil || s.head.f.dataOffset != s.tail.f.dataOffset {
		return c, err
	}
	c.head, c.rewrite = h, true
	c.common(&s.head)
	c.note("vhd.footer.differ", ops.Warning, "footer", "%s", anomaly("", "", "", err).Text)
	c.distrustFor("the footers at the end and at 0 differ", true)
	return c, nil
}

// copyFits tells whether the copy at 0 may be what a change of header or size that
// was cut off has left: it leads to a header of the same blocks, or to the same one,
// and that holds its disk.
func copyFits(file ops.File, s *slots, c *choice) bool {
	h, err := readHeader(file, &s.head.f, c.end)
	return err == nil && h.blockSize == c.head.blockSize
}

// leadsToHeader tells whether the copy at 0 has a dynamic header of its own.
func leadsToHeader(file ops.File, s *slots) bool {
	_, err := headFooter(file, s)
	return err == nil
}

// chooseHead: a crash while the file grew leaves no footer at its end.
func chooseHead(file ops.File, s *slots) (choice, error) {
	c := choice{f: s.head.f, end: s.size, tail: -1, mend: true}
	var err error
	if c.head, err = headFooter(file, s); err != nil {
		return c, err
	}
	c.common(&s.head)
	c.note("vhd.footer.end", ops.Warning, "footer", "%s", anomaly("", "", "", s.tail.err).Text)
	if s.size%sectorSize != 0 {
		c.distrustFor(fmt.Sprintf("the file's length %d is no whole number of sectors", s.size), true)
	}
	return c, nil
}

// chooseDamaged reads a file whose footers have the same wrong checksum: they
// bear each other out, and the dynamic header has to fit them exactly.
func chooseDamaged(file ops.File, s *slots) (choice, error) {
	c := choice{f: s.tail.f, end: s.tail.off, tail: -1}
	if s.tail.f.validate(s.tail.where) != nil || string(s.head.f.raw[:s.tail.len]) != string(c.f.raw[:s.tail.len]) {
		return c, s.tail.err
	}
	var err error
	if c.head, err = readHeader(file, &c.f, c.end); err != nil {
		return c, err
	}
	if need := blocksFor(int64(c.f.currentSize), int64(c.head.blockSize)); int64(c.head.entries) != need {
		return c, s.tail.err
	}
	c.distrust(s)
	return c, nil
}

func (c *choice) distrust(s *slots) {
	c.common(&s.tail)
	c.note("vhd.footer.checksum", ops.Broken, s.tail.where, "%s", anomaly("", "", "", s.tail.err).Text)
	c.distrustFor("the footer's checksum is wrong", true)
	c.rewrite = true
}

// common notes what is odd about the footer in effect.
func (c *choice) common(s *slot) {
	f := &c.f
	if s.len == shortFooterSize {
		c.note("vhd.footer.short", ops.Note, s.where, "511 bytes, as before Virtual PC 2004")
		c.distrustFor("its footer has 511 bytes", true)
		c.rewrite = true
	}
	if f.savedState {
		c.note("vhd.savedstate", ops.Note, s.where, "the disk belongs to the saved state of a machine")
		c.distrustFor("the disk belongs to the saved state of a machine", false)
	}
	if f.raw[85] != 0 {
		c.note("vhd.footer.hidden", ops.Note, s.where, "blktap's hidden flag is %d", f.raw[85])
	}
	c.anomalies = append(c.anomalies, f.geometryNote(s.where)...)
}

// blocksFor is the number of blocks of a disk.
func blocksFor(size, blockSize int64) int64 { return (size + blockSize - 1) / blockSize }
