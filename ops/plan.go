package ops

import (
	"fmt"
	"math"
	"syscall"
)

// Plan is what an operation would do, as far as that can be known without doing
// it: the answer to a dry request.
type Plan struct {
	Makes, Changes, Removes []string // absolute host paths

	Move int64 // bytes that would be read and written, at most
	Need int64 // bytes of the host that this takes, at most
	Free int64 // bytes that the host has for it, as [Dir.Free]
	Size int64 // virtual size of the image afterwards, in bytes
}

// Fields are the plan as an answer shows it, in bytes. SpaceFree is null where the
// host does not say.
func (p Plan) Fields() Fields {
	var free any
	if p.Free != math.MaxInt64 {
		free = p.Free
	}
	f := Fields{{"DryRun", true}}
	for _, list := range []Field{{"Makes", p.Makes}, {"Changes", p.Changes}, {"Removes", p.Removes}} {
		if names := list.Value.([]string); len(names) > 0 {
			f = append(f, list)
		}
	}
	return append(f, Field{"BytesToMove", p.Move}, Field{"SpaceNeeded", p.Need}, Field{"SpaceFree", free}, Field{"SizeAfter", p.Size})
}

// Enough refuses, with ENOSPC and both numbers, what does not fit. what names the
// file that needs the space.
func (p Plan) Enough(what string) error {
	if p.Need <= p.Free {
		return nil
	}
	return &noSpace{what: what, need: p.Need, free: p.Free}
}

// noSpace is a shortage that was seen before it happened.
type noSpace struct {
	what       string
	need, free int64
}

func (e *noSpace) Error() string {
	return fmt.Sprintf("%s needs %d bytes, the host has %d left: %v", e.what, e.need, e.free, syscall.ENOSPC)
}

func (e *noSpace) Unwrap() error { return syscall.ENOSPC }
