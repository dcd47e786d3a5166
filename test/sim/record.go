package sim

import (
	"fmt"
	"path"
	"syscall"
)

// Op is a kind of call on a host.
type Op uint8

// Calls that change something come first; events are only made of these.
const (
	OpNone Op = iota
	OpWrite
	OpTruncate
	OpPunch
	OpAllocate
	OpSync
	OpCreate
	OpMkdir
	OpRename
	OpRemove
	OpSyncDir
	OpAck // a mark of the test
	OpRead
	OpStat
	OpNextData
	OpLock
	OpOpen
	OpList
	OpClose
)

var opNames = [...]string{"none", "write", "truncate", "punch", "allocate", "sync", "create", "mkdir",
	"rename", "remove", "syncdir", "ack", "read", "stat", "nextdata", "lock", "open", "list", "close"}

func (o Op) String() string { return opNames[o] }

// Event is one change that took place, in the order of the recording.
type Event struct {
	Op    Op
	File  uint64 // inode of the file or directory that changed; of the new file for create and mkdir
	Dir   uint64 // inode of the directory whose entries changed
	ToDir uint64 // of a rename: the directory that the name moved to
	Path  string // host path at that time
	To    string // of a rename: the new host path
	IsDir bool   // of a mkdir or rename: it is a directory
	Off   int64
	Len   int64
	Data  []byte // of a write: a copy
	Label string // of a sync or truncate; the text of an ack
	Mark  any    // of an ack: whatever the test passed
}

func (e Event) String() string {
	switch e.Op {
	case OpAck:
		return fmt.Sprintf("ack %q %v", e.Label, e.Mark)
	case OpWrite, OpPunch, OpAllocate:
		return fmt.Sprintf("%s %s %#x+%#x", e.Op, path.Base(e.Path), e.Off, e.Len)
	case OpTruncate:
		return fmt.Sprintf("truncate %s to %#x (%s)", path.Base(e.Path), e.Off, e.Label)
	case OpRename:
		return fmt.Sprintf("rename %s to %s", e.Path, e.To)
	case OpSync, OpSyncDir:
		return fmt.Sprintf("%s %s (%s)", e.Op, path.Base(e.Path), e.Label)
	}
	return fmt.Sprintf("%s %s", e.Op, e.Path)
}

// Record starts a new recording.
func (h *Host) Record() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recording, h.events = true, nil
}

// Events are the changes since [Host.Record]. The slice must not be changed.
func (h *Host) Events() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.events[:len(h.events):len(h.events)]
}

// Ack puts a mark into the recording: what was acknowledged to a guest by then.
func (h *Host) Ack(label string, mark any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eventLocked(Event{Op: OpAck, Label: label, Mark: mark})
}

// DropSync makes every sync with this label, of a file or a directory, answer
// success and do nothing, until [Host.KeepSyncs].
func (h *Host) DropSync(label string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropped[label] = true
}

// KeepSyncs undoes every [Host.DropSync].
func (h *Host) KeepSyncs() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.dropped)
}

// SyncLabels counts the syncs of each label so far, dropped ones included.
func (h *Host) SyncLabels() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	labels := make(map[string]int, len(h.labels))
	for l, n := range h.labels {
		labels[l] = n
	}
	return labels
}

func (h *Host) eventLocked(e Event) {
	h.changes++
	if h.recording {
		h.events = append(h.events, e)
	}
}

// Apply carries out one recorded event, on a host that holds what its recording
// started from, so that subsets of a recording can be applied: a change of a file
// that has no name yet, and of what is in a directory that has none, is kept for when
// it gets one, and a change of a name that is not there does nothing. Syncs and acks
// do nothing.
func (h *Host) Apply(e Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch e.Op {
	case OpWrite:
		h.inodeLocked(e).write(e.Data, e.Off)
	case OpTruncate:
		h.inodeLocked(e).truncate(e.Off)
	case OpPunch:
		n := h.inodeLocked(e)
		n.punch(e.Off, min(e.Len, n.size-e.Off))
	case OpAllocate:
		h.inodeLocked(e).allocate(e.Off, e.Len)
	case OpCreate, OpMkdir, OpRename, OpRemove:
		h.applyEntryLocked(e)
	case OpSync, OpSyncDir, OpAck:
	default:
		return fmt.Errorf("sim: %s is not a change: %w", e.Op, syscall.EINVAL)
	}
	return nil
}

// Stored is what the file of a recorded write holds now where that writes; zeros
// where nothing is.
func (h *Host) Stored(e Event) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := make([]byte, e.Len)
	if n := h.nodes[e.File]; n != nil {
		n.read(p, e.Off)
	}
	return p
}

// applyEntryLocked carries out a change of directory entries.
func (h *Host) applyEntryLocked(e Event) {
	dir, name := h.folderLocked(e.Dir), path.Base(e.Path)
	switch e.Op {
	case OpCreate, OpMkdir:
		dir.children[name] = h.inodeLocked(e)
	case OpRename:
		h.applyRenameLocked(e, dir)
	case OpRemove:
		if dir.children[name] == h.nodes[e.File] {
			delete(dir.children, name)
		}
	}
}

// applyRenameLocked gives a file another name. dir is where it was.
func (h *Host) applyRenameLocked(e Event, dir *node) {
	n, name := h.nodes[e.File], path.Base(e.Path)
	switch {
	case n != nil && dir.children[name] == n:
		delete(dir.children, name)
	case n != nil && h.namedLocked(n):
		return
	}
	h.folderLocked(e.ToDir).children[path.Base(e.To)] = h.inodeLocked(e)
}

// namedLocked tells whether a file has a name.
func (h *Host) namedLocked(n *node) bool {
	for _, d := range h.nodes {
		for _, child := range d.children {
			if child == n {
				return true
			}
		}
	}
	return false
}

// inodeLocked is the file of an event, made where it is not there.
func (h *Host) inodeLocked(e Event) *node { return h.nodeLocked(e.File, e.IsDir) }

// folderLocked is a directory, made where it is not there.
func (h *Host) folderLocked(ino uint64) *node { return h.nodeLocked(ino, true) }

func (h *Host) nodeLocked(ino uint64, dir bool) *node {
	n := h.nodes[ino]
	if n == nil {
		n = newNode(ino, dir)
		h.nodes[ino] = n
		h.nextIno = max(h.nextIno, ino)
	}
	return n
}
