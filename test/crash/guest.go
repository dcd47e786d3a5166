package crash

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// Guest is what runs on a disk: it changes an image through its format and marks
// in the recording what it asked for and what was acknowledged. Not safe for
// concurrent use.
type Guest struct {
	Subject *Subject
	Host    *sim.Host
	Writer  ops.Writer
	Block   int64 // the image's block size in bytes, or a stand-in
	Unit    int64 // logical sector in bytes
	stamp   uint64
	doubt   bool // a request failed and no flush succeeded since: closing promises nothing
	closed  bool
}

// NewGuest opens the image of a subject for writing.
func NewGuest(s *Subject, h *sim.Host) (*Guest, error) {
	g := &Guest{Subject: s, Host: h}
	return g, g.open(false)
}

func (g *Guest) open(quiet bool) error {
	g.Host.Ack("open", opened{})
	l, err := g.Subject.open(g.Host, ops.Write, quiet)
	if err != nil {
		return err
	}
	w, ok := l.(ops.Writer)
	if !ok {
		return errors.Join(fmt.Errorf("%T opened for writing is no ops.Writer", l), l.Close())
	}
	info := l.Info()
	g.Writer, g.Unit, g.Block = w, max(int64(info.LogicalSector), sector), int64(info.BlockSize)
	if g.Block == 0 {
		g.Block = max(l.Size()/4/g.Unit*g.Unit, g.Unit)
	}
	return nil
}

// Write stores a pattern that occurs nowhere else.
func (g *Guest) Write(off, n int64) error {
	stamp := g.Stamp()
	data := make([]byte, n)
	for at := int64(0); at < n; at += 16 {
		binary.BigEndian.PutUint64(data[at:], stamp)
		binary.BigEndian.PutUint64(data[at+8:], uint64(off+at)+1)
	}
	return g.Store(off, data)
}

// Stamp is a number that grows.
func (g *Guest) Stamp() uint64 {
	g.stamp++
	return g.stamp
}

// Store stores whole sectors of bytes.
func (g *Guest) Store(off int64, data []byte) error {
	g.Host.Ack("write", asked{off: off, n: int64(len(data)), data: data})
	_, err := g.Writer.WriteAt(data, off)
	return g.noteRefusal(err, off, int64(len(data)))
}

func (g *Guest) noteRefusal(err error, off, n int64) error {
	if err != nil {
		g.doubt = true
		g.Host.Ack("refused", refused{off: off, n: n})
	}
	return err
}

// Zero makes a range zeros.
func (g *Guest) Zero(off, n int64, unmap bool) error {
	g.Host.Ack("zero", asked{off: off, n: n})
	return g.noteRefusal(g.Writer.Zero(off, n, unmap), off, n)
}

// Flush makes all that was written durable.
func (g *Guest) Flush() error {
	if err := g.Writer.Flush(); err != nil {
		g.doubt = true
		return err
	}
	g.doubt = false
	g.Host.Ack("flush", flushed{})
	return nil
}

// Close ends the write session; a clean close is a promise as a flush is. When it
// fails, or a request had failed and no flush succeeded since, what was written
// is in doubt until it is written again.
func (g *Guest) Close() error {
	err := g.Writer.Close()
	if err != nil || g.doubt {
		g.Host.Ack("close", doubted{})
		return err
	}
	g.Host.Ack("close", closed{})
	return nil
}

// Reopen closes, whatever that answers, and opens again.
func (g *Guest) Reopen() error { return g.reopen(false) }

// ReopenQuietly is Reopen for a session that leaves the LinkID alone until the
// guest writes.
func (g *Guest) ReopenQuietly() error { return g.reopen(true) }

func (g *Guest) reopen(quiet bool) error {
	closed := g.Close()
	err := g.open(quiet)
	g.doubt, g.closed = false, err != nil
	return errors.Join(closed, err)
}

// Kill ends the program that serves the disk and starts it again: what it had in
// memory is gone, what it had written is in the host's cache and may be read, but
// is no more durable than before.
func (g *Guest) Kill() error {
	g.Host.Ack("kill", doubted{})
	g.doubt = false
	return g.open(false)
}

// Closed tells whether the guest has no disk, because opening it again failed.
func (g *Guest) Closed() bool { return g.closed }
