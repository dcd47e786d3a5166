package view

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"

	"vhdfs/ops"
)

// property is one of a JSON object.
type property struct {
	name  string
	value json.RawMessage
}

// Edit reads a settings document that somebody changed, the whole of it or a part,
// and answers the request for op that it amounts to: what differs from d among the
// arguments of op, by their names in any case or their short ones, with what every
// operation takes besides. null stands for what is not said; "" is the request when
// nothing differs. ErrUsage names any other property that differs, and what is no
// property.
func (d *SettingData) Edit(op *ops.Op, text []byte) (string, error) {
	edited, err := properties(text)
	if err != nil {
		return "", ops.Errorf(ops.ErrUsage, 0, "%s: %v", op.File(), err)
	}
	now, err := json.Marshal(d)
	if err != nil {
		return "", err
	}
	current, err := properties(now)
	if err != nil {
		return "", err
	}
	request, changes, seen := map[string]json.RawMessage{}, false, map[string]bool{}
	for _, p := range edited {
		name := argument(op.Args, p.name)
		own, known := find(current, or(name, p.name))
		common := argument(ops.Common, p.name)
		key := strings.ToLower(or(name, p.name))
		switch {
		case seen[key]:
			return "", ops.Errorf(ops.ErrUsage, 0, "%s: %q is given twice", op.File(), p.name)
		case string(p.value) == "null":
		case common != "":
			request[common] = p.value
		case !known:
			return "", ops.Errorf(ops.ErrUsage, 0, "%s: unknown property %q", op.File(), p.name)
		case same(p.value, own.value):
		case name == "":
			return "", ops.Errorf(ops.ErrUsage, 0, "%s: %s is %s and cannot be changed to %s; %s can", op.File(), own.name, own.value, p.value, argNames(op.Args))
		default:
			request[name], changes = p.value, true
		}
		seen[key] = true
	}
	if !changes {
		return "", nil
	}
	b, err := json.Marshal(request)
	return string(b), err
}

// properties are those of one JSON object, in its order.
func properties(text []byte) ([]property, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	var list []property
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		p := property{name: key.(string)}
		if err := d.Decode(&p.value); err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("the JSON object is not closed")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return list, nil
}

// argument is the name of the argument that a key means, "" for none.
func argument(args []ops.Arg, key string) string {
	for i := range args {
		if strings.EqualFold(key, args[i].Name) || strings.EqualFold(key, args[i].Key()) {
			return args[i].Name
		}
	}
	return ""
}

func find(list []property, name string) (property, bool) {
	for _, p := range list {
		if strings.EqualFold(p.name, name) {
			return p, true
		}
	}
	return property{}, false
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// same compares values; ids in any case, with or without braces.
func same(a, b json.RawMessage) bool {
	x, y := value(a), value(b)
	s, ok := x.(string)
	t, also := y.(string)
	if ok && also {
		g, err := ops.ParseGUID(s)
		h, err2 := ops.ParseGUID(t)
		return s == t || err == nil && err2 == nil && g == h
	}
	return reflect.DeepEqual(x, y)
}

func value(raw json.RawMessage) any {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil { // it was decoded before
		return nil
	}
	return v
}

func argNames(args []ops.Arg) string {
	list := make([]string, len(args))
	for i := range args {
		list[i] = args[i].Name
	}
	return strings.Join(list, ", ")
}
