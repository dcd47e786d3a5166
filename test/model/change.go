package model

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vhdfs/ops"
)

// modes are those of a compaction.
var modes = []string{"full", "quick", "retrim", "prezeroed"}

// operate runs an operation on the image, which is open meanwhile.
func (m *machine) operate(name, request string) (ops.Answer, error) {
	op := ops.All[slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == name })]
	args, err := op.Parse(request)
	if err != nil {
		return ops.Answer{}, err
	}
	a := op.Do(context.Background(), &ops.Request{Library: m.lib, Image: m.lib.Top(m.c.name(m.c.Depth)), Args: args})
	if a.Err != nil && !errors.Is(a.Err, errors.ErrUnsupported) {
		return a, fmt.Errorf("%s %s: %w", name, request, a.Err)
	}
	return a, nil
}

// resize changes the size, of the model too where the format can do that: what is
// added is zeros, whatever was there in an earlier life and whatever a parent holds.
func (m *machine) resize(size int64) error {
	a, err := m.operate("resize", fmt.Sprintf("size=%d unsafe=true", size))
	if err != nil || a.Err != nil {
		return err
	}
	if size < int64(len(m.model)) {
		m.model = slices.Clone(m.model[:size])
	} else {
		m.model = append(m.model, make([]byte, size-int64(len(m.model)))...)
	}
	if got := m.h.Size(); got != size {
		return fmt.Errorf("resized to %d, the open disk has %d bytes", size, got)
	}
	return nil
}
