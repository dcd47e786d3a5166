package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// deleteAfter is how long after a refused unlink in a snapshot's directory an rmdir
// of that is taken for a part of a recursive delete.
const deleteAfter = 10 * time.Second

// snapshots is the directory of the snapshots of a set: mkdir takes one, rmdir
// deletes it, mv gives it another label.
func (m *mount) snapshots(p string) *table {
	ref := m.lib.Top(p)
	run := func(ctx context.Context, op string, args map[string]string) error {
		found, err := m.lib.Inspect(ref)
		if err != nil {
			return err
		}
		o := m.operation(found, op)
		if o == nil {
			return ops.Errorf(ops.ErrReadOnly, 0, "%s: no %s", ref.Path(), op)
		}
		return m.runNamed(ctx, o, ref, args)
	}
	return &table{
		m:    m,
		key:  "snapshots:" + p,
		stat: func() (*ops.FileStat, error) { st, err := m.stat(p); return &st, err },
		rows: func(context.Context) ([]row, error) { return m.snapshotsRows(ref) },
		edit: &edits{
			mkdir: func(ctx context.Context, name string) error {
				return run(ctx, "snapshot", map[string]string{"Label": name})
			},
			rmdir: func(ctx context.Context, name string) error {
				if m.recursive(ref, name) {
					return syscall.ENOTEMPTY
				}
				return run(ctx, "delete", map[string]string{"SnapshotId": name})
			},
			rename: func(ctx context.Context, old, name string) error {
				return run(ctx, "set-snapshot", map[string]string{"SnapshotId": old, "Label": name})
			},
		},
	}
}

// recursive tells whether somebody who tried to delete what is in a snapshot's
// directory a moment ago now deletes that itself.
func (m *mount) recursive(ref ops.Ref, name string) bool {
	found, err := m.lib.Inspect(ref)
	if err != nil || found.Set == nil {
		return false
	}
	n := found.Set.Snapshot(name)
	if n == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.mu.refused[refusal{ref.Name, n.ID}]) < deleteAfter
}

// refusal is of an unlink in the directory of a snapshot.
type refusal struct {
	set string
	id  ops.GUID
}

func (m *mount) noteRefused(r refusal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.refused == nil || len(m.mu.refused) > ops.MaxSetSnapshots {
		m.mu.refused = map[refusal]time.Time{}
	}
	m.mu.refused[r] = time.Now()
}

// runNamed carries out what a change of names stands for, as if it had been asked
// for in the control file.
func (m *mount) runNamed(ctx context.Context, op *ops.Op, ref ops.Ref, args map[string]string) error {
	caller, ok := fuse.FromContext(ctx)
	if !ok || caller.Uid != m.owner.Uid && caller.Uid != 0 {
		return syscall.EPERM
	}
	request, err := json.Marshal(args)
	if err != nil {
		return err
	}
	run, cancel := m.underWriter(ctx)
	defer cancel()
	c := &call{m: m, key: controlKey{image: ref.Name, op: op.Name}, op: op, ref: ref}
	_, err = c.run(run, *caller, request)
	return err
}

