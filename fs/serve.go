package fs

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

const (
	// steadyReaders is how many readers there are at least. Each more of them on
	// the same processors makes bulk writes wait for one another's file lock.
	steadyReaders = 4
	// maxBulk is how many requests of more than bulk bytes that make no headway get
	// a reader in their place. Each fills a buffer: without the bound a host that
	// hangs would fill the memory with what the kernel writes back.
	maxBulk = 64
	bulk    = 128 << 10
	// patience is the time within which a request normally ends.
	patience = 2 * time.Millisecond
)

// loop answers the requests of a mount. A few readers each take a request,
// carry it out and answer it, so that none is handed from thread to thread, and
// a few buffers stay in the processor's cache. Requests may wait for long, for a
// host, for the end of a job, for each other; when all readers do, others are
// started, which end when they are needed no more.
type loop struct {
	dev      *device
	protocol *fuse.ProtocolServer
	log      *logrus.Logger

	idle    atomic.Int32  // readers that wait for a request
	starved chan struct{} // holds one when none was idle
	ended   chan struct{} // closed when the kernel sends no more requests
	end     sync.Once
	readers sync.WaitGroup
}

// devReader is one goroutine's part in a loop.
type devReader struct {
	buf     []byte
	serving atomic.Uint64 // the kernel's number of the request under way, 0 without
	bulk    atomic.Bool   // that carries more than bulk bytes
	left    atomic.Bool
}

func newLoop(dev *device, protocol *fuse.ProtocolServer, log *logrus.Logger) *loop {
	return &loop{dev: dev, protocol: protocol, log: log, starved: make(chan struct{}, 1), ended: make(chan struct{})}
}

// The buffer of a reader: what a WRITE carries and what a READ answers begins
// at a page, behind the header of the one or the other.
const (
	bufferPage  = 4096
	writeHeader = int(unsafe.Sizeof(fuse.WriteIn{}))
	replyHeader = int(unsafe.Sizeof(fuse.OutHeader{}))
)

func newDevReader() *devReader { return &devReader{buf: make([]byte, bufferPage+maxRequest)} }

// begin answers INIT, the first request of a mount.
func (l *loop) begin() error {
	var err error
	gone := l.dev.conn.Control(func(fd uintptr) { _, err = l.next(int(fd), newDevReader()) })
	return errors.Join(gone, err)
}

// serve returns when the mount is gone and every request has ended. It calls
// gone between the two.
func (l *loop) serve(gone func()) {
	readers := map[*devReader]uint64{} // with what each served when last looked at
	start := func(n int) {
		for range n {
			r := newDevReader()
			readers[r] = 0
			l.idle.Add(1)
			l.readers.Go(func() { l.read(r) })
		}
	}
	start(steadyReaders)
	for {
		select {
		case <-l.ended:
			gone()
			l.interrupt(readers)
			return
		case <-l.starved:
		}
		for l.idle.Load() == 0 {
			select {
			case <-l.ended:
			case <-time.After(patience):
				start(missing(readers))
				continue
			}
			break
		}
	}
}

// missing is how many readers to start, so that there are enough beside those
// that serve the same request as when it looked last.
func missing(readers map[*devReader]uint64) int {
	large, small := 0, 0
	for r, before := range readers {
		if r.left.Load() {
			delete(readers, r)
			continue
		}
		now := r.serving.Load()
		readers[r] = now
		switch {
		case now == 0 || now != before:
		case r.bulk.Load():
			large++
		default:
			small++
		}
	}
	return max(0, steadyReaders+small+min(large, maxBulk)-len(readers))
}

// interrupt ends requests that wait for what their callers, who are gone, will
// never do, and returns when all have ended.
func (l *loop) interrupt(readers map[*devReader]uint64) {
	done := make(chan struct{})
	go func() {
		l.readers.Wait()
		close(done)
	}()
	for {
		for r := range readers {
			if unique := r.serving.Load(); unique != 0 {
				in := fuse.InterruptIn{Unique: unique}
				in.InHeader.Length, in.Opcode = uint32(unsafe.Sizeof(in)), opInterrupt
				b := unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))
				l.protocol.HandleRequest([][]byte{b}, [][]byte{make([]byte, bufferPage)})
			}
		}
		select {
		case <-done:
			return
		case <-time.After(patience): // a request may have been too young to be known
		}
	}
}

