package ops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// MaxRequest is the longest request in bytes: a write(2) of that length reaches
// a FUSE server in one piece whatever its alignment.
const MaxRequest = 64 << 10

// word is one word of a request, quotes removed.
type word struct {
	key, value string
	pair       bool // key=value; else a bare value
}

// Parse reads what somebody wrote to a control file: words quoted as in a
// shell, or one JSON object. Blanks, CR, LF and NUL around it do not count.
// ErrUsage names what is wrong, ErrTooLong for more than [MaxRequest] bytes.
//
// A write without a byte asks for nothing and gets nil Args.
func (o *Op) Parse(text string) (Args, error) {
	switch {
	case text == "":
		return nil, nil
	case len(text) > MaxRequest:
		return nil, Errorf(ErrTooLong, 0, "%s: %d bytes, at most %d", o.Name, len(text), MaxRequest)
	}
	text = strings.Trim(text, " \t\r\n\x00")
	if text == "" && len(o.Args) > 0 {
		return nil, o.usagef("an empty request runs only what takes no arguments; write 1 or run, or %s", o.Synopsis())
	}
	var words []word
	var err error
	if strings.HasPrefix(text, "{") {
		words, err = splitJSON(text)
	} else {
		words, err = split(text)
	}
	if err != nil {
		return nil, o.usagef("%v", err)
	}
	return o.bind(words)
}

// ParseWords reads arguments that a shell has already split. No words at all
// ask for the defaults.
func (o *Op) ParseWords(words []string) (Args, error) {
	list := make([]word, len(words))
	for i, w := range words {
		list[i].key, list[i].value, list[i].pair = strings.Cut(w, "=")
		if !list[i].pair {
			list[i] = word{value: w}
		}
	}
	return o.bind(list)
}

func (o *Op) usagef(format string, args ...any) error {
	return Errorf(ErrUsage, 0, "%s: %s", o.Name, fmt.Sprintf(format, args...))
}

// bind gives each word to its argument and fills in the defaults.
func (o *Op) bind(words []word) (Args, error) {
	args := Args{}
	own := slices.DeleteFunc(slices.Clone(words), func(w word) bool { return common(w) != nil })
	if o.runsBare() && len(own) == 1 && !own[0].pair && (own[0].value == "1" || own[0].value == "run") {
		words = slices.DeleteFunc(slices.Clone(words), func(w word) bool { return w == own[0] })
	}
	for _, w := range words {
		a := o.argFor(w)
		switch {
		case a == nil && w.pair:
			return nil, o.usagef("unknown argument %q; %s", w.key, o.known())
		case a == nil:
			return nil, o.usagef("%q needs a name in front; %s", w.value, o.known())
		case args.Has(a.Name):
			return nil, o.usagef("argument %q is given twice", a.Key())
		}
		v, err := a.parse(w.value)
		if err != nil {
			return nil, o.usagef("%v", err)
		}
		args[a.Name] = v
	}
	for i := range o.Args {
		if err := o.fill(args, &o.Args[i]); err != nil {
			return nil, err
		}
	}
	return args, nil
}

// common is the argument of every operation that a word is for.
func common(w word) *Arg {
	for i := range Common {
		if w.pair && Common[i].named(w.key) {
			return &Common[i]
		}
	}
	return nil
}

func (o *Op) argFor(w word) *Arg {
	for i := range o.Args {
		a := &o.Args[i]
		if w.pair && a.named(w.key) || !w.pair && a.Bare {
			return a
		}
	}
	return common(w)
}

func (o *Op) fill(args Args, a *Arg) error {
	switch {
	case args.Has(a.Name):
		return nil
	case a.Default != "":
		v, err := a.parse(a.Default)
		if err != nil {
			return o.usagef("default %v", err)
		}
		args[a.Name] = v
	case a.Required:
		return o.usagef("%s is required; %s", a.Key(), a.Help)
	}
	return nil
}

func (o *Op) known() string {
	if len(o.Args) == 0 {
		return "it takes no arguments"
	}
	return "it takes " + o.Synopsis()
}

// split cuts a line into words with a shell's quoting: nothing is special in
// single quotes, a backslash takes the next byte as it is elsewhere (in double
// quotes only before a quote and a backslash). Nothing is expanded. The first =
// outside quotes ends a key.
func split(line string) ([]word, error) {
	var words []word
	var cur word
	var buf strings.Builder
	open, quote := false, byte(0)
	end := func() {
		if open {
			cur.value = buf.String()
			words = append(words, cur)
		}
		cur, open = word{}, false
		buf.Reset()
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == 0:
			return nil, errors.New("a NUL byte inside the request")
		case c == '\n' || c == '\r':
			return nil, errors.New("two lines in one request; write one line, or one JSON object")
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, open = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			end()
		case quote == 0 && c == '=' && !cur.pair && buf.Len() > 0:
			cur.key, cur.pair = buf.String(), true
			buf.Reset()
		case c == '\\' && escapes(quote, line[i+1:]):
			i++
			buf.WriteByte(line[i])
			open = true
		default:
			buf.WriteByte(c)
			open = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c is not closed", quote)
	}
	end()
	return words, nil
}

// escapes tells whether a backslash before rest takes the next byte as it is.
func escapes(quote byte, rest string) bool {
	switch {
	case rest == "" || quote == '\'' || rest[0] == '\n' || rest[0] == 0:
		return false
	case quote == '"':
		return rest[0] == '"' || rest[0] == '\\'
	}
	return true
}

// splitJSON reads one flat object: strings, numbers, booleans; null counts as
// not given.
func splitJSON(text string) ([]word, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	var words []word
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, jsonError(err)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, jsonError(err)
		}
		w := word{key: key.(string), pair: true}
		switch {
		case bytes.Equal(raw, []byte("null")):
			continue
		case raw[0] == '"':
			if err := json.Unmarshal(raw, &w.value); err != nil {
				return nil, jsonError(err)
			}
		case raw[0] == '{' || raw[0] == '[':
			return nil, fmt.Errorf("the value of %q must be a string, a number or a boolean", w.key)
		default:
			w.value = string(raw)
		}
		if strings.ContainsRune(w.value, 0) {
			return nil, fmt.Errorf("a NUL byte inside the value of %q", w.key)
		}
		words = append(words, w)
	}
	if _, err := d.Token(); err != nil {
		return nil, jsonError(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return words, nil
}

func jsonError(err error) error { return fmt.Errorf("not a JSON object: %v", err) }
