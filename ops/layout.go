package ops

import "io"

// Tables reads partition tables for operations that have to know which bytes of
// a disk are in use. Package part does it; it stands above this one.
type Tables interface {
	// Layout reads the table of the first size bytes of r, in units of the logical
	// sector. The error is for what could not be read; a table that is damaged or
	// not there is a Layout that knows little.
	Layout(r io.ReaderAt, size int64, sector uint32) (*Layout, error)
	// MoveGPT makes the GPT of a disk fit a disk of end bytes, which may be more or
	// less than d has had: backup in the last sector, last usable sector,
	// protective entry. It tells whether it changed anything. What it wrote is
	// durable; a crash at any point leaves a first header that can be used.
	// ErrUsage where there is no GPT or a partition is in the way, ErrCorrupt where
	// the first copy cannot be used; nothing is written then.
	MoveGPT(d GuestDisk, end int64, sector uint32) (moved bool, err error)
}

// GuestDisk is a disk as its guest has it; a [Handle] for writing is one.
type GuestDisk interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Flush() error
}

// Layout is what a partition table says of the room that its disk needs. Offsets
// and lengths are bytes.
type Layout struct {
	MinInternalSize int64  // the smallest size that cuts nothing off; 0: not known
	Unknown         string // why, as a sentence part: "it has no partition table"
	GPT             bool   // a GPT that can be used
	BackupAtEnd     bool   // its backup is where it belongs, and sound
	// Free are the ranges that the table proves to be in no use, in order. Nil
	// unless it is a GPT of which both copies are sound and agree.
	Free []Range
}

// Range is a range of a disk in bytes.
type Range struct{ Off, Len int64 }

// noTables is a library that was given none.
type noTables struct{}

func (noTables) Layout(io.ReaderAt, int64, uint32) (*Layout, error) {
	return &Layout{Unknown: "partition tables are not read here"}, nil
}

func (noTables) MoveGPT(GuestDisk, int64, uint32) (bool, error) {
	return false, Errorf(ErrUsage, 0, "partition tables are not read here")
}

func (l *Library) tables() Tables {
	if l.opts.Tables != nil {
		return l.opts.Tables
	}
	return noTables{}
}
