package fs

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vhdfs/ops"
)

// disk is what the mount keeps of one host file: the views of it that the kernel
// may hold pages of, by the number of the partition, 0 for raw. mount.mu guards it.
type disk struct {
	windows map[int]*pages
}

// window is a range of the guest's disk in bytes: all of it (part 0, off 0), or
// one partition.
type window struct {
	part        int
	off, length int64
}

// pages is a view: a window of a disk as the kernel knows it. Its generation is in the
// identity of its node: as long as it stays, every page that the kernel has is
// right. A new one begins
//
//   - at a LOOKUP while nobody has the view open, when size or times of the host
//     file, or the window, are not what they were;
//   - at a first open, when the file or a parent is not what it was before the kernel
//     read the first of its pages: that open answers ESTALE, and the kernel looks the
//     name up again;
//   - at a last close, when it is not, or when the times of the file were too fresh
//     at the first open to tell later changes, or when bytes may be missing.
//
// What is looked at when the kernel has read its pages proves nothing: RELEASE comes
// late, and what changed until then would seem to be what was read. A write through
// the view, or another one of the same bytes, is a change of the file, too.
type pages struct {
	gen     uint32
	window  window // as the kernel was told
	names   names  // of the last look-up
	handles []*contentHandle
	pending int   // opens under way
	writing int   // of handles and pending, those for writing
	first   stamp // of the chain, before the first of the handles; empty when it does not show every later change
	seen    stamp // of the chain as long as every page is right; empty when none is known to be; nil: there is none
	lost    losses
	fixing  bool // a truncation of our own raw is under way

	forgotten time.Time // when the kernel dropped a node of it, and none was looked up since; else zero

	growing   bool          // a SETATTR changes the size
	following int           // answered ones, of which not everybody knows yet
	followed  chan struct{} // closed when there is none any more; nil without
}

func (v *pages) idle() bool { return len(v.handles) == 0 && v.pending == 0 }

// stamp is what the files of a chain looked like, the image's own first; nil
// when nothing is known.
type stamp []ops.FileStat

// same tells whether nothing can have been written between two stamps.
func (s stamp) same(o stamp) bool {
	return slices.EqualFunc(s, o, unchanged)
}

func (s stamp) startsWith(st ops.FileStat) bool { return len(s) > 0 && unchanged(s[0], st) }

func unchanged(a, b ops.FileStat) bool {
	return a.ID == b.ID && a.Size == b.Size && a.Mtime.Equal(b.Mtime) && a.Ctime.Equal(b.Ctime)
}

// errLookAgain makes the kernel look the name up again, once, and open what it
// finds then.
var errLookAgain error = unix.ESTALE

// settled is how old a time stamp must be to prove anything: two changes within
// one tick of the clock that file systems use look like one. Four ticks at 100 Hz.
const settled = 40 * time.Millisecond

// proves tells whether every later change of a file will show in its times.
func (s stamp) proves(now time.Time) bool {
	return len(s) > 0 && !slices.ContainsFunc(s, func(st ops.FileStat) bool {
		return now.Sub(st.Ctime) < settled || now.Sub(st.Mtime) < settled
	})
}

// stampOf looks at every file of a chain; nil when one cannot be looked at.
func stampOf(layers []ops.Ref) stamp {
	s := make(stamp, len(layers))
	for i, r := range layers {
		st, err := r.Dir.Stat(r.Name)
		if err != nil {
			return nil
		}
		s[i] = st
	}
	return s
}

// nodeGen packs the identity of a view that the host's inode number leaves out:
// the device, as the 32 bits that the kernel has for it, and the generation,
// which no other view of the mount ever has.
func nodeGen(dev uint64, gen uint32) uint64 {
	return uint64(unix.Major(dev)<<20|unix.Minor(dev)&0xfffff)<<32 | uint64(gen)
}

// renewLocked begins a new generation.
func (m *mount) renewLocked(v *pages) {
	m.mu.lastGen++
	v.gen = m.mu.lastGen
	v.seen = nil
}

// look answers a LOOKUP of a window: the generation of its node. st is the host
// file, which nobody can have changed unseen while the view is open; id is its
// identity, or that of the set whose disk it is.
func (m *mount) look(id ops.FileID, st *ops.FileStat, w window, n names) uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.mu.disks[id]
	if d == nil {
		d = &disk{windows: map[int]*pages{}}
		m.mu.disks[id] = d
	}
	v := d.windows[w.part]
	if v == nil {
		v = &pages{window: w}
		m.renewLocked(v)
		d.windows[w.part] = v
	}
	v.names, v.forgotten = n, time.Time{}
	if v.idle() {
		if v.window != w || v.seen != nil && !v.seen.startsWith(*st) {
			m.renewLocked(v)
		}
		v.window = w
	}
	return v.gen
}

// admit makes room for an open of c and pins its view. raw and the partitions
// are two views of the same bytes with a cache each: while one is open for
// writing the other cannot be opened, which is asked for a second because
// RELEASE comes late. ESTALE when c is not the current node of its view.
func (m *mount) admit(c *content, write bool) (*pages, error) {
	for try := 0; ; try++ {
		v, err := m.tryAdmit(c, write)
		if try == waitTries || err == errStopping || !errors.Is(err, ops.ErrBusy) {
			return v, err
		}
		time.Sleep(waitStep)
	}
}

