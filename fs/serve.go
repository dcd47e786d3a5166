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
	// calmReaders is how many readers wait while requests come one at a time. The
	// kernel wakes readers in turn: with more of them each request would find another
	// thread, another buffer, and a runtime that took their processors away.
	calmReaders = 1
	// steadyReaders is how many there are at least when requests come faster. Each
	// more of them on the same processors makes bulk writes wait for one another's
	// file lock.
	steadyReaders = 4
	// calmTicks is for how many times patience requests must have come one at a time,
	// or not at all, to be taken for calm.
	calmTicks = 50
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
	steady  atomic.Int32  // how many are to wait
	crowded atomic.Bool   // requests overlapped since the last look
	came    atomic.Bool   // a request came since the last look
	wake    chan struct{} // holds one when came was set
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
	return &loop{dev: dev, protocol: protocol, log: log, wake: make(chan struct{}, 1), ended: make(chan struct{})}
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
	gone := l.dev.conn.Control(func(fd uintptr) { _, err = l.answer(int(fd), newDevReader()) })
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
	l.steady.Store(calmReaders)
	start(calmReaders)
	for {
		select {
		case <-l.ended:
			gone()
			l.interrupt(readers)
			return
		case <-l.wake:
			l.watch(readers, start)
		}
	}
}

// watch starts readers as requests need them, until no request came for a while and a
// reader waits for the next, or the mount is gone.
func (l *loop) watch(readers map[*devReader]uint64, start func(n int)) {
	for p := (pace{}); p.quiet < calmTicks; {
		select {
		case <-l.ended:
			return
		case <-time.After(patience):
			l.look(&p, readers, start)
		}
	}
}

// pace is how requests come: for how many looks none came, and for how many they did
// not overlap.
type pace struct{ quiet, calm int }

// look adjusts the number of readers to what happened since the last look.
func (l *loop) look(p *pace, readers map[*devReader]uint64, start func(n int)) {
	select {
	case <-l.wake: // before came is cleared: what comes from there on wakes again
	default:
	}
	came, overlap, starved := l.came.Swap(false), l.crowded.Swap(false), l.idle.Load() == 0
	if starved && l.dev.pending() {
		overlap = true
		l.steady.Store(steadyReaders)
	}
	if starved {
		start(missing(readers, int(l.steady.Load())))
	}
	p.quiet, p.calm = p.quiet+1, p.calm+1
	if came {
		p.quiet = 0
	}
	if overlap {
		p.calm = 0
	}
	if p.calm >= calmTicks {
		l.steady.Store(calmReaders)
	}
}

// missing is how many readers to start, so that steady are there beside those that
// serve the same request as when it looked last.
func missing(readers map[*devReader]uint64, steady int) int {
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
	return max(0, steady+small+min(large, maxBulk)-len(readers))
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
	defer func() {
		r.buf = nil // r itself is dropped when somebody looks
		r.left.Store(true)
	}()
	_ = l.dev.conn.Control(func(fd uintptr) { // an error would mean that the mount is gone
		for {
			more, err := l.answer(int(fd), r)
			if !more {
				if err != unix.ENODEV {
					l.log.WithError(err).Error("reading requests of the kernel")
				}
				l.idle.Add(-1)
				l.end.Do(func() { close(l.ended) })
				return
			}
			if l.dismissed() {
				return
			}
		}
	})
}

// dismissed takes the caller off those who wait, when there are more than needed.
func (l *loop) dismissed() bool {
	for {
		n := l.idle.Load() // the caller among them
		if n <= l.steady.Load() {
			return false
		}
		if l.idle.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// opInterrupt is the kernel's number of INTERRUPT.
const opInterrupt = 36

// answer takes one request and answers it. False: there are no more.
func (l *loop) answer(fd int, r *devReader) (more bool, err error) {
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
	l.leave(r) // before the reply, on which the next request may follow at once
	if size > 0 {
		l.reply(fd, out[:size], &head)
	}
	return true, nil
}

func (l *loop) enter(r *devReader, unique uint64, bulk bool) {
	r.bulk.Store(bulk)
	r.serving.Store(unique)
	if n := l.idle.Add(-1); n < l.steady.Load()-1 && !l.crowded.Load() {
		l.crowded.Store(true)
	}
	if l.came.Load() || l.came.Swap(true) {
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
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
