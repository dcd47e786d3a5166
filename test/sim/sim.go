// Package sim is a host in memory for tests: directories and sparse files of
// any size behind [ops.Dir] and [ops.File], with knobs.
//
//   - Every change is recorded as an [Event]; [Host.Apply] carries any subset of
//     them out on a [Host.Clone] of where the recording started: crash states.
//   - [Host.SetFault] fails or shortens any call; [Host.DropSync] makes syncs of
//     a label do nothing; [Host.SetCapacity] fills the disk.
//   - [Host.Freeze] refuses and counts changes; [Host.Opened] lists what was
//     opened: tests show with these what was not touched.
//
// Locks between handles follow QEMU's rules, identities and hard links are as on
// a host, times come from a clock that ticks a millisecond with each change.
package sim

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"vhdfs/ops"
)

// Device is the device number of every file of every host.
const Device = 42

// Host is one machine's files. Safe for concurrent use.
type Host struct {
	mu        sync.Mutex
	root      *node
	nodes     map[uint64]*node // every file ever made, unlinked ones included
	nextIno   uint64
	ticks     int64
	capacity  int64 // bytes of all files; 0: no limit
	frozen    bool
	refused   int // changes asked of a frozen host
	changes   int
	opened    []string
	recording bool
	events    []Event
	dropped   map[string]bool
	labels    map[string]int
	hook      func(Call) error
	after     func(Call)
	calls     int
	trace     bool
}

type kind uint8

const (
	regular kind = iota
	directory
	symlink
	special // FIFO, socket or device
)

type node struct {
	content
	ino      uint64
	kind     kind
	perm     uint32
	mtime    int64            // in ticks of the host's clock
	target   string           // of a symlink
	children map[string]*node // of a directory
	handles  map[*file]bool   // with locks: true for a writer's
}

func newNode(ino uint64, dir bool) *node {
	n := &node{ino: ino, perm: 0o600, content: newContent()}
	if dir {
		n.kind, n.children = directory, map[string]*node{}
	}
	return n
}

// New is an empty host.
func New() *Host {
	root := newNode(1, true)
	return &Host{
		root: root, nodes: map[uint64]*node{1: root}, nextIno: 1,
		dropped: map[string]bool{}, labels: map[string]int{},
	}
}

// Clone is an independent copy: files, names, capacity and dropped labels.
// Handles, locks, recordings and hooks stay behind. It costs a few hundred bytes
// for each MiB stored.
func (h *Host) Clone() *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &Host{
		nodes: make(map[uint64]*node, len(h.nodes)), nextIno: h.nextIno, ticks: h.ticks, capacity: h.capacity,
		dropped: make(map[string]bool, len(h.dropped)), labels: map[string]int{},
	}
	for l := range h.dropped {
		c.dropped[l] = true
	}
	c.root = cloneNode(h.root, c.nodes)
	for ino, n := range h.nodes {
		if c.nodes[ino] == nil {
			cloneNode(n, c.nodes) // unlinked
		}
	}
	return c
}

func cloneNode(n *node, into map[uint64]*node) *node {
	if c := into[n.ino]; c != nil {
		return c // another name of a file
	}
	c := &node{ino: n.ino, kind: n.kind, perm: n.perm, mtime: n.mtime, target: n.target, content: n.clone()}
	into[n.ino] = c
	if n.kind == directory {
		c.children = make(map[string]*node, len(n.children))
		for name, child := range n.children {
			c.children[name] = cloneNode(child, into)
		}
	}
	return c
}

// Freeze makes every later change fail with EROFS.
func (h *Host) Freeze() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frozen = true
}

// Refused counts the changes that were asked of a frozen host.
func (h *Host) Refused() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refused
}

// Changes counts the changes that took place, syncs included.
func (h *Host) Changes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changes
}

// Opened lists the host paths that were opened or created, in order.
func (h *Host) Opened() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.opened...)
}

// SetCapacity limits the bytes stored in all files: ENOSPC past it. 0: no limit.
func (h *Host) SetCapacity(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.capacity = n
}

// Used is the number of bytes stored in all files that have a name or a handle.
func (h *Host) Used() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.usedLocked()
}

func (h *Host) usedLocked() int64 {
	var pages int64
	for _, n := range h.nodes {
		pages += n.stored
	}
	return pages * pageSize
}

// mayChangeLocked refuses changes of a frozen host and moves the clock.
func (h *Host) mayChangeLocked() error {
	if h.frozen {
		h.refused++
		return syscall.EROFS
	}
	h.ticks++
	return nil
}

// clock is the time at a tick.
func clock(ticks int64) time.Time { return time.UnixMilli(1_767_225_600_000 + ticks) }