// How long EBUSY for open handles waits for a RELEASE: one second in all.
const (
	waitTries = 50
	waitStep  = 20 * time.Millisecond
)

func (m *mount) tryAdmit(c *content, write bool) (*pages, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := c.viewLocked()
	if v == nil || m.mu.closed {
		return nil, errLookAgain
	}
	if m.mu.stopping {
		return nil, errStopping
	}
	for part, other := range m.mu.disks[c.file].windows {
		if (part == 0) == (c.window.part == 0) {
			continue
		}
		if other.writing > 0 || write && !other.idle() {
			return nil, ops.Errorf(ops.ErrBusy, 0, "raw and partitions of one disk are open, one of them for writing")
		}
	}
	v.pending++
	if write {
		v.writing++
	}
	return v, nil
}

// dismiss takes back what admit gave.
func (m *mount) dismiss(v *pages, write bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v.dismissLocked(write)
}

func (v *pages) dismissLocked(write bool) {
	v.pending--
	if write {
		v.writing--
	}
}

// settle turns an admitted open into a handle of its view. A first open that
// finds another chain, or another size, than the kernel has pages for is ESTALE, and
// so is a later one of another file: the name leads to a new node then. The caller
// closes h after an error.
// s is the chain as it was at the time at, or a little later.
func (m *mount) settle(c *content, h *contentHandle, s stamp, at time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := h.pages
	stale := v.gen != c.gen || m.mu.closed
	if len(v.handles) > 0 && v.handles[0].disk.CacheID() != h.disk.CacheID() {
		stale = true // another file has the name since it was looked up
	}
	if stale {
		v.dismissLocked(h.write)
		return errLookAgain
	}
	if len(v.handles) == 0 {
		other := len(s) == 0 || h.disk.CacheID() != c.file || !c.isSet && s[0].ID != c.file
		changed := v.seen != nil && !v.seen.same(s)
		if other || changed || !c.window.fits(h.disk.Size()) {
			v.dismissLocked(h.write)
			m.renewLocked(v)
			return errLookAgain
		}
		if v.first = s; !s.proves(at) {
			v.first = stamp{}
		}
	}
	v.pending--
	v.handles = append(v.handles, h)
	return nil
}

// fits tells whether the window is what a disk of size bytes has there.
func (w window) fits(size int64) bool {
	if w.part == 0 {
		return w.length == size
	}
	return w.off <= size && w.length <= size-w.off
}

// leave takes a handle off its view. It tells whether the caller is to close it:
// the end of the mount may have been first.
func (m *mount) leave(h *contentHandle) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := h.pages
	i := slices.Index(v.handles, h)
	if i < 0 {
		return false
	}
	v.handles = slices.Delete(v.handles, i, i+1)
	if h.write {
		v.writing--
	}
	if v.idle() {
		if v.lost.err != nil {
			v.lost.err = nil
			m.renewLocked(v)
		}
		v.seen = v.first
	}
	return true
}

// rest compares the chain, after a handle was closed, with what the pages are of. What
// the session wrote shows in its times, too.
func (m *mount) rest(v *pages, s stamp) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !v.idle() || v.seen == nil { // nil: it began anew since, and the kernel has no pages of it
		return
	}
	if len(v.seen) == 0 || !v.seen.same(s) {
		m.renewLocked(v)
	}
}

// forgotten is a view whose node the kernel had dropped at a time.
type forgotten struct {
	file ops.FileID
	part int
	gen  uint32
	at   time.Time
}

// remembered is for how long a view outlives its node. FORGET says that the kernel has
// dropped one node of a generation; a LOOKUP under way may have been answered with the
// same generation, and an open after it must find it current. The kernel itself does
// that when it looks a name up again: it drops what the first look-up gave.
const remembered = time.Minute

// forget notes that the kernel dropped a node of c's generation, and drops the views
// that nobody has looked up for a while since theirs went.
func (m *mount) forget(c *content, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := c.viewLocked(); v != nil {
		v.forgotten = now
		m.mu.forgotten = append(m.mu.forgotten, forgotten{c.file, c.window.part, c.gen, now})
	}
	for len(m.mu.forgotten) > 0 && now.Sub(m.mu.forgotten[0].at) > remembered {
		m.dropLocked(m.mu.forgotten[0])
		m.mu.forgotten = m.mu.forgotten[1:]
	}
}

func (m *mount) dropLocked(f forgotten) {
	d := m.mu.disks[f.file]
	if d == nil {
		return
	}
	v := d.windows[f.part]
	if v == nil || v.gen != f.gen || !v.forgotten.Equal(f.at) || !v.idle() { // a node looked up since has a FORGET of its own
		return
	}
	delete(d.windows, f.part)
	if len(d.windows) == 0 {
		delete(m.mu.disks, f.file)
	}
}

// handles are all open handles of raw and partitions.
func (m *mount) handles() []*contentHandle {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*contentHandle
	for _, d := range m.mu.disks {
		for _, v := range d.windows {
			all = append(all, v.handles...)
		}
	}
	return all
}
