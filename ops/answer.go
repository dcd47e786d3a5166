package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Field is one name and value of an answer.
type Field struct {
	Name  string
	Value any // [Streamed], or anything that encoding/json renders
}

// Fields are in the order in which a reader sees them.
type Fields []Field

// Answer is the result of one request, in the service's terms. Its JSON form
// always holds Operation and ReturnValue, and Job where it ran as one; after a
// failure also Error (a
// sentence), Errno (the symbol) and JobCompletionStatusCode: the HRESULT as a
// JSON number (0xC03A000D is 3225026573), 0 where the service has none.
type Answer struct {
	Operation string
	Job       int64 // 0: none
	Started   bool  // the job goes on: nothing is known of its end
	Fields    Fields
	Err       error
}

// JobStarted is the service's number for what goes on as a job.
const JobStarted = 4096

// ReturnValue is the service's number for the outcome; 0 is success, 4096 a job
// that goes on.
func (a Answer) ReturnValue() uint32 {
	if a.Started {
		return JobStarted
	}
	return Classify(a.Err).Return
}

// Warned tells whether an operation that succeeded has a list of warnings in its
// field of that name.
func (a Answer) Warned() bool {
	for _, f := range a.Fields {
		if list, ok := f.Value.([]string); ok && f.Name == "Warnings" {
			return len(list) > 0
		}
	}
	return false
}

// Sentence is the failure for people: what is wrong, then what to do. Empty
// after success.
func (a Answer) Sentence() string { return Sentence(a.Err) }

// WriteJSON writes the answer as one JSON object on one line, without holding it
// in memory where fields are [Streamed].
func (a Answer) WriteJSON(w io.Writer) error {
	all := Fields{{"Operation", a.Operation}, {"ReturnValue", a.ReturnValue()}}
	if a.Job != 0 {
		all = append(all, Field{"Job", strconv.FormatInt(a.Job, 10)})
	}
	all = append(all, a.Fields...)
	if a.Err != nil {
		all = append(all,
			Field{"Error", a.Sentence()},
			Field{"Errno", Errno(a.Err)},
			Field{"JobCompletionStatusCode", uint32(StatusOf(a.Err))})
	}
	return all.WriteJSON(w)
}

// MarshalJSON implements [json.Marshaler].
func (a Answer) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	err := a.WriteJSON(&b)
	return b.Bytes(), err
}

// Streamed is the value of a field that may be too long to be held as JSON.
type Streamed interface {
	// WriteJSON writes one JSON value. It may be called again, and later.
	WriteJSON(w io.Writer) error
}

// WriteJSON writes an object in the order of the fields.
func (f Fields) WriteJSON(w io.Writer) error {
	before := "{"
	for _, field := range f {
		name, err := json.Marshal(field.Name)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, before+string(name)+":"); err != nil {
			return err
		}
		if err := field.writeValue(w); err != nil {
			return err
		}
		before = ","
	}
	if len(f) > 0 {
		before = ""
	}
	_, err := io.WriteString(w, before+"}")
	return err
}

func (f Field) writeValue(w io.Writer) error {
	if s, ok := f.Value.(Streamed); ok {
		return s.WriteJSON(w)
	}
	b, err := json.Marshal(f.Value)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// MarshalJSON implements [json.Marshaler].
func (f Fields) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	err := f.WriteJSON(&b)
	return b.Bytes(), err
}

// Errno is the symbol of the errno that err has for the file system, such as
// "EBUSY"; "" for nil.
func Errno(err error) string {
	if err == nil {
		return ""
	}
	switch no := Classify(err).Errno; no { // numbers with two names
	case syscall.EOPNOTSUPP:
		return "EOPNOTSUPP"
	case syscall.EUCLEAN:
		return "EUCLEAN"
	case syscall.EAGAIN:
		return "EAGAIN"
	default:
		return unix.ErrnoName(no)
	}
}

// advice says what to do about a class of failure. Classes where the message
// itself is all there is to say have no row.
var advice = []struct {
	class error
	text  string
}{
	{ErrParentMissing, "Put the parent where the image expects it, or name its folder with --search or --allow-parent; chain.json lists what was tried."},
	{ErrParentMismatch, "The file found is not the one this image was made on, or it was written since; chain.json shows both ids."},
	{ErrCycle, "An image cannot be its own ancestor; chain.json shows the loop."},
	{errUnrecorded, "set-parent records it again; chain.json lists what may be it."},
	{errLeft, "What is left cannot be mended without guessing; convert copies what can be read."},
	{errFindings, "repair=true mends what can be mended without guessing."},
	{ErrBackup, "Nothing was restored; an earlier backup, or a full one made now, has to serve."},
	{ErrCorrupt, "Run check for all findings; nothing was changed."},
	{context.Canceled, "Every image is whole; the same request begins anew, or goes on where it can."},
	{errOperates, "Wait for its end, or cancel it; .vhdfs/jobs shows what runs."},
	{ErrBusy, "Close the program that uses it and try again."},
	{ErrPoisoned, "Close all handles and open the image again."},
	{errOtherFile, "Put the file back that was there; check names every file of the set that is not what it should be."},
	{ErrChanged, "Another program changed the file while it was open; close all handles and open it again."},
}

// Sentence renders err for people: what is wrong, then what to do. Empty for nil.
func Sentence(err error) string {
	if err == nil {
		return ""
	}
	if a := Advice(err); a != "" {
		return err.Error() + ". " + a
	}
	return err.Error() + "."
}

// Advice says what to do about err; empty where its message is all there is to
// say.
func Advice(err error) string {
	for _, a := range advice {
		if errors.Is(err, a.class) {
			return a.text
		}
	}
	return ""
}
