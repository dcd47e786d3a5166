package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"vhdfs/ops"
)

// answerText prints an answer for people. What went wrong is not here: the
// caller tells that on standard error.
func answerText(w io.Writer, op string, answer []byte) error {
	var head struct {
		ReturnValue uint32
		Job         string
	}
	if err := json.Unmarshal(answer, &head); err != nil {
		return err
	}
	if head.ReturnValue == ops.JobStarted {
		return pairs(w, [][2]string{{"Job", head.Job}})
	}
	if op == "check" {
		return checkText(w, answer)
	}
	fields, err := fieldsOf(answer)
	if err != nil {
		return err
	}
	failed := false
	var list [][2]string
	for _, f := range fields {
		switch f.Name {
		case "Error":
			failed = true
		case "Operation", "ReturnValue", "Job", "Errno", "JobCompletionStatusCode":
		default:
			list = append(list, flat(f.Name, f.Value)...)
		}
	}
	if !failed && len(list) == 0 {
		_, err := fmt.Fprintln(w, op+": OK")
		return err
	}
	return pairs(w, list)
}

// fieldsOf reads an answer in its order.
func fieldsOf(answer []byte) (ops.Fields, error) {
	d := json.NewDecoder(bytes.NewReader(answer))
	d.UseNumber()
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	var fields ops.Fields
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var v any
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		fields = append(fields, ops.Field{Name: fmt.Sprint(key), Value: v})
	}
	return fields, nil
}

// flat is a value as lines: what an object holds under dotted names, what a list
// holds under one name.
func flat(name string, v any) [][2]string {
	if s, ok := scalar(v); ok {
		return [][2]string{{name, s}}
	}
	var lines [][2]string
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			lines = append(lines, flat(name+"."+key, v[key])...)
		}
	case []any:
		for _, e := range v {
			lines = append(lines, flat(name, e)...)
		}
	}
	return lines
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return fmt.Sprint(v), true
	}
	return "", false
}

func checkText(w io.Writer, answer []byte) error {
	var a struct {
		Images, Left []ops.Report
		Mended       []ops.Anomaly
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return err
	}
	if err := reportText(w, a.Images); err != nil || a.Mended == nil {
		return err
	}
	fmt.Fprintf(w, "%d mended\n", len(a.Mended))
	t := columns(w)
	for _, f := range a.Mended {
		fmt.Fprintf(t, "  %s\t%s\t%s\n", f.Name, printable(f.Where), printable(f.Text))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "left:")
	return reportText(w, a.Left)
}

func reportText(w io.Writer, reports []ops.Report) error {
	for _, im := range reports {
		fmt.Fprintf(w, "%s: %d errors, %d warnings, %d notes\n", printable(im.Path), im.Errors, im.Warnings, im.Notes)
		t := columns(w)
		for _, f := range im.Anomalies {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", f.Severity, f.Name, printable(f.Where), printable(f.Text))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		if all := im.Errors + im.Warnings + im.Notes; all > len(im.Anomalies) {
			fmt.Fprintf(w, "  and %d more\n", all-len(im.Anomalies))
		}
	}
	return nil
}
