package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
	"vhdfs/ops/backup"
	"vhdfs/ops/view"
)

// changesWindow is how many granules of the disk one question for changes is about:
// an answer has at most half as many ranges.
const changesWindow = 1 << 20

// watchedBytes is how much is copied until it is asked whether that was written
// meanwhile.
const watchedBytes = 1 << 30

func backupCommand() *cli.Command {
	return &cli.Command{
		Name:      "backup",
		Usage:     "copy what a tracked disk holds, or what of it changed since an id, into a file",
		ArgsUsage: "IMAGE to=FILE [since=ID] [snapshot=NAME]",
		Category:  "backups",
		Flags:     append(parentFlags(), jsonFlag()),
		Action: func(c *cli.Context) error {
			values, rest, err := keyed(c.Args().Slice(), "to", "since", "snapshot")
			if err != nil {
				return err
			}
			if len(rest) != 1 || values["to"] == "" {
				return usagef("want vhdfs backup %s", c.Command.ArgsUsage)
			}
			ctx, stop := interruptible(c)
			defer stop()
			b := &backupRun{ctx: ctx, c: c, image: rest[0], since: values["since"], snapshot: values["snapshot"]}
			return b.run(values["to"])
		},
	}
}

// keyed takes the words key=value, of these keys, out of others.
func keyed(words []string, keys ...string) (values map[string]string, rest []string, err error) {
	values = map[string]string{}
	for _, w := range words {
		key, value, found := strings.Cut(w, "=")
		switch {
		case !found || !slices.Contains(keys, key):
			rest = append(rest, w)
		case value == "" || values[key] != "":
			return nil, nil, usagef("%s: want one value", key)
		default:
			values[key] = value
		}
	}
	return values, rest, nil
}

// backupRun is one backup. It asks the operations that any program can ask, and is
// of one point in time because it proves that nothing was written since that:
//
//	tracking new          the id of the present content
//	changes since=SINCE   what to copy; a full one copies what is stored
//	copy                  asking for changes of what was copied now and then
//	changes since=NEW     nothing: what was copied is what the id stands for
//
// A snapshot has an id, and stays as it is.
type backupRun struct {
	ctx      context.Context
	c        *cli.Context
	image    string // as it was typed
	since    string // "": a full one
	snapshot string // of a set; "": the disk itself
}

// backupAnswer is what the command prints.
type backupAnswer struct {
	Path   string
	ID     string `json:"ResilientChangeTrackingId"`
	Since  string `json:",omitempty"`
	Size   int64
	Ranges int64
	Bytes  int64
}

func (b *backupRun) run(to string) (err error) {
	p := newProgress(b.c.App.ErrWriter, "backup")
	defer p.end()
	var f folders
	defer func() { err = errors.Join(err, f.Close()) }()
	ref, err := f.newFile(to)
	if err != nil {
		return err
	}
	granule := int64(0)
	if b.since != "" {
		a, err := b.changes(b.since, 0, 512)
		if err != nil {
			return err
		}
		b.since, granule = a.LimitID, a.Granularity
	}
	h := backup.Head{Since: b.since, Taken: time.Now().UTC()}
	if h.ID, err = b.id(); err != nil {
		return err
	}
	if h.DiskID, err = b.diskID(); err != nil {
		return err
	}
	d, err := b.openContent()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	h.Size = d.Size()
	src := &watched{content: d, every: watchedBytes, still: func(off, n int64) error { return b.still(d, h, ops.Range{Off: off, Len: n}) }}
	totals, err := backup.Create(ref, h, func(w *backup.Writer) error {
		add := func(r ops.Range) error {
			p.set(r.Off, h.Size)
			return w.Add(b.ctx, r, src)
		}
		each := func() error { return eachStored(d, add) }
		if b.since != "" {
			each = func() error { return b.eachChanged(h.Size, granule, add) }
		}
		if err := each(); err != nil {
			return err
		}
		return b.still(d, h, ops.Range{Len: h.Size})
	})
	if err != nil {
		return err
	}
	p.end()
	return b.print(backupAnswer{ref.Path(), h.ID, h.Since, h.Size, totals.Ranges, totals.Bytes})
}

