package ops

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	// Sync tells that it is answered at once and never as a job, as the service's
	// own are that have no Job: it takes no time, or ends all jobs.
	Sync bool
	// Writes tells that it makes or changes files of the host, with any
	// arguments; WritesIf that it does with these.
	Writes   bool
	WritesIf func(Args) bool
	// Plans tells that Run answers a [Plan], and changes nothing, when the request
	// is dry. Whatever writes has to.
	Plans bool
	// OneOf tells that it needs an argument, though none of them is required.
	OneOf bool
	// Snapshot tells that it works on one snapshot of a set, named by its argument
	// SnapshotId: its control file is in the snapshot's directory.
	Snapshot bool
	// Device tells that the command takes the block device of an attached image in
	// place of the image.
	Device bool
	// Document is the document of an image that is written to run it, in place of a
	// control file of its own: "settings.json". What is written there is that
	// document, edited; "" for all others.
	Document string
	// Can tells whether images like this one have the operation; nil: all have.
	Can func(*Found) bool
	// State, if not nil, is what somebody reads in its control file who made no
	// request: the present state.
	State func(*Request) (Fields, error)
	// Run does the work. Its fields stand in the answer on failure too: they say
	// how far it came and what it found. ctx ends when the operation is to stop
	// at the next point where the image is whole.
	Run func(ctx context.Context, r *Request) (Fields, error)
}

// All is the table of operations, in the order of the documentation.
var All = []*Op{
	opApply, opAttach, opChanges, opCheck, opCompact, opConvert, opConvertToSet, opCreate, opCreateFloppy, opDelete, opDetach, opFind, opMerge, opOptimize, opRequestStateChange, opResize,
	opSet, opSetParent, opSetSnapshot, opSnapshot, opStart, opStop, opTracking, opValidate, opValidateReservations,
}

// Request is one call of an operation.
type Request struct {
	Library *Library
	Image   Ref // of the service: the image folder
	Args    Args
	// Named are folders that the caller chose besides the image folder: their
	// files may be named by absolute path.
	Named []Dir
	// Dry asks what would be done, and for nothing to be changed.
	Dry bool
	// Note, if not nil, writes a line to the log of the image folder and returns when
	// it is durable: what somebody may want to know who undoes by hand what comes.
	Note func(text string) error
	// Stop, if not nil, ends the service that carries the request out; see
	// [StopTerms]. nil where none runs.
	Stop func(ctx context.Context, t StopTerms) error
	// Attacher attaches images; nil where no service runs that would keep them so.
	Attacher *Attacher
	// Progress, if not nil, is told how many bytes of all are done, by one
	// goroutine at a time. The first call says that what was asked for is accepted;
	// see [Request.Begin].
	Progress func(done, all int64)
}

// Begin says that the parameters are accepted and the work begins, on all bytes
// (0: unknown). An operation calls it once it has looked at everything that may
// be wrong with the request: who does not wait for its end is answered then.
func (r *Request) Begin(all int64) {
	if r.Progress != nil {
		r.Progress(0, all)
	}
}

// note is [Request.Note] where there is a log.
func (r *Request) note(format string, args ...any) error {
	if r.Note == nil {
		return nil
	}
	return r.Note(fmt.Sprintf(format, args...))
}

// Title is the name that answers carry: the service's method where it has one.
func (o *Op) Title() string {
	if o.Method != "" {
		return o.Method
	}
	return o.Name
}

// File is the name of the file that is written to run it.
func (o *Op) File() string {
	if o.Document != "" {
		return o.Document
	}
	return o.Name
}

// Changes tells whether a request with these arguments makes or changes files of
// the host.
func (o *Op) Changes(a Args) bool {
	return !a.Bool(argDry.Name) && (o.Writes || o.WritesIf != nil && o.WritesIf(a))
}

// Do runs the operation; dry, too, if the arguments say so. A failure is in the
// answer, not beside it.
func (o *Op) Do(ctx context.Context, r *Request) Answer {
	if r.Args.Bool(argDry.Name) {
		r.Dry = true
	}
	if r.Dry && !o.Plans && (o.Writes || o.WritesIf != nil && o.WritesIf(r.Args)) {
		return o.Refuse(Errorf(errors.ErrUnsupported, 0, "%s: no dry run", o.Name))
	}
	if r.Library != nil && o.Changes(r.Args) {
		r.Library.changes.Add(1)
		defer r.Library.changes.Add(1)
	}
	fields, err := o.Run(ctx, r)
	if err == context.Canceled { // and nothing else to say
		err = Errorf(errCancelled, 0, "%s of %s", o.Name, r.Image.Path())
	}
	return Answer{Operation: o.Title(), Fields: fields, Err: err}
}

// On is the operation on one snapshot, without the argument that names it.
func (o *Op) On(snapshot string) *Op {
	own := *o
	own.Args = slices.DeleteFunc(slices.Clone(o.Args), func(a Arg) bool { return a.Name == argSnapshot.Name })
	own.Run = func(ctx context.Context, r *Request) (Fields, error) {
		with := *r
		with.Args = maps.Clone(r.Args)
		with.Args[argSnapshot.Name] = snapshot
		return o.Run(ctx, &with)
	}
	return &own
}

// Refuse is the answer to a request that never ran.
func (o *Op) Refuse(err error) Answer { return Answer{Operation: o.Title(), Err: err} }

// Synopsis is the operation's own arguments on one line: "[mode=0|1|2] size=SIZE".
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
		b.WriteString(" Takes no arguments of its own: write a newline, 1 or run.")
	} else {
		b.WriteString(" Write: " + o.Synopsis() + ".")
	}
	for _, a := range o.Args {
		b.WriteString(" " + a.usage())
	}
	if len(o.Args) > 0 && o.runsBare() {
		b.WriteString(" 1 or run takes the defaults.")
	}
	return b.String() + " " + CommonUsage()
}

// CommonUsage says what every operation takes besides its own arguments.
func CommonUsage() string {
	s := "As with every operation,"
	for i, a := range Common {
		if i > 0 {
			s += ";"
		}
		s += " " + a.synopsis() + " " + a.Help
	}
	return s + "."
}

// runsBare tells whether nothing has to be said for it to run.
func (o *Op) runsBare() bool {
	if o.OneOf {
		return false
	}
	for _, a := range o.Args {
		if a.Required && a.Default == "" {
			return false
		}
	}
	return true
}
