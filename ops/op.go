package ops

import (
	"context"
	"strings"
)

// Op is one operation, declared once. The mount makes a control file of it, the
// command line a subcommand, and the README a row of its table.
type Op struct {
	Name   string // of the control file and the subcommand: "validate"
	Method string // the service's, "" for what goes beyond it: "ValidateVirtualHardDisk"
	Brief  string // one line, lower case, no full stop
	Args   []Arg
	// JobType is the number in Msvm_StorageJob.JobType, 0 where it has none.
	JobType uint16
	// Service tells that it is the service's own, not an image's: its control
	// file is in .vhdfs, and the command names the file that it makes.
	Service bool
	// Writes tells that it makes or changes files of the host.
	Writes bool
	// Can tells whether images like this one have the operation; nil: all have.
	Can func(*Found) bool
	// Run does the work. Its fields stand in the answer on failure too: they say
	// how far it came and what it found. ctx ends when the operation is to stop
	// at the next point where the image is whole.
	Run func(ctx context.Context, r *Request) (Fields, error)
}

// All is the table of operations, in the order of the documentation.
var All = []*Op{opCheck, opConvert, opCreate, opCreateFloppy, opValidate}

// Request is one call of an operation.
type Request struct {
	Library *Library
	Image   Ref // of the service: the image folder
	Args    Args
	// Named are folders that the caller chose besides the image folder: their
	// files may be named by absolute path.
	Named []Dir
	// Progress, if not nil, is told how many bytes of all are done, by one
	// goroutine at a time.
	Progress func(done, all int64)
}

// Title is the name that answers carry: the service's method where it has one.
func (o *Op) Title() string {
	if o.Method != "" {
		return o.Method
	}
	return o.Name
}

// Do runs the operation. A failure is in the answer, not beside it.
func (o *Op) Do(ctx context.Context, r *Request) Answer {
	fields, err := o.Run(ctx, r)
	return Answer{Operation: o.Title(), Fields: fields, Err: err}
}

// Refuse is the answer to a request that never ran.
func (o *Op) Refuse(err error) Answer { return Answer{Operation: o.Title(), Err: err} }

// Synopsis is the arguments on one line: "[mode=0|1|2] size=SIZE".
func (o *Op) Synopsis() string {
	words := make([]string, len(o.Args))
	for i, a := range o.Args {
		words[i] = a.synopsis()
	}
	return strings.Join(words, " ")
}

// Usage is what somebody sees who reads a control file before writing to it.
func (o *Op) Usage() string {
	var b strings.Builder
	b.WriteString(o.Name + ": " + o.Brief + ".")
	if len(o.Args) == 0 {
		b.WriteString(" Takes no arguments: write a newline, 1 or run.")
		return b.String()
	}
	b.WriteString(" Write: " + o.Synopsis() + ".")
	for _, a := range o.Args {
		b.WriteString(" " + a.usage())
	}
	if o.runsBare() {
		b.WriteString(" 1 or run takes the defaults.")
	}
	return b.String()
}

// runsBare tells whether nothing has to be said for it to run.
func (o *Op) runsBare() bool {
	for _, a := range o.Args {
		if a.Required && a.Default == "" {
			return false
		}
	}
	return true
}
