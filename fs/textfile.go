package fs

import (
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"sync"
	"sync/atomic"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vhdfs/ops"
)

// textFile is every small file: a document, which is read, or the control file
// of an operation, which is written too. What a reader sees is fixed when it
// opens the file, so that a read never tears.
type textFile struct {
	gofs.Inode
	m      *mount
	mode   uint32
	stat   func() (*ops.FileStat, error)
	render func(io.Writer) error // what an open shows
	long   bool                  // too long to be rendered for a stat
	key    sizeKey               // of a document about an image: zero for others
	until  <-chan struct{}       // if not nil, the first read waits for its end and renders then
	// run executes one request and answers what the handle shows from then on;
	// nil for a document.
	run func(ctx context.Context, caller fuse.Caller, request []byte) (*spool, error)
	// gather makes a request of several writes, and is nil where each is one. It
	// answers nil while more is to come.
	gather func(h *textHandle, data []byte) []byte
}

var (
	_ node              = (*textFile)(nil)
	_ gofs.NodeOpener   = (*textFile)(nil)
	_ gofs.NodeReader   = (*textFile)(nil)
	_ gofs.NodeWriter   = (*textFile)(nil)
	_ gofs.NodeFlusher  = (*textFile)(nil)
	_ gofs.NodeFsyncer  = (*textFile)(nil)
	_ gofs.NodeReleaser = (*textFile)(nil)
)

// textHandle is one open of a small file.
type textHandle struct {
	doc  *spool
	once sync.Once              // renders doc where that waits for the first read
	err  error                  // of that rendering
	last atomic.Pointer[answer] // to the last request on this handle; nil: none yet
	// pending is what was written and is no request yet. The kernel sends the writes
	// of a file one after the other.
	pending []byte
}

// answer is what a handle shows after a request: a document, from the file position
// where that write ended, so that the same descriptor reads it without a seek.
type answer struct {
	doc  *spool
	base int64
}

// document is the file of a document about an image.
func (m *mount) document(d Document, ref ops.Ref) *textFile {
	return &textFile{m: m, mode: 0o444, stat: m.statOf(ref), long: d.Long, key: sizeKey{ref.Name, d.Name},
		render: func(w io.Writer) error { return d.Render(m.ctx, ref, w) }}
}

// text is a file of the service.
func (m *mount) text(render func(io.Writer) error) *textFile {
	return &textFile{m: m, mode: 0o444, stat: m.statOf(ops.Ref{}), render: render}
}

// statOf gives a small file the times of the image that it is about. Who still has
// one open when an operation has ended its image may go on reading the answer.
func (m *mount) statOf(ref ops.Ref) func() (*ops.FileStat, error) {
	return func() (*ops.FileStat, error) {
		if ref.Dir == nil {
			st := m.now()
			return &st, nil
		}
		st, err := m.lib.Stat(ref)
		if errors.Is(err, iofs.ErrNotExist) {
			st, err = m.now(), nil
		}
		return &st, err
	}
}

// Getattr implements [gofs.NodeGetattrer]. The size is the true length of what
// the handle shows. Without one it is that of a rendering, the last one if the
// image's file is as it was then: tar believes it. What is long shows 0 until
// somebody has opened it, and is read in full all the same.
func (t *textFile) Getattr(_ context.Context, f gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	st, err := t.stat()
	if err != nil {
		return errno(err)
	}
	t.m.fill(&out.Attr, t.mode, st)
	out.Size = uint64(t.size(f, st))
	out.Blocks = (out.Size + 511) / 512
	return 0
}

func (t *textFile) size(f gofs.FileHandle, st *ops.FileStat) int64 {
	if h, ok := f.(*textHandle); ok {
		if a := h.last.Load(); a != nil {
			return a.base + a.doc.size
		}
		if t.until == nil {
			return h.doc.size
		}
	}
	if t.until != nil {
		select {
		case <-t.until:
		default:
			return 0
		}
	}
	if n, ok := t.m.knownSize(t.key, st); ok || t.long {
		return n
	}
	var n length
	if err := t.render(&n); err != nil {
		return 0 // opening it says why
	}
	t.remember(int64(n))
	return int64(n)
}

// length counts what is written to it.
type length int64

func (n *length) Write(p []byte) (int, error) {
	*n += length(len(p))
	return len(p), nil
}

// sizeKey names a document about an image.
type sizeKey struct{ image, name string }

// knownSize is how long a rendering was, and of which file.
type knownSize struct {
	of   ops.FileStat
	size int64
}

// maxSizes bounds how many lengths are remembered.
const maxSizes = 16384

func (m *mount) knownSize(key sizeKey, st *ops.FileStat) (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.mu.sizes[key]
	if !ok || !unchanged(k.of, *st) {
		return 0, false
	}
	return k.size, true
}