// Dir is the directory at an absolute host path, made when it is not there.
func (h *Host) Dir(hostPath string) ops.Dir {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &dir{host: h, node: h.mkdirAllLocked(hostPath), path: path.Clean(hostPath)}
}

func (h *Host) mkdirAllLocked(hostPath string) *node {
	at := h.root
	for _, name := range strings.Split(strings.Trim(path.Clean(hostPath), "/"), "/") {
		if name == "" || name == "." {
			continue
		}
		next := at.children[name]
		if next == nil {
			next = h.addLocked(at, name, directory)
		}
		at = next
	}
	return at
}

func (h *Host) addLocked(parent *node, name string, k kind) *node {
	h.nextIno++
	n := newNode(h.nextIno, k == directory)
	n.kind, n.mtime = k, h.ticks
	h.nodes[n.ino] = n
	parent.children[name], parent.mtime = n, h.ticks
	return n
}

// Put makes or replaces a file, its directories too, past hooks and recording.
// Pages of zeros become holes.
func (h *Host) Put(hostPath string, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.addLocked(h.mkdirAllLocked(path.Dir(hostPath)), path.Base(hostPath), regular)
	for off := 0; off < len(data); off += pageSize {
		if p := data[off:min(off+pageSize, len(data))]; !bytes.Equal(p, zeroPage.b[:len(p)]) {
			n.write(p, int64(off))
		}
	}
	n.truncate(int64(len(data)))
}

// Symlink makes a symbolic link.
func (h *Host) Symlink(target, hostPath string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addLocked(h.mkdirAllLocked(path.Dir(hostPath)), path.Base(hostPath), symlink).target = target
}

// Special makes a file that is neither regular nor a directory, such as a FIFO.
func (h *Host) Special(hostPath string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addLocked(h.mkdirAllLocked(path.Dir(hostPath)), path.Base(hostPath), special)
}

// Link gives a file a second name.
func (h *Host) Link(oldPath, newPath string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.lookupLocked(oldPath)
	if err != nil {
		return err
	}
	h.mkdirAllLocked(path.Dir(newPath)).children[path.Base(newPath)] = n
	return nil
}

// ReadFile is the whole content of a file, past hooks.
func (h *Host) ReadFile(hostPath string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.lookupLocked(hostPath)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n.size)
	n.read(b, 0)
	return b, nil
}

// Bytes is what one file holds, past hooks, recording, locks and the clock. Not
// safe while the file is used.
type Bytes struct{ n *node }

// Bytes is the content of a file; it panics when there is none at the path.
func (h *Host) Bytes(hostPath string) Bytes {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.lookupLocked(hostPath)
	if err != nil {
		panic(err)
	}
	return Bytes{n}
}

// Size is the size of the file in bytes.
func (b Bytes) Size() int64 { return b.n.size }

// Get is a copy of n bytes at off; past the end they are zeros.
func (b Bytes) Get(off, n int64) []byte {
	p := make([]byte, n)
	b.n.read(p, off)
	return p
}

// Write stores p at off and grows the file where needed.
func (b Bytes) Write(off int64, p []byte) { b.n.write(p, off) }

// Equal tells whether two files have one size and the same bytes from byte from on,
// a multiple of 4096. Pages that a clone shares are not read.
func (b Bytes) Equal(c Bytes, from int64) bool {
	if b.n.size != c.n.size {
		return false
	}
	for _, k := range append(b.n.keys()[:len(b.n.keys()):len(b.n.keys())], c.n.keys()...) {
		x, y := b.n.chunks[k], c.n.chunks[k]
		if x == y {
			continue
		}
		for i := max(0, from/pageSize-k*chunkPages); i < chunkPages; i++ {
			if !samePage(x.page(i), y.page(i)) {
				return false
			}
		}
	}
	return true
}

func samePage(p, q *page) bool {
	if p == nil {
		p = zeroPage
	}
	if q == nil {
		q = zeroPage
	}
	return p == q || p.b == q.b
}

// Truncate sets the size.
func (b Bytes) Truncate(size int64) { b.n.truncate(size) }

func (h *Host) lookupLocked(hostPath string) (*node, error) {
	dir := &dir{host: h, node: h.root, path: "/"}
	n, err := dir.walkLocked(strings.TrimPrefix(path.Clean(hostPath), "/"), ops.Read)
	if err == nil && n.kind != regular {
		err = errors.ErrUnsupported
	}
	if err != nil {
		return nil, &fs.PathError{Op: "lookup", Path: hostPath, Err: err}
	}
	return n, nil
}