// read serves requests until the mount is gone, or this reader is not needed.
func (l *loop) read(r *devReader) {
	defer r.left.Store(true)
	_ = l.dev.conn.Control(func(fd uintptr) { // an error would mean that the mount is gone
		for {
			more, err := l.next(int(fd), r)
			if !more {
				if err != unix.ENODEV {
					l.log.WithError(err).Error("reading requests of the kernel")
				}
				l.idle.Add(-1)
				l.end.Do(func() { close(l.ended) })
				return
			}
			if l.idle.Load() > steadyReaders { // itself among them
				l.idle.Add(-1)
				return
			}
		}
	})
}

// opInterrupt is the kernel's number of INTERRUPT.
const opInterrupt = 36

// next takes one request and answers it. False: there are no more.
func (l *loop) next(fd int, r *devReader) (more bool, err error) {
	in := r.buf[bufferPage-writeHeader:]
	n, err := unix.Read(fd, in)
	switch {
	case err == unix.EINTR || err == unix.ENOENT || err == unix.EAGAIN: // ENOENT: it was interrupted before it was read
		return true, nil
	case err != nil:
		return false, err
	case n < int(unsafe.Sizeof(fuse.InHeader{})):
		return false, fmt.Errorf("a request of %d bytes", n)
	}
	head := *(*fuse.InHeader)(unsafe.Pointer(&in[0]))
	l.enter(r, head.Unique, n > bulk)
	// go-fuse keeps the fixed part of a request elsewhere: the reply may lie over it.
	out := r.buf[bufferPage-replyHeader:]
	size, status := l.protocol.HandleRequest([][]byte{in[:n]}, [][]byte{out[:replyHeader], out[replyHeader:]})
	if status != fuse.OK { // it was not understood
		*(*fuse.OutHeader)(unsafe.Pointer(&out[0])) = fuse.OutHeader{Length: uint32(replyHeader), Status: -int32(status), Unique: head.Unique}
		size = replyHeader
	}
	if size > 0 {
		l.reply(fd, out[:size], &head)
	}
	l.leave(r)
	return true, nil
}

func (l *loop) enter(r *devReader, unique uint64, bulk bool) {
	r.bulk.Store(bulk)
	r.serving.Store(unique)
	if l.idle.Add(-1) == 0 {
		select {
		case l.starved <- struct{}{}:
		default:
		}
	}
}

func (l *loop) leave(r *devReader) {
	r.serving.Store(0)
	l.idle.Add(1)
}

// reply answers a request. Who asked may be gone by now: ENOENT then.
func (l *loop) reply(fd int, b []byte, head *fuse.InHeader) {
	for {
		_, err := unix.Write(fd, b)
		switch err {
		case unix.EINTR:
			continue
		case nil, unix.ENOENT, unix.ENODEV:
		default:
			l.log.WithError(err).WithField("operation", head.Opcode).Warn("answering a request of the kernel")
		}
		return
	}
}

// inPlace are the bytes that answer a READ, in the buffer that was given for them.
type inPlace []byte

// Size implements [fuse.ReadResult].
func (p inPlace) Size() int { return len(p) }

// Done implements [fuse.ReadResult].
func (p inPlace) Done() {}

// Bytes implements [fuse.ReadResult].
func (p inPlace) Bytes([]byte) ([]byte, fuse.Status) { return p, fuse.OK }

// Readv puts the bytes where the reply has them: nothing is copied if that is
// where they are.
func (p inPlace) Readv(to [][]byte) (int, fuse.Status) {
	n := 0
	for _, b := range to {
		if n < len(p) && len(b) > 0 && &b[0] != &p[n] {
			copy(b, p[n:])
		}
		n += min(len(b), len(p)-n)
	}
	return n, fuse.OK
}