// remember notes the length of a rendering of now.
func (t *textFile) remember(size int64) {
	if t.key == (sizeKey{}) {
		return
	}
	st, err := t.stat()
	if err != nil {
		return
	}
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if len(t.m.mu.sizes) >= maxSizes {
		clear(t.m.mu.sizes)
	}
	t.m.mu.sizes[t.key] = knownSize{of: *st, size: size}
}

// Setattr implements [gofs.NodeSetattrer]. The size 0 that a shell's > asks for
// before it writes is accepted as nothing.
func (t *textFile) Setattr(ctx context.Context, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	size, ok := in.GetSize()
	if !ok || t.run == nil {
		return setTimes(ctx, t, f, in, out)
	}
	if size != 0 {
		return syscall.EINVAL
	}
	if no := attrAfterSet(ctx, t, f, out); no != 0 {
		return no
	}
	out.Size = 0
	return 0
}

// Open implements [gofs.NodeOpener]. Direct I/O, so that the size that the
// kernel believes limits no read.
func (t *textFile) Open(_ context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY && t.run == nil {
		return nil, 0, syscall.EACCES
	}
	h := &textHandle{doc: &spool{}}
	if t.until == nil && flags&syscall.O_ACCMODE != syscall.O_WRONLY {
		if err := t.render(h.doc); err != nil {
			t.m.discard(h.doc)
			return nil, 0, errno(err)
		}
	}
	t.remember(h.doc.size)
	return h, fuse.FOPEN_DIRECT_IO, 0
}

func (m *mount) discard(s *spool) {
	if err := s.Close(); err != nil {
		m.log.WithError(err).Warn("closing the spool file of a document")
	}
}

// Read implements [gofs.NodeReader]. After a request the file position counts
// from the end of that write; who seeks back to the start reads from the start.
func (t *textFile) Read(ctx context.Context, f gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h, ok := f.(*textHandle)
	if !ok {
		return nil, syscall.EBADF
	}
	doc := h.doc
	if a := h.last.Load(); a != nil {
		doc, off = a.at(h, off)
	} else if err := t.await(ctx, h); err != nil {
		return nil, errno(err)
	}
	n, err := doc.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, errno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// at is where a read at off begins in the answer. A reader in front of the base has
// moved its position: from there on the answer stands at 0.
func (a *answer) at(h *textHandle, off int64) (*spool, int64) {
	if off < a.base {
		a = &answer{doc: a.doc}
		h.last.Store(a)
	}
	return a.doc, off - a.base
}

// await waits for what the file shows, unless it is there already. A fatal signal
// to the reader ends the wait, with EINTR. The end of the mount ends what is waited
// for.
func (t *textFile) await(ctx context.Context, h *textHandle) error {
	if t.until == nil {
		return nil
	}
	wait, cancel := t.m.underWriter(ctx)
	defer cancel()
	select {
	case <-t.until:
	case <-wait.Done():
		if t.m.ctx.Err() == nil {
			return syscall.EINTR
		}
		<-t.until
	}
	h.once.Do(func() { h.err = t.render(h.doc) })
	return h.err
}

// Write implements [gofs.NodeWriter]: one write(2) is one request, executed
// before it returns. The answer stands on the handle whether it failed or not; a
// write that failed leaves the file position where it was.
func (t *textFile) Write(ctx context.Context, f gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	h, ok := f.(*textHandle)
	if !ok || t.run == nil {
		return 0, syscall.EBADF
	}
	caller, ok := fuse.FromContext(ctx)
	if !ok || caller.Uid != t.m.owner.Uid && caller.Uid != 0 {
		return 0, syscall.EPERM
	}
	if len(data) == 0 {
		return 0, 0
	}
	request := data
	if t.gather != nil {
		if request = t.gather(h, data); request == nil {
			return uint32(len(data)), 0
		}
	}
	run, cancel := t.m.underWriter(ctx)
	defer cancel()
	doc, err := t.run(run, *caller, request)
	base := off
	if err == nil {
		base += int64(len(data))
	}
	h.last.Store(&answer{doc: doc, base: base})
	if err != nil {
		return 0, errno(err)
	}
	return uint32(len(data)), 0
}

// Flush implements [gofs.NodeFlusher]. Shells close the file before they write,
// and lose what close answers: nothing happens here.
func (t *textFile) Flush(context.Context, gofs.FileHandle) syscall.Errno { return 0 }

// Fsync implements [gofs.NodeFsyncer]: a request was carried out when its write
// returned.
func (t *textFile) Fsync(context.Context, gofs.FileHandle, uint32) syscall.Errno { return 0 }

// Release implements [gofs.NodeReleaser].
func (t *textFile) Release(_ context.Context, f gofs.FileHandle) syscall.Errno {
	if h, ok := f.(*textHandle); ok {
		if n := len(h.pending); n > 0 {
			t.m.log.WithField("file", t.key.image+"/"+t.key.name).Warnf("%d bytes that are no whole request were dropped", n)
		}
		t.m.discard(h.doc)
	}
	return 0
}