func (b *backupRun) print(a backupAnswer) error {
	if b.c.Bool("json") {
		return view.Encode(b.c.App.Writer, a)
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	return pairs(b.c.App.Writer, [][2]string{{"Path", a.Path}, {"ResilientChangeTrackingId", a.ID}, {"Since", a.Since},
		{"Size", number(a.Size)}, {"Ranges", number(a.Ranges)}, {"Bytes", number(a.Bytes)}})
}

// id is that of the content that is copied.
func (b *backupRun) id() (string, error) {
	if b.snapshot != "" {
		a, err := b.changes(b.snapshot, 0, 512)
		return a.LimitID, err
	}
	var a struct{ ResilientChangeTrackingID string }
	err := b.ask("tracking", &a, "new")
	return a.ResilientChangeTrackingID, err
}

func (b *backupRun) diskID() (ops.GUID, error) {
	var s struct{ VirtualDiskID ops.GUID }
	err := withTarget(b.c, b.image, func(t target) error { return decodeDocument(t, "settings.json", &s) })
	return s.VirtualDiskID, err
}

// changesAnswer is what matters here of the answer to changes.
type changesAnswer struct {
	LimitID             string
	ProcessedByteLength int64
	Granularity         int64
	Ranges              int64
	ChangedByteOffsets  []int64
	ChangedByteLengths  []int64
}

// changes asks for a part of the disk, or with n 0 for all that follows.
func (b *backupRun) changes(since string, off, n int64) (a changesAnswer, err error) {
	words := []string{"since=" + since, fmt.Sprintf("offset=%d", off)}
	if n > 0 {
		words = append(words, fmt.Sprintf("length=%d", n))
	}
	if b.snapshot != "" {
		words = append(words, "target="+b.snapshot)
	}
	err = b.ask("changes", &a, words...)
	var no *answered
	if errors.As(err, &no) && no.errno == ops.Errno(ops.ErrNoTracking) && since == b.since {
		err = fmt.Errorf("%w Make a full backup, without since=%s, and increments of that.", err, since)
	}
	return a, err
}

// eachChanged calls f with what changed, in order.
func (b *backupRun) eachChanged(size, granule int64, f func(ops.Range) error) error {
	for off := int64(0); off < size; {
		n := min(size-off, changesWindow*granule)
		a, err := b.changes(b.since, off, n)
		if err != nil {
			return err
		}
		if a.ProcessedByteLength != n || len(a.ChangedByteOffsets) != len(a.ChangedByteLengths) || a.Ranges != int64(len(a.ChangedByteOffsets)) {
			return fmt.Errorf("changes of %d bytes at %d: the answer is about %d, with %d offsets and %d lengths of %d ranges",
				n, off, a.ProcessedByteLength, len(a.ChangedByteOffsets), len(a.ChangedByteLengths), a.Ranges)
		}
		for i, at := range a.ChangedByteOffsets {
			if err := f(ops.Range{Off: at, Len: a.ChangedByteLengths[i]}); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

// eachStored calls f with what may hold anything but zeros, in order.
func eachStored(d content, f func(ops.Range) error) error {
	for off := int64(0); off < d.Size(); {
		from, end, err := d.NextData(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		end = min(end, d.Size())
		if from >= end {
			return nil
		}
		if err := f(ops.Range{Off: from, Len: end - from}); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// still is an error where a part of the disk was written since the id was given: what
// was copied may be of different moments then. Of the whole disk it asks for the size,
// too.
func (b *backupRun) still(d content, h backup.Head, r ops.Range) error {
	if b.snapshot != "" {
		return nil
	}
	if err := d.Settle(); err != nil {
		return err
	}
	n := r.Len
	if n == h.Size {
		n = 0
	}
	a, err := b.changes(h.ID, r.Off, n)
	if err == nil && (a.Ranges > 0 || a.ProcessedByteLength != r.Len) {
		err = ops.Errorf(ops.ErrBusy, 0, "%s was written while it was copied, in %d places: stop what writes it (fsfreeze holds a file system), or copy a snapshot of a set", b.image, a.Ranges)
	}
	return err
}

// ask runs an operation on the image, through the mount that shows it if there is
// one, and reads its answer.
func (b *backupRun) ask(operation string, answer any, words ...string) error {
	q, err := newRequest(opNamed(operation), b.image, words)
	if err != nil {
		return err
	}
	text, err := q.run(b.ctx, b.c, &progress{})
	if err != nil {
		return err
	}
	var head struct{ Error, Errno string }
	if err := json.Unmarshal(text, &head); err != nil {
		return fmt.Errorf("answer of %s: %w", operation, err)
	}
	if head.Errno != "" {
		return &answered{head.Error, head.Errno}
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("answer of %s: %w", operation, err)
	}
	return nil
}

func opNamed(name string) *ops.Op {
	return ops.All[slices.IndexFunc(ops.All, func(o *ops.Op) bool { return o.Name == name })]
}

// answered is the failure that an operation answered, with what to do about it.
type answered struct{ sentence, errno string }

func (r *answered) Error() string { return r.sentence }
