package ops

import (
	"bytes"
	"encoding/json"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// Field is one name and value of an answer.
type Field struct {
	Name  string
	Value any // anything that encoding/json renders
}

// Fields are in the order in which a reader sees them.
type Fields []Field

// Answer is the result of one request, in the service's terms. Its JSON form
// always holds Operation and ReturnValue; after a failure also Error (a
// sentence), Errno (the symbol) and JobCompletionStatusCode: the HRESULT as a
// JSON number (0xC03A000D is 3225026573), 0 where the service has none.
type Answer struct {
	Operation string
	Fields    Fields
	Err       error
}

// ReturnValue is the service's number for the outcome; 0 is success.
func (a Answer) ReturnValue() uint32 { return Classify(a.Err).Return }

// Sentence is the failure for people: what is wrong, then what to do. Empty
// after success.
func (a Answer) Sentence() string { return Sentence(a.Err) }

// MarshalJSON implements [json.Marshaler].
func (a Answer) MarshalJSON() ([]byte, error) {
	all := Fields{{"Operation", a.Operation}, {"ReturnValue", a.ReturnValue()}}
	all = append(all, a.Fields...)
	if a.Err != nil {
		all = append(all,
			Field{"Error", a.Sentence()},
			Field{"Errno", Errno(a.Err)},
			Field{"JobCompletionStatusCode", uint32(StatusOf(a.Err))})
	}
	return all.MarshalJSON()
}

// MarshalJSON implements [json.Marshaler]: an object in the order of the fields.
func (f Fields) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, field := range f {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(field.Name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(field.Value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
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
	{ErrCorrupt, "Run check for all findings; nothing was changed."},
	{ErrBusy, "Close the program that uses it and try again."},
	{ErrPoisoned, "Close all handles and open the image again."},
	{ErrChanged, "Another program changed the file while it was open; close all handles and open it again."},
}

// Sentence renders err for people: what is wrong, then what to do. Empty for nil.
func Sentence(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error() + "."
	for _, a := range advice {
		if errors.Is(err, a.class) {
			return s + " " + a.text
		}
	}
	return s
}
