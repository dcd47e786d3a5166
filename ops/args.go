package ops

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
)

// ArgKind is how an argument's text is read.
type ArgKind uint8

// Kinds of arguments with the type that [Args] holds for them.
const (
	ArgText    ArgKind = iota // string, not empty
	ArgPath                   // string, not empty
	ArgSize                   // Amount
	ArgBool                   // bool
	ArgWord                   // string: the Text of one of Arg.Words
	ArgID                     // GUID
	ArgNewPath                // string, not empty: of a file to be made
	ArgPlace                  // string, not empty: of a file or a folder
)

// Arg is one argument of an operation.
type Arg struct {
	Name     string // the service's parameter name: "MaxInternalSize"
	Short    string // "size"; "" when the name is short enough
	Kind     ArgKind
	Words    []Word // of an ArgWord; for an ArgSize words it takes besides sizes
	Required bool
	Default  string // as it would be typed; "": none
	Bare     bool   // may be given as a value alone; never an ArgBool or ArgWord
	Help     string // one sentence part
}

// Arguments that every operation takes. [Args] holds them where they were given.
var (
	argWait = Arg{Name: "Wait", Kind: ArgBool, Help: "set to false answers as soon as the parameters are accepted, with the number of the job that goes on"}
	argDry  = Arg{Name: "DryRun", Kind: ArgBool, Help: "set to true answers what would be done and changes nothing"}

	// Common is these, in the order of the documentation.
	Common = []Arg{argWait, argDry}
)

// Waits tells whether the answer is to be that of the end.
func (a Args) Waits() bool { return !a.Has(argWait.Name) || a.Bool(argWait.Name) }

// Dry tells whether only the plan is asked for.
func (a Args) Dry() bool { return a.Bool(argDry.Name) }

// Word is one of a fixed set of values; requests may also use its number.
type Word struct {
	Text   string
	Number uint16
}

// Amount is a size as asked for.
type Amount struct {
	Bytes    int64
	Relative bool   // "+10G": to be added to the present size
	Word     string // one of Arg.Words in place of a size; Bytes is 0 then
}

// String is the amount as it can be typed.
func (a Amount) String() string {
	switch {
	case a.Word != "":
		return a.Word
	case a.Relative:
		return "+" + strconv.FormatInt(a.Bytes, 10)
	}
	return strconv.FormatInt(a.Bytes, 10)
}

// Args are the arguments of a request by their service name, with defaults
// filled in. Absent ones without a default are not there.
type Args map[string]any

// Planned is the same request for its plan alone: nothing is changed.
func (a Args) Planned() Args {
	dry := maps.Clone(a)
	dry[argDry.Name] = true
	return dry
}

// Has tells whether an argument was given or has a default.
func (a Args) Has(name string) bool { _, ok := a[name]; return ok }

// Text is an ArgText, ArgPath or ArgWord; "" when absent.
func (a Args) Text(name string) string { s, _ := a[name].(string); return s }

// Bool is an ArgBool; false when absent.
func (a Args) Bool(name string) bool { b, _ := a[name].(bool); return b }

// Amount is an ArgSize; zero when absent.
func (a Args) Amount(name string) Amount { v, _ := a[name].(Amount); return v }

// ID is an ArgID; zero when absent.
func (a Args) ID(name string) GUID { g, _ := a[name].(GUID); return g }

// Key is what users type most: the short name, else the name in lower case.
func (a *Arg) Key() string {
	if a.Short != "" {
		return a.Short
	}
	return strings.ToLower(a.Name)
}

func (a *Arg) named(key string) bool {
	return strings.EqualFold(key, a.Name) || a.Short != "" && strings.EqualFold(key, a.Short)
}

func (a *Arg) synopsis() string {
	s := a.Key() + "=" + a.placeholder()
	if !a.Required || a.Default != "" {
		return "[" + s + "]"
	}
	return s
}

// Form is the argument as it is typed: "size=SIZE".
func (a *Arg) Form() string { return a.Key() + "=" + a.placeholder() }

// Description says what it is, with its long name and its default.
func (a *Arg) Description() string {
	s := a.Name + ": " + a.Help
	if a.Default != "" {
		s += ", default " + a.Default
	}
	return s + "."
}

func (a *Arg) placeholder() string {
	words := make([]string, 0, len(a.Words)+1)
	switch a.Kind {
	case ArgPath, ArgNewPath, ArgPlace:
		return "PATH"
	case ArgBool:
		return "true|false"
	case ArgID:
		return "GUID"
	case ArgSize:
		words = append(words, "SIZE")
	case ArgText:
		return "TEXT"
	case ArgWord:
	}
	for _, w := range a.Words {
		words = append(words, w.Text)
	}
	return strings.Join(words, "|")
}

func (a *Arg) usage() string {
	s := a.Key()
	if a.Short != "" {
		s += " (" + a.Name + ")"
	}
	s += ": " + a.Help
	if a.Default != "" {
		s += ", default " + a.Default
	}
	return s + "."
}

// parse reads one value.
func (a *Arg) parse(s string) (any, error) {
	switch a.Kind {
	case ArgSize:
		if w, ok := a.word(s); ok {
			return Amount{Word: w}, nil
		}
		return parseAmount(a.Key(), s)
	case ArgBool:
		return parseBool(a.Key(), s)
	case ArgWord:
		if w, ok := a.word(s); ok {
			return w, nil
		}
		return nil, a.bad(s, "want "+a.placeholder())
	case ArgID:
		g, err := ParseGUID(s)
		if err != nil || g.IsZero() {
			return nil, a.bad(s, "want a GUID that is not all zeros")
		}
		return g, nil
	default:
		if s == "" {
			return nil, a.bad(s, "want a "+strings.ToLower(a.placeholder()))
		}
		return s, nil
	}
}

func (a *Arg) word(s string) (string, bool) {
	for _, w := range a.Words {
		if strings.EqualFold(s, w.Text) || a.Kind == ArgWord && s == strconv.Itoa(int(w.Number)) {
			return w.Text, true
		}
	}
	return "", false
}

func (a *Arg) bad(s, why string) error { return badArgument(a.Key(), s, why) }

func badArgument(key, s, why string) error {
	return fmt.Errorf("%s=%q: bad argument, %s", key, s, why)
}

// ParseSize reads bytes with an optional K, M, G or T (powers of 1024) and an
// optional + in front. The result fits an int64; zero is read, not judged. The
// error, an ErrUsage, names the key.
func ParseSize(key, s string) (Amount, error) {
	a, err := parseAmount(key, s)
	if err != nil {
		return Amount{}, Errorf(ErrUsage, 0, "%v", err)
	}
	return a, nil
}

func parseAmount(key, s string) (Amount, error) {
	const want = "want a size such as 1073741824, 40G or +10G"
	digits, relative := strings.CutPrefix(s, "+")
	shift := 0
	if n := len(digits); n > 0 {
		if i := strings.IndexByte("KMGT", digits[n-1]&^0x20); i >= 0 {
			shift, digits = 10*(i+1), digits[:n-1]
		}
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return Amount{}, badArgument(key, s, want)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return Amount{}, badArgument(key, s, fmt.Sprintf("more than %d bytes", int64(math.MaxInt64)))
	}
	return Amount{Bytes: n << shift, Relative: relative}, nil
}

func parseBool(key, s string) (any, error) {
	switch strings.ToLower(s) {
	case "true", "on", "yes", "1":
		return true, nil
	case "false", "off", "no", "0":
		return false, nil
	}
	return nil, badArgument(key, s, "want true or false")
}