// snapshotsRows are the snapshots by their labels, or ids where they have none.
func (m *mount) snapshotsRows(ref ops.Ref) ([]row, error) {
	found, err := m.lib.Inspect(ref)
	if err != nil {
		return nil, err
	}
	if found.Set == nil {
		return nil, found.Err
	}
	var rows []row
	for i := range found.Set.Snapshots {
		n := &found.Set.Snapshots[i]
		rows = append(rows, subTable(n.Name(), m.snapshot(ref, n)))
		if n.Label != "" { // found by its id, too, and not shown twice
			r := subTable(n.ID.String(), m.snapshot(ref, n))
			r.hidden = true
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// snapshot is the directory of one snapshot.
func (m *mount) snapshot(ref ops.Ref, n *ops.SetSnapshot) *table {
	id := n.ID.String()
	return &table{
		m:    m,
		key:  "snapshot:" + ref.Name + ":" + id,
		stat: func() (*ops.FileStat, error) { st, err := m.stat(ref.Name); st.Mode &^= 0o222; return &st, err },
		rows: func(context.Context) ([]row, error) { return m.snapshotRows(ref, id) },
		edit: &edits{unlink: func(string) { m.noteRefused(refusal{ref.Name, n.ID}) }},
	}
}

func (m *mount) snapshotRows(ref ops.Ref, id string) ([]row, error) {
	found, err := m.lib.Inspect(ref)
	if err != nil {
		return nil, err
	}
	if found.Set == nil {
		return nil, found.Err
	}
	n := found.Set.Snapshot(id)
	if n == nil {
		return nil, syscall.ENOENT
	}
	rows := []row{small(ops.InfoDocument, m.info(ref, found, id))}
	if n.Path != "" {
		rows = append(rows, row{name: "raw", kind: syscall.S_IFREG, node: func() (node, gofs.StableAttr, error) {
			data, err := m.lib.InspectSnapshot(found, n)
			if err != nil {
				return nil, gofs.StableAttr{}, err
			}
			return m.content(data, window{length: data.Size}, &kept{set: ref, id: id})
		}})
	}
	for _, op := range m.opts.Ops {
		if op.Snapshot && op.Name != "set-snapshot" && (op.Can == nil || op.Can(found)) && (op.Name != "apply" || n.Path != "") {
			key := controlKey{image: ref.Name, op: id + "/" + op.Name}
			rows = append(rows, small(op.Name, m.controlAs(key, op.On(id), ref)))
		}
	}
	return rows, nil
}

// info is info.json: Msvm_VHDSnapshotInformation, which is written to change it.
func (m *mount) info(ref ops.Ref, found *ops.Found, id string) *textFile {
	t := &textFile{m: m, mode: 0o444, stat: m.statOf(ref), render: func(w io.Writer) error {
		found, err := m.lib.Inspect(ref)
		if err != nil {
			return err
		}
		if found.Set == nil {
			return found.Err
		}
		n := found.Set.Snapshot(id)
		if n == nil {
			return syscall.ENOENT
		}
		info, err := view.NewSnapshotInformation(m.lib, found, n)
		if err != nil {
			return err
		}
		return view.Encode(w, info)
	}}
	op := m.operation(found, "set-snapshot")
	if op == nil {
		return t
	}
	c := &call{m: m, key: controlKey{image: ref.Name, op: op.Name}, op: op, ref: ref}
	t.mode, t.gather = 0o644, gatherDocument
	t.run = func(ctx context.Context, caller fuse.Caller, text []byte) (*spool, error) {
		request, err := infoRequest(text, id)
		if err != nil {
			return c.refuse(&ops.JobRequest{Op: op, Text: string(text), Caller: callerOf(caller)}, err)
		}
		return c.run(ctx, caller, request)
	}
	return t
}

// infoRequest makes a request of an edited info.json. What follows from the rest is
// left out; the service has the id in the text, which has to be this one or a new one.
func infoRequest(text []byte, id string) ([]byte, error) {
	var doc map[string]any
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&doc); err != nil {
		return nil, ops.Errorf(ops.ErrUsage, 0, "%s: not a JSON object: %v", ops.InfoDocument, err)
	}
	for _, derived := range []string{"ParentPathsList", "FilePath", "CreationTime", "Type", "ParentSnapshotId", "Error"} {
		delete(doc, derived)
	}
	for k, v := range doc {
		if v == "" || v == nil {
			delete(doc, k)
		} else if _, ok := v.(string); !ok {
			return nil, ops.Errorf(ops.ErrUsage, 0, "%s: %s: want a text", ops.InfoDocument, fmt.Sprintf("%q", k))
		}
	}
	if doc["SnapshotId"] == nil {
		doc["SnapshotId"] = id
	}
	return json.Marshal(doc)
}

// Mkdir implements [gofs.NodeMkdirer].
func (t *table) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	if t.edit == nil || t.edit.mkdir == nil {
		return nil, syscall.EPERM
	}
	if err := t.edit.mkdir(ctx, name); err != nil {
		return nil, errno(err)
	}
	return t.Lookup(ctx, name, out)
}

// Rmdir implements [gofs.NodeRmdirer].
func (t *table) Rmdir(ctx context.Context, name string) syscall.Errno {
	if t.edit == nil || t.edit.rmdir == nil {
		return syscall.EPERM
	}
	if err := t.edit.rmdir(ctx, name); err == syscall.ENOTEMPTY {
		return syscall.ENOTEMPTY // which is an fs.ErrExist, too
	} else if err != nil {
		return errno(err)
	}
	return 0
}

// Unlink implements [gofs.NodeUnlinker].
func (t *table) Unlink(_ context.Context, name string) syscall.Errno {
	if t.edit != nil && t.edit.unlink != nil {
		t.edit.unlink(name)
	}
	return syscall.EPERM
}

// Rename implements [gofs.NodeRenamer]. Never EXDEV: mv would copy.
func (t *table) Rename(ctx context.Context, name string, to gofs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if t.edit == nil || t.edit.rename == nil || !t.same(to) || flags&^uint32(renameNoReplace) != 0 {
		return syscall.EPERM
	}
	if err := t.edit.rename(ctx, name, newName); err != nil {
		return errno(err)
	}
	return 0
}

const renameNoReplace = 1
