package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// edited is a document that is written to run an operation: settings.json. It is
// for everybody to read, as the others are.
func (m *mount) edited(d Document, op *ops.Op, ref ops.Ref) *textFile {
	t := m.document(d, ref)
	c := &call{m: m, key: controlKey{image: ref.Name, op: op.Name}, op: op, ref: ref}
	t.mode, t.gather, t.run = 0o644, gatherDocument, c.edit
	return t
}

// writes is the operation that writing a document of an image runs, nil for none.
func (m *mount) writes(d Document, found *ops.Found) *ops.Op {
	for _, op := range m.opts.Ops {
		if op.Document == d.Name && (op.Can == nil || op.Can(found)) {
			return op
		}
	}
	return nil
}

// edit carries out what an edited document asks for, or a request in words.
func (c *call) edit(ctx context.Context, caller fuse.Caller, text []byte) (*spool, error) {
	if !isObject(text) || len(text) > ops.MaxRequest {
		return c.run(ctx, caller, text)
	}
	r := &ops.JobRequest{Op: c.op, Text: string(text), Caller: callerOf(caller)}
	request, err := c.difference(text)
	switch {
	case err != nil:
		return c.refuse(r, err)
	case request == "":
		return c.answer(r, ops.Answer{Operation: c.op.Title(), Fields: ops.Fields{{Name: "Changed", Value: false}}}, time.Now(), false), nil
	}
	return c.run(ctx, caller, []byte(request))
}

func (c *call) difference(text []byte) (string, error) {
	links, err := c.m.lib.ChainOf(c.ref)
	if err != nil {
		return "", err
	}
	return view.NewSettingData(links).Edit(c.op, text)
}

// blanks are what may stand around a request.
const blanks = " \t\r\n\x00"

func isObject(text []byte) bool { return bytes.HasPrefix(bytes.TrimLeft(text, blanks), []byte("{")) }

// gatherDocument puts the writes of one handle together until they are a JSON
// object, which an editor or cat may write in parts; nil says that more is to come.
// What is no object, or cannot become one, is whole as it is. More than
// [ops.MaxRequest] bytes are left to be refused.
func gatherDocument(h *textHandle, data []byte) []byte {
	text := append(h.pending, data...)
	h.pending = nil
	if len(bytes.Trim(text, blanks)) == 0 {
		return nil // the end of a line, after what was carried out
	}
	var object json.RawMessage
	err := json.NewDecoder(bytes.NewReader(bytes.TrimLeft(text, blanks))).Decode(&object)
	if isObject(text) && errors.Is(err, io.ErrUnexpectedEOF) && len(text) <= ops.MaxRequest {
		h.pending = text
		return nil
	}
	return bytes.TrimRight(text, blanks)
}
